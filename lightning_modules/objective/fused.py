"""The objective from hidden states and heads, without ever holding (tokens x vocabulary) for all tokens.

Same numbers as `consistency.token_terms`, in value and gradient: that function is the readable reference, and the tests
hold this one to it. Here the gradient is formed in the forward pass, chunk by chunk (`chunked`), since every term has
a closed form in the logits over the support:

    KL(q || f)    in the logits of q    q (log q - log f - KL(q || f))                       OPD, dual_opd
    KL(p || q)    in the logits of q    q - p                                                the anchored variants
    -log q(y)     in the logits of q    q - onehot(y)                                        cross_entropy
    JSD_beta      in the logits of q    (1 - beta) q (log q - log m - KL(q || m)),  m = beta f + (1 - beta) q

`symmetric` is the mean of the first two, in the logits of both views. The top-k supports renormalise, so the same forms
hold over their columns.

Two calls per micro-batch, one for each term of the loss (arXiv:2606.11627):

    distillation(q_x, f, y)     sum_t OPD_t,                     gradient to q_x only
    consistency_term(...)       sum_t weight_t consistency_t,    gradient to q_c only (`symmetric`: to both)

The second call needs nothing of the first one's graph (but for `symmetric`), so that its backward pass may be over
before the student reads the context: see `step_gradient`. The price is that q_x is projected once more over the
full vocabulary; over a truncated support its few columns are kept. The weights of `adaptive_anchor` are made of
KL(q_x || f) over whole examples; the first call has it, so the second one knows them before it forms a gradient.
Importance weights are made of log q_x over whole examples, and both calls want them: `token_importance` comes before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_modules.objective.chunked import Chunk, Projection, sum_over_tokens
from lightning_modules.objective.consistency import Consistency, ObjectiveSettings, adaptive_weight
from lightning_modules.objective.divergences import (
    Support,
    cross_entropy,
    distillation_divergence,
    entropy,
    kl,
    top_k_overlap,
)
from lightning_modules.objective.importance import importance_weights


@dataclass(frozen=True, slots=True)
class KeptSupport:
    """A truncated support, and two views over it: few enough columns to keep for all tokens."""

    columns_Tk: Tensor
    log_q_x_TK: Tensor
    log_f_TK: Tensor


@dataclass(frozen=True, slots=True)
class Distillation:
    """The distillation term. Nothing but `loss` carries gradient."""

    loss: Tensor
    """Sum of importance * term over the tokens, a scalar."""
    opd_T: Tensor
    kl_T: Tensor | None
    """KL(q_x || f), whatever the term is; None where there is no teacher."""
    entropy_T: Tensor
    """Entropy of q_x over the support."""
    kept: KeptSupport | None
    """None where the support is the full vocabulary."""
    top_x_Tk: Tensor | None = None
    """The `overlap_top_k` likeliest tokens of q_x; None where they were not asked for."""
    overlap_T: Tensor | None = None
    """Share of them that are among those of f."""


@dataclass(frozen=True, slots=True)
class ConsistencyTerm:
    """The consistency term. Nothing but `loss` carries gradient."""

    loss: Tensor
    """Sum of importance * weight * consistency over the tokens, a scalar."""
    consistency_T: Tensor
    weight_T: Tensor
    overlap_T: Tensor | None = None
    """Share of the likeliest tokens of q_x that are among those of q_c."""


def token_importance(
    q_x: Projection, completion_T: Tensor, sampler_log_p_T: Tensor, example_T: Tensor, cap: float
) -> Tensor:
    """`importance.importance_weights` of the tokens, (T,), for one more projection of q_x onto the vocabulary.

    Args:
        q_x: the student's view that was sampled from.
        completion_T: ids of the completion tokens, (T,).
        sampler_log_p_T: their log-probabilities under what sampled them, (T,), at temperature 1.
        example_T: index of the example each token belongs to, (T,).
        cap: largest weight.
    """

    def terms(chunk: Chunk) -> tuple[list[Tensor], list[Tensor | None]]:
        return [-cross_entropy(chunk.log_p[0], completion_T[chunk.tokens])], [None]

    _, (log_q_T,) = sum_over_tokens([q_x.constant()], terms, support=Support(), temperature=1.0)
    return importance_weights(log_q_T, sampler_log_p_T, example_T, cap)


def distillation(
    q_x: Projection,
    f: Projection | None,
    settings: ObjectiveSettings,
    completion_T: Tensor | None = None,
    importance_T: Tensor | None = None,
) -> Distillation:
    """The distillation term of q_x; the gradient reaches q_x only.

    Args:
        q_x: the student's view that is trained.
        f: the teacher; None only where `settings.needs_teacher` says so.
        settings: the objective's.
        completion_T: ids of the completion tokens, (T,), for ``cross_entropy``.
        importance_T: weight of each token, (T,); None: 1. Not for ``cross_entropy``, whose samples are the teacher's.
    """
    if settings.distillation == "cross_entropy":
        assert completion_T is not None
        return _cross_entropy(q_x, f, settings, completion_T)
    assert f is not None
    beta, top_k = settings.beta, settings.overlap_top_k

    def terms(chunk: Chunk) -> tuple[list[Tensor], list[Tensor | None]]:
        log_q, log_f = chunk.log_p
        kept = [] if chunk.columns_CK is None else [chunk.columns_CK, log_q.clone(), log_f.clone()]
        kept += _top_and_overlap(chunk)
        if beta == 1.0:
            entropy_C = entropy(log_q)
            opd_C, gradient_CK = _kl_from_(log_q, log_f)
            return [opd_C, opd_C, entropy_C, *kept], [gradient_CK, None]
        statistics = [distillation_divergence(log_q, log_f, beta), kl(log_q, log_f), entropy(log_q), *kept]
        if beta == 0.0:
            return statistics, [log_q.exp_().sub_(log_f.exp_()), None]
        log_m = torch.logaddexp(log_f.add_(math.log(beta)), log_q + math.log1p(-beta))
        _, gradient_CK = _kl_from_(log_q, log_m)
        return statistics, [gradient_CK.mul_(1.0 - beta), None]

    views = [replace(q_x, top_k=top_k), replace(f.constant(), top_k=top_k)]
    loss, (opd_T, kl_T, entropy_T, *kept) = sum_over_tokens(
        views, terms, support=settings.support, temperature=settings.temperature, weight_T=importance_T
    )
    top = kept[-2:] if top_k else ()
    return Distillation(loss, opd_T, kl_T, entropy_T, KeptSupport(*kept[:3]) if len(kept) > 2 else None, *top)


def _top_and_overlap(chunk: Chunk) -> list[Tensor]:
    """The first view's likeliest tokens, and their share in the second one's; what was not asked for is left out."""
    known = [top_Ck for top_Ck in chunk.top if top_Ck is not None]
    return known if len(known) < 2 else [known[0], top_k_overlap(*known)]


def _cross_entropy(
    q_x: Projection, f: Projection | None, settings: ObjectiveSettings, completion_T: Tensor
) -> Distillation:
    """-log q_x(y_t), and KL(q_x || f) where there is a teacher, which `adaptive_anchor` goes by."""

    def terms(chunk: Chunk) -> tuple[list[Tensor], list[Tensor | None]]:
        log_q, *log_f = chunk.log_p
        y_C = completion_T[chunk.tokens]
        statistics = [cross_entropy(log_q, y_C), entropy(log_q), *(kl(log_q, log_p) for log_p in log_f)]
        statistics += _top_and_overlap(chunk)
        gradient_CV = log_q.exp_()
        gradient_CV[torch.arange(len(y_C), device=y_C.device), y_C] -= 1.0
        return statistics, [gradient_CV, *(None for _ in log_f)]

    views = [replace(view, top_k=settings.overlap_top_k) for view in ([q_x] if f is None else [q_x, f.constant()])]
    loss, (opd_T, entropy_T, *more) = sum_over_tokens(
        views, terms, support=settings.support, temperature=settings.temperature
    )
    kl_T = None if f is None else more.pop(0)
    return Distillation(loss, opd_T, kl_T, entropy_T, None, *more)


def consistency_term(
    first: Distillation,
    q_x: Projection,
    q_c: Projection,
    f: Projection | None,
    anchor: Projection | None,
    example_T: Tensor,
    settings: ObjectiveSettings,
    importance_T: Tensor | None = None,
) -> ConsistencyTerm:
    """The consistency term of any variant but ``none``; the gradient reaches q_c only, with ``symmetric`` q_x as well.

    Args:
        first: the distillation term at the same tokens.
        q_x: the student's no-context view.
        q_c: the student's with-context view.
        f: the teacher; None only where `settings.needs_teacher` says so.
        anchor: a separate anchor's no-context view, where the variant has one.
        example_T: index of the example each token belongs to; all tokens of an example are here (`adaptive_anchor`).
        settings: the objective's.
        importance_T: weight of each token beside the variant's own, (T,); None: 1.

    Raises:
        ValueError: if the variant needs an anchor and has none.
    """
    variant = settings.consistency
    assert variant != "none", "OPD alone has no second term"
    weight_T = None
    if variant == "adaptive_anchor":
        assert first.kl_T is not None
        weight_T = adaptive_weight(first.kl_T, example_T, settings.adaptive_tau)
    other = _compared_with(variant, first, q_x, f, anchor)
    compare = {"symmetric": _symmetric, "dual_opd": _kl_from_}.get(variant, _kl_to_)
    top_x_Tk = first.top_x_Tk

    def terms(chunk: Chunk) -> tuple[list[Tensor], list[Tensor | None]]:
        log_other = other[chunk.tokens].clone() if isinstance(other, Tensor) else chunk.log_p[1]
        top_c_Ck = chunk.top[0]
        overlap = [] if top_x_Tk is None or top_c_Ck is None else [top_k_overlap(top_x_Tk[chunk.tokens], top_c_Ck)]
        consistency_C, *gradients = compare(chunk.log_p[0], log_other)
        return [consistency_C, *overlap], [*gradients]

    q_c = replace(q_c, top_k=0 if top_x_Tk is None else top_x_Tk.shape[-1])
    loss, (consistency_T, *overlap) = sum_over_tokens(
        [q_c] if isinstance(other, Tensor) else [q_c, other],
        terms,
        support=settings.support,
        temperature=settings.temperature,
        columns_TK=None if first.kept is None else first.kept.columns_Tk,
        weight_T=_product(weight_T, importance_T),
    )
    weight_T = torch.ones_like(consistency_T) if weight_T is None else weight_T
    return ConsistencyTerm(loss, consistency_T, weight_T, *overlap)


def _product(first_T: Tensor | None, second_T: Tensor | None) -> Tensor | None:
    if first_T is None or second_T is None:
        return second_T if first_T is None else first_T
    return first_T * second_T


def _compared_with(
    variant: Consistency, first: Distillation, q_x: Projection, f: Projection | None, anchor: Projection | None
) -> Projection | Tensor:
    """What q_c is compared with: a view to project, or its log-probabilities over a support where they were kept."""
    match variant:
        case "symmetric":
            return q_x
        case "dual_opd":
            assert f is not None
            return f.constant() if first.kept is None else first.kept.log_f_TK
        case "ema_anchor" | "teacher_no_context_anchor":
            if anchor is None:
                raise ValueError(f"consistency={variant!r} needs a separate anchor; got none.")
            return anchor.constant()
        case _:
            return q_x.constant() if first.kept is None else first.kept.log_q_x_TK


def _kl_from_(log_q_CK: Tensor, log_p_CK: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p), (C,), and its gradient in the logits of q, which overwrites log p."""
    q_CK = log_q_CK.exp()
    product_CK = torch.sub(log_q_CK, log_p_CK, out=log_p_CK).mul_(q_CK)
    kl_C = product_CK.sum(-1)
    return kl_C, product_CK.addcmul_(q_CK, kl_C[:, None], value=-1.0)


def _kl_to_(log_q_CK: Tensor, log_p_CK: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q), (C,), and its gradient in the logits of q, which overwrites log q; log p is lost too."""
    p_CK = log_p_CK.exp()
    kl_C = log_p_CK.sub_(log_q_CK).mul_(p_CK).sum(-1)
    return kl_C, log_q_CK.exp_().sub_(p_CK)


def _symmetric(log_q_CK: Tensor, log_p_CK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(KL(p || q) + KL(q || p)) / 2, (C,), and its gradients in the logits of q and of p."""
    gradients = []
    values = []
    for own, other in ((log_q_CK, log_p_CK), (log_p_CK, log_q_CK)):
        kl_C, gradient = _kl_from_(own, other.clone())
        values.append(kl_C)
        gradients.append(gradient.add_(own.exp()).sub_(other.exp()).mul_(0.5))
    return 0.5 * (values[0] + values[1]), gradients[0], gradients[1]
