"""Distillation with a consistency term, per completion token (arXiv:2606.11627).

Three distributions score the same completion y, sampled from the student without the context (`rollout.sources` has
the baselines that sample otherwise):

    q_x = student(. | x, y<t)       no-context view, the one that is deployed
    q_c = student(. | c, x, y<t)    with-context view of the same weights
    f   = teacher(. | c, x, y<t)    sees the context, no gradient

    loss = mean_t OPD_t + consistency_coef * mean_t weight_t * consistency_t

What `distillation` is (the first term; OPD_t whatever it is):

    kl               KL(q_x || f) for beta = 1, KL(f || q_x) for beta = 0, between them JSD_beta
    cross_entropy    -log q_x(y_t): supervised fine-tuning on y, for completions that the teacher sampled

What `consistency` aligns (sg = stop-gradient), and whose idea it is:

    none                       nothing: OPD alone                                             baseline
    no_context_anchor          KL(sg[q_x] || q_c)                                             the paper's method
    dual_opd                   KL(q_c || f)                                                   paper's ablation
    symmetric                  (KL(q_x || q_c) + KL(q_c || q_x)) / 2, no stop-gradient        paper's ablation
    ema_anchor                 KL(a || q_c), a = moving average of the student at (x, y<t)    a reviewer's request
    teacher_no_context_anchor  KL(a || q_c), a = teacher(. | x, y<t)                          a reviewer's request
    adaptive_anchor            w_i KL(sg[q_x] || q_c), w_i = sg[exp(-mean_t KL(q_x || f) / tau)]    ours

The gradient of OPD reaches q_x only; that of the anchored variants and of dual_opd reaches q_c only; that of symmetric
reaches both. With `adaptive_anchor` the weight of example i grows towards 1 as the student comes to agree with the
teacher on it: an anchor that has not learnt the answer yet does not pull the with-context view down. It needs no
labels.

Choices where the paper is silent: `symmetric` is the MEAN of both directions, so that a coefficient means the same
strength as for one direction; all terms share one vocabulary support, that of q_x; `temperature` divides the logits
of every view. Everything is per token here. Masks, normalisers and the coefficient meet it in one place, the
LightningModule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.objective.divergences import (
    Support,
    cross_entropy,
    distillation_divergence,
    entropy,
    kl,
    top_columns,
    top_k_overlap,
)
from lightning_modules.objective.importance import importance_weights

Consistency = Literal[
    "none",
    "no_context_anchor",
    "dual_opd",
    "symmetric",
    "ema_anchor",
    "teacher_no_context_anchor",
    "adaptive_anchor",
]

AnchorSource = Literal["ema", "teacher"]

DistillationTerm = Literal["kl", "cross_entropy"]


def separate_anchor(consistency: Consistency) -> AnchorSource | None:
    """Whose no-context distribution has to be computed as the anchor beside the three views; None: nobody's."""
    if consistency == "ema_anchor":
        return "ema"
    if consistency == "teacher_no_context_anchor":
        return "teacher"
    return None


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """The settings of the objective, as `token_terms` takes them one by one."""

    consistency: Consistency = "no_context_anchor"
    beta: float = 1.0
    support: Support = Support()
    temperature: float = 1.0
    adaptive_tau: float = 0.5
    distillation: DistillationTerm = "kl"
    overlap_top_k: int = 0
    importance_weight_cap: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and that nothing that is set would be ignored.

        Raises:
            ValueError: naming the field of the configuration, its value and what is accepted.
        """
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta is {self.beta}; it must be at least 0.0 and at most 1.0.")
        for name, value in (
            ("loss_temperature", self.temperature),
            ("adaptive_tau", self.adaptive_tau),
            ("importance_weight_cap", self.importance_weight_cap),
        ):
            if value is not None and value <= 0.0:
                raise ValueError(f"{name} is {value}; it must be positive.")
        if self.overlap_top_k < 0:
            raise ValueError(f"overlap_top_k is {self.overlap_top_k}; it must be at least 0.")
        if self.distillation == "cross_entropy" and self.beta != 1.0:
            raise ValueError(f"beta is {self.beta}, but distillation is 'cross_entropy', which has none; leave it out.")
        if self.distillation == "cross_entropy" and self.support.kind != "full":
            raise ValueError(
                f"support.kind is {self.support.kind!r}, but distillation is 'cross_entropy': a sampled token need not "
                "be among the student's likeliest. Use 'full'."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has to score the completions."""
        return self.distillation == "kl" or self.consistency in ("dual_opd", "adaptive_anchor")

    def token_terms(self, views: ViewLogits, example_T: Tensor) -> TokenTerms:
        """`token_terms` with these settings."""
        return token_terms(
            views,
            example_T,
            consistency=self.consistency,
            beta=self.beta,
            support=self.support,
            temperature=self.temperature,
            adaptive_tau=self.adaptive_tau,
            distillation=self.distillation,
            overlap_top_k=self.overlap_top_k,
            importance_weight_cap=self.importance_weight_cap,
        )


