"""The gradient of one micro-batch's objective, added to the student's.

Two implementations of the same numbers; the tests train with both:

fused      `objective.fused`: the vocabulary in chunks, and the two terms one after the other:

               teacher with context; student without context, OPD, backward; student with context, NCA, backward

           OPD's gradient does not need the with-context pass, and NCA needs of the no-context one its hidden states
           alone, (T, H). So only one student pass has its activations in memory at a time. The price is one more
           projection onto the vocabulary for each completion token; over a truncated support not even that.
           Peak above weights and gradients, 12 layers of width 256 at V = 151,936, 8 rollouts of 80 + 32 tokens that
           share a context of 512, float32, on a CPU: 1.13 GiB one after the other, 1.49 GiB in one backward pass,
           2.52 GiB with the reference, at equal CPU time (11.2 s, 11.7 s, 11.8 s).
           `symmetric` gives both views gradient from one term, and needs both passes together.
reference  `objective.consistency.token_terms` on all logits, one backward pass: to read, and to check against.

The numbers of passes and of backward calls depend on the settings and the coefficient alone, never on the data: ranks
agree on them. The number of chunks does depend on it, which is no matter: a chunk exchanges nothing (`chunked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.heap import give_back_free_heap
from lightning_modules.objective.chunked import Projection
from lightning_modules.objective.consistency import ObjectiveSettings, TokenTerms
from lightning_modules.objective.fused import consistency_term, distillation, token_importance
from lightning_modules.packing import Rollout, ViewBatch, sampler_log_probabilities
from lightning_modules.scoring import ViewScorer

Implementation = Literal["fused", "reference"]

Backward = Callable[[Tensor, bool], None]
"""Runs the backward pass of a loss; the flag says whether it is the micro-batch's last."""


class StepGradient:
    """Adds gradients, one micro-batch after the other."""

    def __init__(
        self, scorer: ViewScorer, settings: ObjectiveSettings, implementation: Implementation = "fused"
    ) -> None:
        """Use these models and this objective."""
        self.scorer, self.settings, self.implementation = scorer, settings, implementation

    def add(self, rollouts: Sequence[Rollout], coef: float, scale: float, backward: Backward) -> dict[str, float]:
        """Add the gradient of scale * sum_t (OPD + coef * weight * consistency); return the terms' sums as logged.

        Args:
            rollouts: the micro-batch.
            coef: weight of the consistency term; 0 saves the student's with-context pass.
            scale: of the whole sum, such as one over the step's tokens.
            backward: called once or twice.
        """
        if self.implementation == "reference":
            terms = self.scorer.terms(
                rollouts,
                self.settings.token_terms,
                with_consistency=coef > 0.0,
                with_teacher=self.settings.needs_teacher,
            )
            backward(scale * terms.loss_T(coef).sum(), True)
        else:
            terms = self._add_fused(rollouts, coef, scale, backward)
        first = "opd" if self.settings.distillation == "kl" else self.settings.distillation
        sums = {first: terms.opd_T, "entropy": terms.entropy_T, "loss": terms.loss_T(coef)}
        if terms.consistency_T is not None:
            sums |= {"nca": terms.consistency_T, "consistency_weight": terms.weight_T}
        if terms.importance_T is not None:
            is_capped_T = terms.importance_T.ge(self.settings.importance_weight_cap or 0.0)
            sums |= {"importance_weight": terms.importance_T, "importance_capped_ratio": is_capped_T}
        if terms.overlap_teacher_T is not None:
            sums["top_k_overlap_teacher"] = terms.overlap_teacher_T
        if terms.overlap_views_T is not None:
            sums["top_k_overlap_views"] = terms.overlap_views_T
        return {name: float(values_T.detach().sum()) for name, values_T in sums.items()}

    def _add_fused(self, rollouts: Sequence[Rollout], coef: float, scale: float, backward: Backward) -> TokenTerms:
        scorer, settings = self.scorer, self.settings
        no_context, with_context = scorer.views(rollouts)
        f = scorer.teacher_projection(with_context) if settings.needs_teacher else None
        q_x = scorer.student_projection(no_context)
        importance_T = self._importance(rollouts, no_context, q_x)
        first = distillation(q_x, f, settings, no_context.completion_ids, importance_T)
        loss, together = scale * first.loss, settings.consistency == "symmetric"
        if coef == 0.0:
            backward(loss, True)
            ones_T = torch.ones_like(first.opd_T)
            return TokenTerms(first.opd_T, None, ones_T, first.entropy_T, first.overlap_T, None, importance_T)
        if not together:
            backward(loss, False)
            q_x = q_x.constant()
            give_back_free_heap(q_x.hidden_TH.device)
        anchor = scorer.anchor_projection(no_context)
        q_c = scorer.student_projection(with_context)
        second = consistency_term(first, q_x, q_c, f, anchor, no_context.rows, settings, importance_T)
        last = scale * coef * second.loss
        backward(loss + last if together else last, True)
        overlaps = first.overlap_T, second.overlap_T
        return TokenTerms(first.opd_T, second.consistency_T, second.weight_T, first.entropy_T, *overlaps, importance_T)

    def _importance(self, rollouts: Sequence[Rollout], view: ViewBatch, q_x: Projection) -> Tensor | None:
        cap = self.settings.importance_weight_cap
        if cap is None:
            return None
        sampler_log_p_T = sampler_log_probabilities(rollouts, view.rows.device)
        return token_importance(q_x, view.completion_ids, sampler_log_p_T, view.rows, cap)
