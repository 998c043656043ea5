"""The three scores of a micro-batch: student without context, teacher and student with it, on the same token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.models import eval_mode, head_logits
from lightning_modules.objective.chunked import Projection
from lightning_modules.objective.consistency import AnchorSource, TokenTerms, ViewLogits
from lightning_modules.objective.divergences import cross_entropy, kl
from lightning_modules.packing import (
    PrefixCache,
    Rollout,
    ViewBatch,
    completion_hidden_states,
    lay_out,
    plan_micro_batches,
    sampler_log_probabilities,
)
from lightning_modules.shared_context import obstacle, shares_contexts, warn_unshared
from lightning_modules.teachers import Teacher

TOKENS_PER_KL_CHUNK = 256
"""Completion tokens whose full-vocabulary logits an evaluation holds at once."""

Objective = Callable[[ViewLogits, Tensor], TokenTerms]
"""From the views' logits and the example index of each token to the terms (`objective.consistency.token_terms`)."""


@dataclass(frozen=True, slots=True)
class ViewScores:
    """Two means over a completion's tokens, in nats, over the full vocabulary at temperature 1."""

    kl: float
    """KL(q_x || q), where q is the other distribution that q_x is compared with."""
    log_probability: float
    """log q_x(y_t) of the completion's own tokens y_t, its end token included."""