@dataclass(frozen=True, slots=True)
class ViewLogits:
    """Logits of the views at the same T completion tokens, (T, V) each."""

    student_no_context_TV: Tensor
    teacher_with_context_TV: Tensor | None
    """None where no term asks for the teacher (`ObjectiveSettings.needs_teacher`)."""
    student_with_context_TV: Tensor | None = None
    """None where no consistency term is computed (`none`, or a coefficient of 0 during the warm-up)."""
    anchor_TV: Tensor | None = None
    """No-context logits of a separate anchor (`separate_anchor`), without gradient."""
    completion_T: Tensor | None = None
    """Ids of the completion tokens, (T,), which `cross_entropy` and importance weights want to know."""
    sampler_log_p_T: Tensor | None = None
    """Their log-probabilities under what sampled them, (T,), for importance weights."""


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """The terms of the loss at each completion token, (T,) each, in nats."""

    opd_T: Tensor
    """The distillation term, whichever it is."""
    consistency_T: Tensor | None
    """Before its weight; None where it was not computed."""
    weight_T: Tensor
    """Weight of the consistency term, without gradient: 1, or the example's adaptive weight."""
    entropy_T: Tensor
    """Entropy of q_x over the support, without gradient."""
    overlap_teacher_T: Tensor | None = None
    """Share of the likeliest tokens of q_x that are among those of f; None where it was not asked for."""
    overlap_views_T: Tensor | None = None
    """The same of q_x and q_c."""
    importance_T: Tensor | None = None
    """Weight of both terms (`importance`), without gradient; None: 1."""

    def loss_T(self, coef: float) -> Tensor:
        """The loss at each token, (T,): importance * (OPD + coef * weight * consistency)."""
        loss_T = self.opd_T
        if self.consistency_T is not None:
            loss_T = loss_T + coef * self.weight_T * self.consistency_T
        return loss_T if self.importance_T is None else self.importance_T * loss_T


