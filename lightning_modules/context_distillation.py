"""`ContextDistillation`: distillation of a removable context, with a consistency term (arXiv:2606.11627).

One training step is one optimizer step:

1. the DataModule yields a list of examples;
2. `views` renders both prompts of each;
3. the rollout engine samples completions from the no-context prompt with the current student (a baseline may sample
   otherwise: `rollout.sources`); games are played to their end, and every turn is a completion (`rollout.episodes`);
4. `packing` cuts them into micro-batches;
5. teacher with context, student without context, student with context: hidden states at the completion's tokens;
6. `objective` turns them into per-token terms; each is summed and divided by the token count of the GLOBAL optimizer
   step, so that micro-batches, packing and the number of ranks change nothing;
7. backward per micro-batch and term (`step_gradient` has the order), clip, step.

Optimisation is manual because a step holds several backward passes. All randomness of a step is seeded by (seed, step,
rank): a resumed run repeats the interrupted one without any random state in the checkpoint. A checkpoint holds the
student (of one with LoRA the adapters), the optimizer and moving averages; a frozen teacher, and the base of adapters,
are rebuilt from the config.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from transformers import PreTrainedModel

from datamodules.example import Environment, Example
from lightning_modules.adapters import AdapterRecord, add_adapters, leave_base_out, shared_copy
from lightning_modules.comparison import ComparisonSpec, ViewComparer, ViewComparison
from lightning_modules.compatibility import check_head, check_stage
from lightning_modules.models import ModelSpec, check_plain_head, freeze, frozen_copy, load_model, load_tokenizer
from lightning_modules.objective.consistency import (
    CoefficientSchedule,
    Consistency,
    DistillationTerm,
    ObjectiveSettings,
    separate_anchor,
)
from lightning_modules.objective.divergences import Support
from lightning_modules.packing import Rollout
from lightning_modules.ranks import max_over_ranks, sum_over_ranks
from lightning_modules.rollout.engine import RolloutEngine, SamplingSpec
from lightning_modules.rollout.engines import EngineSpec, make_engine
from lightning_modules.rollout.episodes import Episode, all_turns, play_episodes
from lightning_modules.rollout.hf import HFRolloutEngine, own_random_state
from lightning_modules.rollout.sources import RolloutSpec, check_method
from lightning_modules.rollout.vllm import VLLMRolloutEngine
from lightning_modules.scoring import ViewScorer
from lightning_modules.spread_weights import built_whole, gathered, parameter_shapes
from lightning_modules.step_gradient import Implementation, StepGradient
from lightning_modules.step_metrics import step_metrics
from lightning_modules.strategies import whole_weights, zero_stage
from lightning_modules.teachers import Teacher, TeacherSpec, update_average
from lightning_modules.updates import updates_for
from lightning_modules.views import View, ViewRenderer, ViewSpec


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; raised before the weights are touched."""


