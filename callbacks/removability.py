"""`RemovabilityCallback`: is the context removable yet? Both views' answers, paired per item, on a schedule.

Files under RUN/removability/: step=000020.jsonl with one line per item, step=000020.<control>.jsonl where a control
stood in the context's place, summary.jsonl with one line per evaluation and context. The same numbers go to every
logger under ``removability/...``, of each group of items under ``removability/<group>/...``, and of each control under
``controls/<control>/...``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from rich.progress import track

from callbacks.evaluating import evaluating, is_back_on_its_device
from callbacks.evaluation_schedule import EvaluationSchedule
from callbacks.paired_evaluation import ControlSpec, PairedEvaluation, comparing
from callbacks.paired_records import PairedRecord
from callbacks.rank_records import gather_records
from callbacks.removability_files import ORIGINAL, append_summary, drop_summaries_after, read_summaries, write_records
from callbacks.removability_metrics import ALL, RemovabilitySummary, summarise_groups
from callbacks.removability_wandb import log_items
from datamodules.base import ContextDataModule

LOGGED = (
    "accuracy_no_context",
    "accuracy_with_context",
    "both_correct",
    "harm",
    "help",
    "macro_f1_no_context",
    "macro_f1_with_context",
    "length_inflation",
    "mean_kl",
    "num_items",
    "num_correct_no_context",
    "num_harmed",
    "self_flip",
    "mean_accuracy_no_context",
    "mean_accuracy_with_context",
)
"""Fields of a summary that go to the loggers; a withheld value (None) is not logged."""


class RemovabilityCallback(Callback):
    """Evaluate removability at the start, every so many optimizer steps, and at the end of a fit.

    `validate` and `test` make the same evaluation once, over their whole split.

    Args:
        every_n_steps: optimizer steps between evaluations; 0: only at the start and at the end.
        at_start: evaluate the untrained student too.
        split: split that is evaluated during a fit. Select checkpoints on ``val``, report ``test``.
        max_items: evaluate the first so many items of the split; None: all of them.
        with_kl: also score each no-context answer in both views: mean per-token KL(q_x || q_c), and log q_x of its own
            tokens, by which `python -m cli back_off` decides.
        num_samples: answers per item and view, where decoding samples (``model.evaluation.temperature`` above 0).
            Whatever it is, the no-context view is then drawn at least twice: that is harm's noise floor.
        controls: what else to put in the context's place.
        controls_every_evaluation: also in the midst of a fit; False: at its start and end, and in validate and test.

    Raises:
        ValueError: if a number is out of range, or the module or the DataModule can't be evaluated.
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        at_start: bool = True,
        split: Literal["val", "test"] = "val",
        max_items: int | None = None,
        with_kl: bool = True,
        num_samples: int = 1,
        controls: list[ControlSpec] | None = None,
        controls_every_evaluation: bool = False,
    ) -> None:
        super().__init__()
        self.schedule = EvaluationSchedule("removability", every_n_steps, at_start)
        if max_items is not None and max_items < 1:
            raise ValueError(f"removability.max_items is {max_items}; it must be positive, or null for all items.")
        self.split, self.max_items = split, max_items
        self.evaluation = PairedEvaluation(with_kl, num_samples)
        self.controls = controls or []
        self.controls_every_evaluation = controls_every_evaluation
        self._collected: dict[str, list[PairedRecord]] = {}
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pick up a resumed run's evaluations; evaluate the untrained student."""
        self._pick_up(trainer)
        if self.schedule.is_due_at_start(trainer):
            self._evaluate(trainer, pl_module, self.controls)

    def _pick_up(self, trainer: L.Trainer) -> None:
        def read(path: Path) -> list[tuple[int, str]]:
            return [(line.step, line.context) for line in read_summaries(path) if line.split == self.split]

        self.schedule.begin(trainer, _folder(trainer) / "summary.jsonl", drop_summaries_after, read)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where the schedule says so."""
        if self.schedule.is_due(trainer):
            is_last = trainer.global_step == trainer.max_steps
            controls = self.controls if is_last or self.controls_every_evaluation else []
            summaries = self._evaluate(trainer, pl_module, controls)
            # Not to the loggers again: this makes the values available to ModelCheckpoint(monitor=...).
            pl_module.log_dict(_named(summaries), logger=False, batch_size=1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the final student, unless the schedule or an earlier sitting did, controls included."""
        if self.schedule.missing(trainer.global_step, _names(self.controls)):
            self._evaluate(trainer, pl_module, self.controls)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make up for what a kill left out after the last step: such a fit resumes to no step at all."""
        if self.schedule.ends_without_a_step() and is_back_on_its_device(trainer, pl_module, "RemovabilityCallback"):
            self._pick_up(trainer)
            self.on_train_end(trainer, pl_module)

    def _evaluate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, controls: Sequence[ControlSpec]
    ) -> dict[str, RemovabilitySummary]:
        step = trainer.global_step
        data = _data_module(trainer)
        started = time.monotonic()
        examples = data.examples(self.split)[: self.max_items][trainer.global_rank :: trainer.world_size]
        chunks = [examples[i : i + data.eval_batch_size] for i in range(0, len(examples), data.eval_batch_size)]
        show = trainer.is_global_zero and trainer.progress_bar_callback is not None
        records: dict[str, list[PairedRecord]] = {}
        batches = self.evaluation.run(comparing(pl_module, "RemovabilityCallback"), data.grade, chunks, controls)
        with evaluating(trainer, pl_module):
            for batch in track(batches, f"removability, step {step}", len(chunks), transient=True, disable=not show):
                _extend(records, batch)
        summaries = self._publish(trainer, _names(controls), records, self.split, f"step={step:06d}", step, started)
        self.schedule.done(step, _names(controls))
        return summaries

    def _publish(
        self,
        trainer: L.Trainer,
        contexts: Sequence[str],
        records: dict[str, list[PairedRecord]],
        split: str,
        name: str,
        step: int,
        started: float,
    ) -> dict[str, RemovabilitySummary]:
        """Gather every rank's records, write the files on rank zero, log the numbers; the original's are returned."""
        # A test must not look like one more point of the fit's curve.
        outer = "" if trainer.training else f"{split}/"
        by_context = {}
        for context in contexts:
            gathered = gather_records(trainer, records.get(context, []))
            summaries = by_context[context] = summarise_groups(gathered)
            if trainer.is_global_zero:
                suffix = "" if context == ORIGINAL else f".{context}"
                write_records(_folder(trainer) / f"{name}{suffix}.jsonl", gathered)
                elapsed = time.monotonic() - started  # of all contexts up to this one
                append_summary(_folder(trainer) / "summary.jsonl", step, split, summaries, elapsed, context)
            prefix = f"{outer}removability/" if context == ORIGINAL else f"{outer}controls/{context}/"
            for logger in trainer.loggers:
                logger.log_metrics(_named(summaries, prefix), step=step)
            if trainer.is_global_zero and (step in (0, trainer.max_steps) or not trainer.training):
                log_items(trainer.loggers, gathered, context, step)
        if trainer.is_global_zero and not trainer.training:
            for context, summaries in by_context.items():
                for group, summary in summaries.items():
                    print(f"{split} {group}, context {context}: {summary.to_dict()}")
        return by_context[ORIGINAL]

    # validate and test: Lightning's loops bring the batches, this callback has them answered, grades and counts.

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin `validate`."""
        self._collected, self._started = {}, time.monotonic()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate a batch of `validate`."""
        with trainer.precision_plugin.forward_context():
            for records in self.evaluation.run(
                comparing(pl_module, "RemovabilityCallback"), _data_module(trainer).grade, [batch], self.controls
            ):
                _extend(self._collected, records)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report `validate`."""
        if not trainer.sanity_checking:
            self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report `test`."""
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        step = comparing(pl_module, "RemovabilityCallback").completed_steps
        name = f"{split}-step={step:06d}"
        self._publish(trainer, _names(self.controls), self._collected, split, name, step, self._started)


def _names(controls: Sequence[ControlSpec]) -> list[str]:
    """What stands in the context's place, in the order of evaluation; the same on every rank."""
    return [ORIGINAL, *(control.kind for control in controls)]


def _extend(records: dict[str, list[PairedRecord]], more: dict[str, list[PairedRecord]]) -> None:
    for context, batch in more.items():
        records.setdefault(context, []).extend(batch)


def _named(summaries: dict[str, RemovabilitySummary], outer: str = "removability/") -> dict[str, float]:
    """Metric names and values; what is withheld is left out."""
    named: dict[str, float] = {}
    for group, summary in summaries.items():
        prefix = outer if group == ALL else f"{outer}{group}/"
        values = summary.to_dict()
        named |= {prefix + name: float(value) for name in LOGGED if (value := values[name]) is not None}
    return named


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "removability"


def _data_module(trainer: L.Trainer) -> ContextDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ContextDataModule):
        raise ValueError(f"RemovabilityCallback needs a ContextDataModule to grade answers; the trainer has {data!r}.")
    return data