def token_terms(
    views: ViewLogits,
    example_T: Tensor,
    *,
    consistency: Consistency,
    beta: float = 1.0,
    support: Support = Support(),
    temperature: float = 1.0,
    adaptive_tau: float = 0.5,
    distillation: DistillationTerm = "kl",
    overlap_top_k: int = 0,
    importance_weight_cap: float | None = None,
) -> TokenTerms:
    """Both terms of the objective at every completion token.

    Args:
        views: logits of the views.
        example_T: index of the example each token belongs to; all tokens of an example are here (`adaptive_anchor`).
        consistency: what the second term aligns, see the module's docstring.
        beta: divergence of the distillation term ``kl``, 1 = KL(q_x || f).
        support: vocabulary support of every divergence; the default is the full vocabulary.
        temperature: divides all logits.
        adaptive_tau: scale in nats of `adaptive_anchor`: an example whose mean KL(q_x || f) is tau weighs 1/e.
        distillation: what the first term is, see the module's docstring.
        overlap_top_k: likeliest tokens over the whole vocabulary whose overlap is reported; 0: none is.
        importance_weight_cap: largest importance weight of a token (`importance`); None: all weights are 1.

    Raises:
        ValueError: if the variant needs anchor logits and has none.
    """
    columns_TK = support.columns(views.student_no_context_TV)

    def log_p(logits_TV: Tensor) -> Tensor:
        return support.log_probabilities(logits_TV / temperature, columns_TK)

    q_x = log_p(views.student_no_context_TV)
    f = None if views.teacher_with_context_TV is None else log_p(views.teacher_with_context_TV.detach())
    if distillation == "cross_entropy":
        assert views.completion_T is not None
        assert columns_TK is None, "ObjectiveSettings refuses a truncated support"
        opd_T = cross_entropy(q_x, views.completion_T)
    else:
        assert f is not None
        opd_T = distillation_divergence(q_x, f, beta)
    entropy_T = entropy(q_x.detach())
    weight_T = torch.ones_like(entropy_T)
    overlap_teacher_T = _overlap(views.student_no_context_TV, views.teacher_with_context_TV, overlap_top_k)
    importance_T = None if importance_weight_cap is None else _importance(views, example_T, importance_weight_cap)
    if consistency == "none" or views.student_with_context_TV is None:
        return TokenTerms(opd_T, None, weight_T, entropy_T, overlap_teacher_T, None, importance_T)

    q_c = log_p(views.student_with_context_TV)
    match consistency:
        case "no_context_anchor":
            consistency_T = kl(q_x.detach(), q_c)
        case "dual_opd":
            assert f is not None
            consistency_T = kl(q_c, f)
        case "symmetric":
            consistency_T = 0.5 * (kl(q_x, q_c) + kl(q_c, q_x))
        case "adaptive_anchor":
            consistency_T = kl(q_x.detach(), q_c)
            assert f is not None
            weight_T = adaptive_weight(kl(q_x.detach(), f), example_T, adaptive_tau)
        case "ema_anchor" | "teacher_no_context_anchor":
            if views.anchor_TV is None:
                raise ValueError(f"consistency={consistency!r} needs anchor logits; got none.")
            consistency_T = kl(log_p(views.anchor_TV.detach()), q_c)
    overlap_views_T = _overlap(views.student_no_context_TV, views.student_with_context_TV, overlap_top_k)
    return TokenTerms(opd_T, consistency_T, weight_T, entropy_T, overlap_teacher_T, overlap_views_T, importance_T)


def _importance(views: ViewLogits, example_T: Tensor, cap: float) -> Tensor:
    """Of the distributions that were sampled from: the full vocabulary at temperature 1, whatever the loss has."""
    assert views.completion_T is not None
    assert views.sampler_log_p_T is not None
    log_q_TV = Support().log_probabilities(views.student_no_context_TV.detach(), None)
    return importance_weights(-cross_entropy(log_q_TV, views.completion_T), views.sampler_log_p_T, example_T, cap)


def _overlap(first_TV: Tensor, second_TV: Tensor | None, k: int) -> Tensor | None:
    return None if second_TV is None or k == 0 else top_k_overlap(top_columns(first_TV, k), top_columns(second_TV, k))


def adaptive_weight(kl_T: Tensor, example_T: Tensor, tau: float) -> Tensor:
    """exp(-m / tau) at each token, (T,), with m the mean of `kl_T` over the token's example. No gradient."""
    num_examples = int(example_T.max()) + 1
    sums = kl_T.new_zeros(num_examples).index_add(0, example_T, kl_T.detach())
    counts = kl_T.new_zeros(num_examples).index_add(0, example_T, torch.ones_like(kl_T))
    return torch.exp(-(sums / counts.clamp(min=1))[example_T] / tau)


@dataclass(frozen=True, slots=True)
class CoefficientSchedule:
    """The consistency term's coefficient over the optimizer steps.

    0 for the first `delay_steps` steps, then a linear rise that reaches `coef` after `warmup_steps` more. Both 0:
    constant, as in the paper.
    """

    coef: float
    delay_steps: int = 0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: naming the field of the configuration and its value.
        """
        for name, value in (
            ("coef", self.coef),
            ("delay_steps", self.delay_steps),
            ("warmup_steps", self.warmup_steps),
        ):
            if value < 0:
                raise ValueError(f"consistency_{name} is {value}; it must be at least 0.")

    def at(self, step: int) -> float:
        """Coefficient at optimizer step `step` (0-based)."""
        if step < self.delay_steps:
            return 0.0
        if step >= self.delay_steps + self.warmup_steps:
            return self.coef
        return self.coef * (step - self.delay_steps) / self.warmup_steps
