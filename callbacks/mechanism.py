"""What the four callbacks that look into the student share: schedule, items, files, loggers, and their own cost.

`RepresentationSimilarity`, `GradientGeometry`, `WeightChanges` and `TokenPositions` measure; docs/mechanism.md says
what their numbers mean. Each writes a line per evaluation to RUN/mechanism/<name>.jsonl, logs
``mechanism/<name>/...`` to every logger, and changes nothing of the training: no random state, no gradient, no train or
eval mode.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from callbacks.evaluating import is_back_on_its_device
from callbacks.evaluation_schedule import EvaluationSchedule
from callbacks.mechanism_files import append_evaluation, drop_evaluations_after, read_evaluations
from datamodules.base import ContextDataModule, Split
from datamodules.example import Example
from lightning_modules.mechanism.protocol import ShowsMechanism
from lightning_modules.packing import Rollout
from lightning_modules.rollout.hf import own_random_state
from lightning_modules.strategies import zero_stage


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one evaluation found."""

    values: Mapping[str, Any]
    """For the file: what JSON can hold."""
    metrics: Mapping[str, float | None]
    """For the loggers; None is not logged."""


@dataclass(frozen=True, slots=True)
class FirstItems:
    """The first items of a split, whose no-context completions are looked at."""

    split: Split
    max_items: int

    def examples(self, trainer: L.Trainer, user: str) -> list[Example]:
        """Read them from the trainer's DataModule.

        Raises:
            ValueError: naming `user`, the callback that needs them, if there is no ContextDataModule.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ContextDataModule):
            raise ValueError(f"{user} needs a ContextDataModule for its items; the trainer has {data!r}.")
        return data.examples(self.split)[: self.max_items]


class MechanismCallback(Callback, ABC):
    """Measures at the start, on a schedule and at the end of a fit.

    Args:
        every_n_steps: optimizer steps between evaluations; 0: only at the start and at the end; None: in the middle as
            well.
        at_start: measure the untrained student too.
        items: whose completions are looked at; None: none are.

    Raises:
        ValueError: if a number is out of range.
    """

    name: ClassVar[str]
    """Of the file and of the metrics."""

    def __init__(self, every_n_steps: int | None, at_start: bool, items: FirstItems | None) -> None:
        super().__init__()
        self.schedule = EvaluationSchedule(type(self).__name__, every_n_steps, at_start)
        if items is not None and items.max_items < 1:
            raise ValueError(f"{type(self).__name__}.max_items is {items.max_items}; it must be positive.")
        self.items = items
        self._drawn: tuple[int, list[Rollout]] | None = None
        self._started = 0.0
        self._spent_s = 0.0
        self._earlier_s = 0.0

    @abstractmethod
    def measure(self, trainer: L.Trainer, module: ShowsMechanism) -> Measurement | None:
        """Measure, on every rank; what rank zero returns is kept.

        The student may be put into either mode, and random numbers may be drawn: both are put back.
        """

    def rollouts(self, trainer: L.Trainer, module: ShowsMechanism) -> list[Rollout]:
        """This rank's share of the items' completions, drawn once for all callbacks that look at the same items.

        Every rank draws all of them, in the same batches: the number of ranks must not change what is drawn.
        """
        assert self.items is not None
        drawn = next((known for other in trainer.callbacks if (known := self._drawn_by(other, trainer))), None)  # type: ignore[attr-defined]
        if drawn is None:
            drawn = trainer.global_step, module.draw_rollouts(self.items.examples(trainer, type(self).__name__))
        self._drawn = drawn
        return drawn[1][trainer.global_rank :: trainer.world_size]

    def _drawn_by(self, other: Callback, trainer: L.Trainer) -> tuple[int, list[Rollout]] | None:
        """What another callback has drawn of the same items with the same weights."""
        if isinstance(other, MechanismCallback) and other.items == self.items and other._drawn is not None:
            return other._drawn if other._drawn[0] == trainer.global_step else None
        return None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse ZeRO-3, before anything is loaded.

        Raises:
            ValueError: naming the callback.
        """
        if zero_stage(trainer.strategy) == 3:
            raise ValueError(
                f"{type(self).__name__} looks into whole weights, which ZeRO-3 spreads over the ranks. Take it out of "
                "trainer.callbacks, or use configs/strategy/zero2.yaml."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the run's clock, after models and data were loaded."""
        self._started, self._spent_s, self._earlier_s = time.monotonic(), 0.0, 0.0
        self._drawn = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pick up a resumed run's evaluations; measure the untrained student."""
        self._pick_up(trainer)
        if self.schedule.is_due_at_start(trainer):
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where the schedule says so."""
        if self.schedule.is_due(trainer):
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the final student, unless the schedule or an earlier sitting did."""
        if self.schedule.missing(trainer.global_step, [self.name]):
            self._evaluate(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make up for what a kill left out after the last step: such a fit resumes to no step at all."""
        if self.schedule.ends_without_a_step() and is_back_on_its_device(trainer, pl_module, type(self).__name__):
            self._pick_up(trainer)
            self.on_train_end(trainer, pl_module)

    def _path(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "mechanism" / f"{self.name}.jsonl"

    def _pick_up(self, trainer: L.Trainer) -> None:
        def read(path: Path) -> list[tuple[int, str]]:
            lines = read_evaluations(path)
            self._spent_s = sum(line["elapsed_s"] for line in lines)
            self._earlier_s = lines[-1]["run_s"] if lines else 0.0
            return [(line["step"], self.name) for line in lines]

        self.schedule.begin(trainer, self._path(trainer), drop_evaluations_after, read)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, ShowsMechanism):
            raise ValueError(
                f"{type(self).__name__} needs a module that can be looked into (see ShowsMechanism); got "
                f"{type(pl_module).__name__}."
            )
        began, student = time.monotonic(), pl_module.scorer.student
        was_training = student.training
        with own_random_state(0, student.device), trainer.precision_plugin.forward_context():
            found = self.measure(trainer, pl_module)
        student.train(was_training)
        now = time.monotonic()
        self._spent_s += now - began
        if trainer.is_global_zero:
            assert found is not None
            run_s = self._earlier_s + now - self._started
            cost = {"elapsed_s": now - began, "run_s": run_s, "cost_share": self._spent_s / run_s}
            append_evaluation(self._path(trainer), {"step": trainer.global_step, **found.values, **cost})
            metrics = {**found.metrics, "cost_share": cost["cost_share"]}
            named = {
                f"mechanism/{self.name}/{metric}": value
                for metric, value in metrics.items()
                if value is not None and math.isfinite(value)
            }
            for logger in trainer.loggers:
                logger.log_metrics(named, step=trainer.global_step)
        self.schedule.done(trainer.global_step, [self.name])
