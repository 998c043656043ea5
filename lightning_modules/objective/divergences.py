"""Per-token divergences between next-token distributions: the reference, written to be read.

Shape suffixes, here and in `consistency`:
    T  completion tokens of a micro-batch, all examples one after the other
    V  vocabulary of the tokenizer (padding columns of a model's head are cut off before they come here)
    K  columns of the support: V, k, or k + 1 with the tail bucket

A divergence is always written KL(p || q) = sum_v p_v (log p_v - log q_v), in nats, with p and q named. The student is
q_x (no context) or q_c (with context), the teacher f; see `consistency`.

Support (arXiv:2606.11627 restricts the sum to the student's no-context top-256 at each position):
    full        the exact sum over V. Default.
    top_k       both sides gathered at the k columns and RENORMALISED over them, as the paper states. Without
                renormalising, sum p (log p - log q) over a part of the vocabulary is no divergence: it can be negative,
                and it falls when mass leaves the part.
    top_k_tail  the k columns as they are, and one more bucket that holds the mass of all others. A lower bound of the
                exact KL (data processing inequality), so it never rewards moving mass out of the k columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Support:
    """Which vocabulary entries a divergence sums over."""

    kind: Literal["full", "top_k", "top_k_tail"] = "full"
    """``full``: exact; ``top_k``: renormalised over k entries (the paper's); ``top_k_tail``: k entries and the rest."""
    k: int = 256
    """Entries kept at each position, the largest of the student's no-context distribution. Ignored by ``full``."""

    def __post_init__(self) -> None:
        """Check `k`.

        Raises:
            ValueError: if ``k`` is not positive.
        """
        if self.k < 1:
            raise ValueError(f"support.k is {self.k}; it must be at least 1 (the paper uses 256).")

    def columns(self, logits_TV: Tensor) -> Tensor | None:
        """Columns of the support at each position, (T, k); None where the support is the whole vocabulary."""
        if self.kind == "full" or self.k >= logits_TV.shape[-1]:
            return None
        return top_columns(logits_TV, self.k)

    def log_probabilities(self, logits_TV: Tensor, columns_TK: Tensor | None) -> Tensor:
        """Log-probabilities over the support, (T, K), in float32 or wider; they sum to one at each position."""
        logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
        if columns_TK is None:
            return logits_TV.log_softmax(-1)
        if self.kind == "top_k":
            return logits_TV.gather(-1, columns_TK).log_softmax(-1)
        # The tail is a log-sum over the other columns, not log(1 - sum): exact even when the tail is tiny.
        tail_T1 = logits_TV.scatter(-1, columns_TK, -math.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logits_TV.gather(-1, columns_TK), tail_T1], dim=-1).log_softmax(-1)


def kl(log_p_TK: Tensor, log_q_TK: Tensor) -> Tensor:
    """KL(p || q) at each position, (T,), in nats."""
    return (log_p_TK.exp() * (log_p_TK - log_q_TK)).sum(-1)


def distillation_divergence(log_student_TK: Tensor, log_teacher_TK: Tensor, beta: float) -> Tensor:
    """Divergence of student q from teacher f at each position, (T,), in nats.

    Args:
        log_student_TK: log q.
        log_teacher_TK: log f.
        beta: 1 is reverse KL(q || f), the paper's; 0 is forward KL(f || q); between them the generalised
            Jensen-Shannon divergence beta KL(f || m) + (1 - beta) KL(q || m) with m = beta f + (1 - beta) q, named as
            in TRL (arXiv:2306.13649, eq. 1).
    """
    if beta == 1.0:
        return kl(log_student_TK, log_teacher_TK)
    if beta == 0.0:
        return kl(log_teacher_TK, log_student_TK)
    log_mixture_TK = torch.logaddexp(log_teacher_TK + math.log(beta), log_student_TK + math.log1p(-beta))
    return beta * kl(log_teacher_TK, log_mixture_TK) + (1.0 - beta) * kl(log_student_TK, log_mixture_TK)


def cross_entropy(log_q_TV: Tensor, completion_T: Tensor) -> Tensor:
    """-log q(y_t) at each position, (T,), in nats, for the tokens y_t of the completion."""
    return -log_q_TV.gather(-1, completion_T[:, None])[:, 0]


def top_columns(logits_TV: Tensor, k: int) -> Tensor:
    """The k largest columns at each position, (T, k); all of them where there are no more than k."""
    return logits_TV.detach().topk(min(k, logits_TV.shape[-1]), dim=-1).indices


def top_k_overlap(first_Tk: Tensor, second_Tk: Tensor) -> Tensor:
    """Share of the columns of one that are among those of the other, (T,), from 0 to 1."""
    return (first_Tk[:, :, None] == second_Tk[:, None, :]).any(-1).float().mean(-1)


def entropy(log_p_TK: Tensor) -> Tensor:
    """Entropy of p at each position, (T,), in nats."""
    return -(log_p_TK.exp() * log_p_TK).sum(-1)