class ViewScorer:
    """Runs the models over the views of a micro-batch."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        *,
        vocab_size: int,
        pad_id: int,
        share_contexts: bool = True,
        teacher_cache_tokens: int = 32_768,
        max_over_ranks: Callable[[int], int] | None = None,
        anchor: AnchorSource | None = None,
        ema_anchor: PreTrainedModel | None = None,
    ) -> None:
        """Score with these models.

        Args:
            student: gets gradient.
            teacher: gets none; None: nothing is trained, the student's own views are compared.
            vocab_size: entries of the tokenizer; further columns of a head are padding and are cut off. Entries that a
                head has no column for (a tokenizer with tokens added, a model that was not resized) have no score.
            pad_id: fills short rows.
            share_contexts: run a shared context once per micro-batch, where the models can (else a warning says why).
            teacher_cache_tokens: bound of `packing.PrefixCache`, for a teacher that does not move; 0: no cache.
            max_over_ranks: see `packing.PrefixCache`; then `prepare_teacher` must come before a step's micro-batches.
            anchor: whose no-context distribution is the anchor, where it is not the student's.
            ema_anchor: the moving average, for ``anchor="ema"``.
        """
        self.student, self.teacher = student, teacher
        configs = [student.config, *([] if teacher is None else [teacher.config(student)])]
        columns = [config.get_text_config().vocab_size for config in configs]
        self.vocab_size, self.pad_id = min(vocab_size, *columns), pad_id
        self.share_contexts = share_contexts and _all_share(student, teacher, ema_anchor)
        self.anchor, self.ema_anchor = anchor, ema_anchor
        self._teacher_prefixes = PrefixCache(teacher_cache_tokens, max_over_ranks)

    def terms(
        self, rollouts: Sequence[Rollout], objective: Objective, *, with_consistency: bool, with_teacher: bool = True
    ) -> TokenTerms:
        """The objective's terms at every completion token of one micro-batch, with gradient to the student.

        The reference, with the whole vocabulary at all tokens: training runs `step_gradient` instead.

        Args:
            rollouts: the micro-batch.
            objective: what is made of the logits.
            with_consistency: False saves the student's with-context pass, while its coefficient is 0.
            with_teacher: False saves the teacher's pass, where no term asks for it.
        """
        no_context, with_context = self.views(rollouts)
        anchor = self.anchor_projection(no_context) if with_consistency else None
        is_unknown = any(rollout.sampler_logprobs is None for rollout in rollouts)
        views = ViewLogits(
            self.student_projection(no_context).logits(),
            self.teacher_projection(with_context).logits() if with_teacher else None,
            self.student_projection(with_context).logits() if with_consistency else None,
            None if anchor is None else anchor.logits(),
            no_context.completion_ids,
            None if is_unknown else sampler_log_probabilities(rollouts, no_context.rows.device),
        )
        return objective(views, no_context.rows)

    def plan(self, rollouts: Sequence[Rollout], max_tokens: int | None) -> list[list[int]]:
        """`packing.plan_micro_batches` for these models."""
        return plan_micro_batches(rollouts, max_tokens, share_contexts=self.share_contexts)

    def prepare_teacher(self, rollouts: Sequence[Rollout], plan: Sequence[Sequence[int]]) -> None:
        """Before a step's first micro-batch: see `packing.PrefixCache.prepare`."""
        if self._caches_contexts and self.share_contexts:
            assert self.teacher is not None
            prefixes = (_shared_prefix([rollouts[i] for i in members]) for members in plan)
            self._teacher_prefixes.prepare(self.teacher.network(self.student), prefixes)

    def view_scores(
        self, rollouts: Sequence[Rollout], max_tokens: int | None, kept: dict[int, Tensor] | None = None
    ) -> list[ViewScores]:
        """KL(q_x || q_c) and the log-probability of each rollout's completion under q_x.

        Args:
            rollouts: what is scored.
            max_tokens: budget of a micro-batch in with-context tokens; None: no limit.
            kept: hidden states (T, H) of the no-context views by index of the rollout. They are not computed again
                where they are in it, and put into it where they are not: other contexts over the same answers then
                cost one view each. None: nothing is kept.
        """

        def states(members: Sequence[int], views: tuple[ViewBatch, ViewBatch]) -> tuple[Tensor, Tensor]:
            return self._no_context_states(members, views[0], kept), completion_hidden_states(self.student, views[1])

        return self._mean_scores(rollouts, max_tokens, self.student, states)

    def base_divergences(
        self, rollouts: Sequence[Rollout], base: PreTrainedModel, max_tokens: int | None
    ) -> list[float]:
        """Mean per-token KL(q_x || base's no-context view) of each rollout, as in `view_scores`."""

        def states(members: Sequence[int], views: tuple[ViewBatch, ViewBatch]) -> tuple[Tensor, Tensor]:
            return completion_hidden_states(self.student, views[0]), completion_hidden_states(base, views[0])

        return [scores.kl for scores in self._mean_scores(rollouts, max_tokens, base, states)]

    def micro_batches(
        self, rollouts: Sequence[Rollout], max_tokens: int | None
    ) -> Iterator[tuple[list[Rollout], ViewBatch, ViewBatch]]:
        """Cut rollouts up and lay out each part's no-context and with-context view, over the same completion ids."""
        for members in self.plan(rollouts, max_tokens):
            part = [rollouts[i] for i in members]
            yield (part, *self.views(part))

    @torch.no_grad()
    def _mean_scores(
        self,
        rollouts: Sequence[Rollout],
        max_tokens: int | None,
        other: PreTrainedModel,
        states: Callable[[Sequence[int], tuple[ViewBatch, ViewBatch]], tuple[Tensor, Tensor]],
    ) -> list[ViewScores]:
        """The student against `other`, from the two hidden states (T, H) of each micro-batch's tokens."""
        was_training = self.student.training
        self.student.train(False)
        means: dict[int, ViewScores] = {}
        for members in self.plan(rollouts, max_tokens):
            views = self.views([rollouts[i] for i in members])
            tokens = (*states(members, views), views[0].completion_ids)
            chunks = zip(*(torch.split(values, TOKENS_PER_KL_CHUNK) for values in tokens), strict=True)
            kl_T, log_probability_T = map(
                torch.cat, zip(*(self._scores(other, *chunk) for chunk in chunks), strict=True)
            )
            for row, index in enumerate(members):
                own = views[0].rows == row
                means[index] = ViewScores(float(kl_T[own].mean()), float(log_probability_T[own].mean()))
        self.student.train(was_training)
        return [means[index] for index in range(len(rollouts))]

    def _scores(
        self, other: PreTrainedModel, p_TH: Tensor, q_TH: Tensor, completion_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """KL(student || `other`) and the student's log-probability of the completion, each (T,)."""
        log_p_TV = self._log_probabilities(self.student, p_TH)
        return kl(log_p_TV, self._log_probabilities(other, q_TH)), -cross_entropy(log_p_TV, completion_T)

    def _no_context_states(self, members: Sequence[int], view: ViewBatch, kept: dict[int, Tensor] | None) -> Tensor:
        """The student's hidden states (T, H) in a micro-batch's no-context view, which is `kept` in main memory."""
        if kept is not None and all(index in kept for index in members):
            return torch.cat([kept[index] for index in members]).to(self.student.device)
        states_TH = completion_hidden_states(self.student, view)
        if kept is not None:
            kept |= {index: states_TH[view.rows == row].cpu() for row, index in enumerate(members)}
        return states_TH

    def views(self, rollouts: Sequence[Rollout]) -> tuple[ViewBatch, ViewBatch]:
        """The view that distillation trains, without the context for most, and the with-context view.

        Both are over the same completion ids. `plan` never mixes rollouts that train different views.
        """
        reads_context = rollouts[0].student_reads_context
        assert all(rollout.student_reads_context == reads_context for rollout in rollouts)
        completions = [rollout.completion_ids for rollout in rollouts]
        prefix = _shared_prefix(rollouts) if self.share_contexts else ()
        device = self.student.device
        with_context = lay_out(
            [rollout.with_context_ids for rollout in rollouts], completions, prefix, self.pad_id, device
        )
        if reads_context:
            return with_context, with_context
        return lay_out(
            [rollout.no_context_ids for rollout in rollouts], completions, (), self.pad_id, device
        ), with_context

    def student_projection(self, view: ViewBatch) -> Projection:
        """The student's distributions at the completion's tokens, with gradient."""
        return self._projection(self.student, view)

    @torch.no_grad()
    def teacher_projection(self, view: ViewBatch) -> Projection:
        """The teacher's; a frozen teacher's shared context is computed once for the whole run."""
        assert self.teacher is not None
        return self._teacher_projection(self.teacher_states(view))

    @torch.no_grad()
    def teacher_states(self, view: ViewBatch) -> Tensor:
        """The teacher's hidden states at the completion's tokens, (T, H), on the student's device."""
        assert self.teacher is not None
        if self.teacher.served is not None:
            return self.teacher.served.completion_hidden_states(view).to(self.student.device)
        model = self.teacher.network(self.student)
        placed = view.to(model.device)
        with eval_mode(model):  # a live teacher is the student, in train mode and perhaps with dropout
            known = self._teacher_prefixes.get(model, placed.prefix_ids) if self._caches_contexts else None
            return completion_hidden_states(model, placed, known).to(self.student.device)

    @property
    def _caches_contexts(self) -> bool:
        """Whether the teacher's contexts are computed once: it does not move, and runs here."""
        return self.teacher is not None and not self.teacher.moves and self.teacher.served is None

    def _teacher_projection(self, hidden_TH: Tensor) -> Projection:
        assert self.teacher is not None
        return Projection(hidden_TH, self.teacher.head(self.student), self.vocab_size).constant()

    @torch.no_grad()
    def anchor_projection(self, view: ViewBatch) -> Projection | None:
        """A separate anchor's; None: the variant has none."""
        match self.anchor:
            case "ema":
                assert self.ema_anchor is not None
                return self._projection(self.ema_anchor, view).constant()
            case "teacher":
                return self._teacher_projection(self.teacher_states(view))
        return None

    def _projection(self, model: PreTrainedModel, view: ViewBatch) -> Projection:
        hidden_TH = completion_hidden_states(model, view)
        return Projection(hidden_TH, model.get_output_embeddings(), self.vocab_size)

    def _log_probabilities(self, model: PreTrainedModel, hidden_TH: Tensor) -> Tensor:
        return head_logits(model, hidden_TH, self.vocab_size).float().log_softmax(-1)


def _shared_prefix(rollouts: Sequence[Rollout]) -> tuple[int, ...]:
    """The context that all of a micro-batch share, or nothing."""
    prefix = rollouts[0].context_prefix
    return prefix if all(rollout.context_prefix == prefix for rollout in rollouts) else ()


def _all_share(student: PreTrainedModel, teacher: Teacher | None, ema_anchor: PreTrainedModel | None) -> bool:
    """Whether all models can run a shared context once; warns, once, of one that can't."""
    models = [student, *([] if teacher is None or teacher.served is not None else [teacher.network(student)])]
    models += [] if ema_anchor is None else [ema_anchor]
    for model in models:
        reason = obstacle(model)
        if reason is not None:
            warn_unshared(model.name_or_path or type(model).__name__, reason)
    return all(map(shares_contexts, models))