class ContextDistillation(L.LightningModule):
    """Student, frozen teacher and one step of OPD with a consistency term.

    Args:
        student: the model to train.
        teacher: who scores its answers with the context; default: a frozen copy of the initial student.
        views: how the two prompts are rendered.
        rollouts: who samples them, and from which prompt; default: the student, without the context.
        sampling: how rollouts are drawn. The paper: temperature 1.0, at most 512 tokens.
        evaluation: how evaluations decode; default: greedily, with the rollouts' max_completion_length.
        optimizer: called with the student's parameters.
        lr_scheduler: called with the optimizer, stepped once per optimizer step; None: constant learning rate.
        consistency: what the second term aligns; ``none`` is OPD alone, ``no_context_anchor`` the paper's method.
        consistency_coef: weight of the second term. The paper's best of {0.1, 0.5, 1.0} is 0.5.
        consistency_delay_steps: optimizer steps at weight 0 before the warm-up. The paper: 0.
        consistency_warmup_steps: optimizer steps of linear rise to consistency_coef. The paper: 0.
        adaptive_tau: scale in nats of ``adaptive_anchor``: an example at mean KL(q_x || f) = tau weighs 1/e.
        anchor_update_rate: share of the student mixed into the anchor of ``ema_anchor`` after each step, in (0, 1].
        distillation: the first term: ``kl``, or ``cross_entropy`` on completions of the teacher (fine-tuning).
        beta: divergence of the term ``kl``: 1 is reverse KL(q_x || f), 0 forward KL, between them JSD.
        support: vocabulary support of all divergences; default: the full vocabulary.
        loss_temperature: divides the logits of every view in the loss.
        importance_weight_cap: largest importance weight of a token, for rollouts of an engine whose log-probabilities
            differ from the trainer's (`objective.importance`); None: none are computed.
        overlap_top_k: likeliest tokens whose overlap with the teacher, and between the views, is logged; 0: none.
        objective_implementation: ``fused`` never holds the vocabulary for all tokens; ``reference`` is plain autograd.
        num_generations: rollouts per prompt and step.
        max_tokens_per_micro_batch: budget of a micro-batch in with-context tokens, a shared context counted once; None:
            one micro-batch per context.
        gradient_clip_norm: largest global gradient norm; None: no clipping.
        gradient_checkpointing: recompute activations in the backward pass.
        teacher_cache_tokens: tokens of contexts whose keys and values are kept for a teacher that does not move, which
            computes a context once per run then; 0: none. `packing.PrefixCache` says what a token takes.
        rollout_batch_size: prompts per call of generate; with vLLM, requests that are worked on at once.
        engine: what samples the student's: transformers' generate (default), or vLLM.
        seed: seeds the rollouts, together with step and rank.

    Raises:
        ValueError: naming a field whose value is out of range.
    """

    def __init__(
        self,
        student: ModelSpec,
        optimizer: OptimizerCallable,
        teacher: TeacherSpec = TeacherSpec(),
        views: ViewSpec = ViewSpec(),
        rollouts: RolloutSpec = RolloutSpec(),
        sampling: SamplingSpec = SamplingSpec(),
        evaluation: SamplingSpec | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        consistency: Consistency = "no_context_anchor",
        consistency_coef: float = 0.5,
        consistency_delay_steps: int = 0,
        consistency_warmup_steps: int = 0,
        adaptive_tau: float = 0.5,
        anchor_update_rate: float = 0.05,
        distillation: DistillationTerm = "kl",
        beta: float = 1.0,
        support: Support = Support(),
        loss_temperature: float = 1.0,
        importance_weight_cap: float | None = None,
        overlap_top_k: int = 0,
        objective_implementation: Implementation = "fused",
        num_generations: int = 1,
        max_tokens_per_micro_batch: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        gradient_checkpointing: bool = False,
        teacher_cache_tokens: int = 32_768,
        rollout_batch_size: int = 64,
        engine: EngineSpec = EngineSpec(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a frozen teacher is not in the checkpoint; on_load_checkpoint checks the student
        _check_at_least(1, num_generations=num_generations, rollout_batch_size=rollout_batch_size)
        _check_at_least(0, teacher_cache_tokens=teacher_cache_tokens)
        _check_positive(anchor_update_rate=anchor_update_rate, gradient_clip_norm=gradient_clip_norm)
        objective = ObjectiveSettings(
            consistency,
            beta,
            support,
            loss_temperature,
            adaptive_tau,
            distillation,
            overlap_top_k,
            importance_weight_cap,
        )
        check_method(rollouts, objective, engine, sampling)
        self.student_spec = student
        self.teacher_spec = teacher
        self.view_spec = views
        self.rollout_spec = rollouts
        self.sampling = sampling
        self.evaluation = evaluation or SamplingSpec(sampling.max_completion_length, temperature=0.0)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.consistency: Consistency = consistency
        self.schedule = CoefficientSchedule(consistency_coef, consistency_delay_steps, consistency_warmup_steps)
        self.anchor_update_rate = anchor_update_rate
        self.objective_settings = objective
        self.objective_implementation: Implementation = objective_implementation
        self.num_generations = num_generations
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.gradient_clip_norm = gradient_clip_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.teacher_cache_tokens = teacher_cache_tokens
        self.rollout_batch_size = rollout_batch_size
        self.engine_spec = engine
        self.seed = seed
        self.restored_step = 0
        self.zero_stage = 0
        self._evaluating = ExitStack()
        self._initial: tuple[PreTrainedModel] | None = None  # in a tuple: no submodule, so not in checkpoints
        self._adapters: AdapterRecord | None = None

    # ---------------------------------------------------------------------------------------------------- building

    def setup(self, stage: str) -> None:
        """Choose how gradients become updates; before `configure_model`, for DeepSpeed reads its settings there.

        Raises:
            ValueError: if the strategy can't train this module.
        """
        self.updates = updates_for(self, self.gradient_clip_norm)
        self.zero_stage = zero_stage(self.trainer.strategy)
        check_stage(self.zero_stage, self.teacher_spec, self.student_spec, separate_anchor(self.consistency))

    def configure_model(self) -> None:
        """Load tokenizer, student and teacher. Lightning calls it once per stage; the second call does nothing."""
        if hasattr(self, "student"):
            return
        self.tokenizer = load_tokenizer(self.student_spec)
        student = load_model(self.student_spec)
        check_plain_head(student, self.student_spec.name)
        load_again, rank = self._second_student(student), self.trainer.local_rank
        self.teacher = Teacher(self.teacher_spec, student, self.tokenizer, load_again, rank)
        anchor = separate_anchor(self.consistency)
        self.ema_anchor = frozen_copy(student, torch.float32) if anchor == "ema" else None
        if self.gradient_checkpointing:
            student.gradient_checkpointing_enable()
        self.student: PreTrainedModel = student
        longest = max(self.sampling.max_completion_length, self.evaluation.max_completion_length)
        positions = min(student.config.get_text_config().max_position_embeddings, self.teacher.max_length(student))
        positions = min(positions, self.engine_spec.max_length() or positions)
        self.renderer = ViewRenderer(self.tokenizer, self.view_spec, positions, longest)
        self.engine = make_engine(self.engine_spec, student, self.tokenizer, self.rollout_batch_size)
        self.rollout_engine: RolloutEngine = self.engine
        if self.rollout_spec.sampler == "teacher":
            network = self.teacher.network(student)
            self.rollout_engine = HFRolloutEngine(network, self.tokenizer, self.rollout_batch_size)
        self.scorer = ViewScorer(
            student,
            self.teacher,
            vocab_size=len(self.tokenizer),
            pad_id=self.tokenizer.pad_token_id,
            teacher_cache_tokens=self.teacher_cache_tokens,
            # Under ZeRO-3 all ranks must run as many passes, whether their own caches hold a context or not.
            max_over_ranks=partial(max_over_ranks, self.trainer) if self.zero_stage == 3 else None,
            anchor=anchor,
            ema_anchor=self.ema_anchor,
        )
        self.gradient = StepGradient(self.scorer, self.objective_settings, self.objective_implementation)
        budget = self.max_tokens_per_micro_batch
        self.comparer = ViewComparer(self.renderer, self.engine, self.scorer, self.evaluation, budget)

    def _second_student(self, student: PreTrainedModel) -> Callable[[], PreTrainedModel] | None:
        """What makes the untrained student once more, where it can't be copied; with LoRA, adapters are added here."""
        if self.student_spec.lora is not None:
            base = freeze(shared_copy(student))
            with own_random_state(self.seed, student.device), built_whole(student):
                add_adapters(student, self.student_spec.lora, self.student_spec.name)
            check_head(self.zero_stage, student)
            held_in = str(base.dtype).removeprefix("torch.") if self.zero_stage == 3 else None
            with gathered(base):
                self._adapters = AdapterRecord.of(self.student_spec.lora, base, held_in)
            self._initial = (base,)
            self.register_state_dict_post_hook(leave_base_out)
            return lambda: base
        # What ZeRO-3 has spread over the ranks can't be copied.
        return partial(load_model, self.student_spec) if self.zero_stage == 3 else None

    def configure_optimizers(self) -> Any:
        """The student's optimizer, and the schedule that `training_step` advances once per optimizer step."""
        optimizer = self.optimizer(parameter for parameter in self.student.parameters() if parameter.requires_grad)
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    @property
    def completed_steps(self) -> int:
        """Optimizer steps behind the student's weights; outside a fit the trainer does not know."""
        return self.trainer.global_step or self.restored_step

    # ---------------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """Render every item's first prompts: one that does not fit stops the run before anything is sampled."""
        if self.trainer.precision in ("16-mixed", "16-true", "bf16-true"):
            raise ValueError(
                f"trainer.precision is {self.trainer.precision}. 16-mixed scales gradients, which this module would "
                "clip wrongly; the two others also cast moving averages, adapters and positions. Use bf16-mixed or "
                "32-true; model.student.dtype bfloat16 holds the student itself in bfloat16."
            )
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "examples"):
            for split in ("train", "val"):
                for example in data.examples(split):
                    self.renderer.render(example)

    def on_train_start(self) -> None:
        """Train mode, whatever loading or an evaluation left behind."""
        self.student.train()

    def training_step(self, batch: list[Example], batch_idx: int) -> dict[str, Any]:
        """One optimizer step; see the module's docstring."""
        started, step = time.monotonic(), self.trainer.global_step
        with own_random_state(self._step_seed(step), self.device):
            examples = [example for example in batch for _ in range(self.num_generations)]
            episodes = self._play(examples, self._step_seed(step), self.rollout_spec.views(examples, self.seed, step))
            turns = all_turns(episodes)
            num_tokens = self._sum_over_ranks(sum(len(turn.completion.token_ids) for turn in turns))
            coef = self.coefficient(step)
            sums = self._backward([self.rollout_spec.training_rollout(turn) for turn in turns], coef, num_tokens)
        learning_rate = float(cast(LightningOptimizer, self.optimizers()).param_groups[0]["lr"])
        gradient_norm = self._update(sums, num_tokens, step)
        self._log_step(sums, num_tokens, coef, learning_rate, gradient_norm, episodes, started)
        return {"num_tokens": int(num_tokens), "turns": turns}

    def _play(self, examples: Sequence[Example], seed: int, views: Sequence[View]) -> list[Episode]:
        """Answer the questions, and play the games that the trainer's DataModule opens."""
        environments = [self._open_game(example) for example in examples]
        engine, from_teacher = self.rollout_engine, self.rollout_spec.sampler == "teacher"
        sampler = self.teacher.network(self.student) if from_teacher else self.student
        with whole_weights(self.trainer.strategy, sampler), engine.current_weights():
            return play_episodes(examples, environments, self.renderer, engine, self.sampling, seed, views)

    def _open_game(self, example: Example) -> Environment | None:
        """The game of an example, as the trainer's DataModule opens it."""
        open_game = getattr(getattr(self.trainer, "datamodule", None), "environment", None)
        return None if open_game is None else cast(Environment | None, open_game(example))

    def coefficient(self, step: int) -> float:
        """Weight of the consistency term at optimizer step `step`, 0 for the variant ``none``."""
        return 0.0 if self.consistency == "none" else self.schedule.at(step)

    def _backward(self, rollouts: Sequence[Rollout], coef: float, num_tokens: float) -> dict[str, float]:
        """Add every micro-batch's gradient; return the terms summed over this rank's tokens."""
        sums: dict[str, float] = {}
        plan = self.scorer.plan(rollouts, self.max_tokens_per_micro_batch)
        if self.objective_settings.needs_teacher:
            self.scorer.prepare_teacher(rollouts, plan)
        num_own = len(plan)
        num_most = max_over_ranks(self.trainer, num_own)
        plan += [plan[-1]] * (num_most - num_own)  # dummies: every rank runs as many passes
        for position, members in enumerate(plan):
            is_dummy = position >= num_own
            # Ranks' gradients are averaged afterwards, so the sum over ranks needs their number back.
            scale = 0.0 if is_dummy else self.trainer.world_size / num_tokens
            backward = partial(self._run_backward, position == len(plan) - 1)
            terms = self.gradient.add([rollouts[i] for i in members], coef, scale, backward)
            if not is_dummy:
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
        return sums

    def _run_backward(self, in_last_batch: bool, loss: torch.Tensor, is_last: bool) -> None:
        self.updates.backward(loss, is_last=in_last_batch and is_last)

    def _update(self, sums: dict[str, float], num_tokens: float, step: int) -> float:
        """Clip, step the optimizer, the schedule and the moving averages; return the gradient norm before clipping."""
        is_finite = bool(np.isfinite([*sums.values()]).all())
        # All ranks stop, or none: a rank that steps alone would wait for the others.
        norm = self.updates.step() if max_over_ranks(self.trainer, int(not is_finite)) == 0 else float("nan")
        if not np.isfinite(norm):
            means = ", ".join(f"{name}={value / num_tokens:.4g}" for name, value in sums.items())
            raise NonFiniteLossError(
                f"Step {step}: loss or gradient is not finite ({means}, gradient_norm={norm:.4g}). The weights were "
                "not changed, and metrics and checkpoints up to here are kept. Lower the learning rate or "
                "consistency_coef, or use float32 or bf16 in place of float16, then continue with --ckpt_path last."
            )
        if self.lr_scheduler is not None:
            cast(torch.optim.lr_scheduler.LRScheduler, self.lr_schedulers()).step()
        self.teacher.update(self.student)
        if self.ema_anchor is not None:
            update_average(self.ema_anchor, self.student, self.anchor_update_rate)
        return norm

    def _log_step(
        self,
        sums: dict[str, float],
        num_tokens: float,
        coef: float,
        learning_rate: float,
        gradient_norm: float,
        episodes: Sequence[Episode],
        started: float,
    ) -> None:
        metrics = step_metrics(
            sums,
            num_tokens,
            episodes,
            self._sum_over_ranks,
            coef=coef,
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
            logprob_gap=self.rollout_engine.logprob_gap,
            elapsed_s=time.monotonic() - started,
        )
        # At once, not through self.log: Lightning would hand the row over after its callbacks, and a run killed between
        # the checkpoint of a step and its row would lose the row. Numbered by completed steps, as evaluations are.
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)
        self.log_dict(metrics, logger=False, batch_size=len(episodes))
        self.log("loss", metrics["train/loss"], prog_bar=True, logger=False)

    # -------------------------------------------------------------------------------------------------- evaluation

    def on_validation_epoch_start(self) -> None:
        """Whole weights, in the engine too: `compare_views` itself can't see to it, for ranks have unequal shares."""
        self._evaluating.enter_context(whole_weights(self.trainer.strategy, self))
        self._evaluating.enter_context(self.engine.current_weights())

    def on_validation_epoch_end(self) -> None:
        """See `on_validation_epoch_start`."""
        self._evaluating.close()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def compare_views(
        self, examples: Sequence[Example], spec: ComparisonSpec = ComparisonSpec()
    ) -> list[ViewComparison]:
        """Answer every example in both views; see `comparison.ComparesViews`.

        With several ranks inside `engine.current_weights`, under ZeRO-3 inside `whole_weights`.
        """
        with self.engine.current_weights():
            return self.comparer.compare(examples, spec, self._open_game, self.seed)

    def base_divergences(self, comparisons: Sequence[ViewComparison]) -> list[float] | None:
        """How far the no-context answers are from the initial student's; see `comparison.KnowsItsBase`."""
        if self.zero_stage == 3 and self.teacher_spec.kind != "frozen" and self._adapters is None:
            return None  # it would have to be loaded again, spread over ranks that get here at different times
        with self.initial_student() as base:
            return self.comparer.base_divergences(comparisons, base)

    def draw_rollouts(self, examples: Sequence[Example]) -> list[Rollout]:
        """Completions drawn for the no-context view; see `mechanism.protocol.ShowsMechanism`."""
        seed = int(np.random.SeedSequence([self.seed], spawn_key=(1,)).generate_state(1)[0])
        with own_random_state(seed, self.device):
            views = replace(self.rollout_spec, context_share=0.0).views(examples, self.seed, step=0)
            return [turn.rollout for turn in all_turns(self._play(examples, seed, views))]

    @contextmanager
    def initial_student(self) -> Iterator[PreTrainedModel]:
        """The frozen teacher, where it is that, or the base of adapters; else loaded once, and kept in main memory."""
        if self.teacher_spec.kind == "frozen" and self.teacher_spec.device is None:
            yield self.teacher.network(self.student)
            return
        if self._initial is None:
            with own_random_state(self.seed, self.device):
                self._initial = (freeze(load_model(self.student_spec)),)
        model = cast(torch.nn.Module, self._initial[0])
        try:
            yield cast(PreTrainedModel, model.to(self.device))
        finally:
            if self._adapters is None:  # a base shares its tensors with the student
                model.to("cpu")

    def validation_step(self, batch: list[Example], batch_idx: int) -> None:
        """Nothing: `RemovabilityCallback` has the batch answered (`compare_views`), grades and counts."""

    def test_step(self, batch: list[Example], batch_idx: int) -> None:
        """See `validation_step`."""

    def predict_step(self, batch: list[Example], batch_idx: int) -> list[dict[str, str]]:
        """Both views' answers as plain rows, ready for a file."""
        return [
            {
                "id": comparison.example.id,
                "answer": comparison.example.answer,
                "completion_no_context": comparison.no_context.text,
                "completion_with_context": comparison.with_context.text,
            }
            for comparison in self.compare_views(batch, ComparisonSpec(with_kl=False))
        ]

    def teardown(self, stage: str) -> None:
        """End an engine that is more than the student itself; another stage starts it again."""
        if isinstance(self.engine, VLLMRolloutEngine):
            self.engine.close()

    # ------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose weights these are: in DeepSpeed's folders they are spread over files."""
        checkpoint["student_shapes"] = parameter_shapes(self.student)
        if self._adapters is not None:
            checkpoint["adapters"] = self._adapters.to_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another student.

        Raises:
            ValueError: naming tensors that are missing or of another shape, or how adapters differ.
        """
        if self._adapters is not None:
            self._adapters.check(checkpoint.get("adapters"))
        if self.zero_stage:  # the engine has the weights already
            saved, own = checkpoint["student_shapes"], parameter_shapes(self.student)
        else:
            states = checkpoint["state_dict"], self.state_dict()
            saved, own = ({name: value.shape for name, value in state.items()} for state in states)
        wrong = [name for name in own if name not in saved or saved[name] != own[name]]
        if wrong:
            raise ValueError(
                f"The checkpoint does not fit the configured model: {len(wrong)} of {len(own)} tensors are missing "
                f"or of another shape, first {wrong[:3]}. Use the config.yaml of the run that wrote it."
            )
        self.restored_step = checkpoint["global_step"]

    # ------------------------------------------------------------------------------------------------------- ranks

    def _step_seed(self, step: int) -> int:
        return int(np.random.SeedSequence([self.seed, step, self.global_rank]).generate_state(1)[0])

    def _sum_over_ranks(self, value: float) -> float:
        return sum_over_ranks(self.trainer, value)


def _check_at_least(low: int, **fields: int) -> None:
    for name, value in fields.items():
        if value < low:
            raise ValueError(f"{name} is {value}; it must be at least {low}.")


def _check_positive(**fields: float | None) -> None:
    for name, value in fields.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}; it must be positive.")
