"""What the distributions of the views have in common at each token of a completion.

q_x = student(. | x, y<t), q_c = student(. | c, x, y<t), f = teacher(. | c, x, y<t), over the full vocabulary at
temperature 1, in float32. Logits are held for `TOKENS_PER_KL_CHUNK` tokens at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.objective.divergences import entropy, kl, top_columns, top_k_overlap
from lightning_modules.packing import ViewBatch, completion_hidden_states
from lightning_modules.scoring import TOKENS_PER_KL_CHUNK, ViewScorer

MEASURES = ("kl_views", "kl_teacher", "top_k_overlap", "entropy_no_context", "entropy_with_context")
"""KL(q_x || q_c) and KL(q_x || f) in nats; the share of q_x's k most likely tokens that are among q_c's; the entropies
of q_x and q_c in nats."""


@torch.no_grad()
def token_measures(scorer: ViewScorer, no_context: ViewBatch, with_context: ViewBatch, top_k: int) -> Tensor:
    """The `MEASURES` at each completion token of a micro-batch: (T, 5), float32.

    Args:
        scorer: holds the student and the teacher.
        no_context: one view of the micro-batch.
        with_context: the other, of the same completion tokens.
        top_k: most likely tokens that are compared.
    """
    assert scorer.teacher is not None
    student = scorer.student
    states = [completion_hidden_states(student, view) for view in (no_context, with_context)]
    states.append(scorer.teacher_states(with_context))
    heads = [*[student.get_output_embeddings()] * 2, scorer.teacher.head(student)]
    measures = []
    for chunk in zip(*(torch.split(hidden, TOKENS_PER_KL_CHUNK) for hidden in states), strict=True):
        x, c, f = (
            head(hidden)[..., : scorer.vocab_size].float().log_softmax(-1)
            for head, hidden in zip(heads, chunk, strict=True)
        )
        overlap = top_k_overlap(top_columns(x, top_k), top_columns(c, top_k))
        measures.append(torch.stack([kl(x, c), kl(x, f), overlap, entropy(x), entropy(c)], dim=-1))
    return torch.cat(measures)


def positions(rows_T: Tensor) -> Tensor:
    """Place of each token in its completion, from 0, (T,); `rows_T` numbers the completions and is sorted."""
    starts = torch.searchsorted(rows_T, rows_T)  # the first place that holds the row
    return torch.arange(len(rows_T), device=rows_T.device) - starts
