"""`RemovabilityCallback`: is the context removable yet? Both views' answers, paired per item, on a schedule.

Files under RUN/removability/: step=000020.jsonl with one line per item, summary.jsonl with one line per evaluation.
The same numbers go to every logger under ``removability/...``, and of each group of items under
``removability/<group>/...``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.progress import track

from callbacks.removability_files import append_summary, drop_summaries_after, read_summaries, write_records
from callbacks.removability_metrics import ALL, PairedRecord, RemovabilitySummary, summarise_groups
from datamodules.base import ContextDataModule
from datamodules.example import Example
from lightning_modules.comparison import ComparesViews, ViewComparison

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
        with_kl: also score each no-context answer in both views: mean per-token KL(q_x || q_c).

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
    ) -> None:
        super().__init__()
        if every_n_steps < 0:
            raise ValueError(
                f"removability.every_n_steps is {every_n_steps}; it must be 0 (start and end only) or more."
            )
        if max_items is not None and max_items < 1:
            raise ValueError(f"removability.max_items is {max_items}; it must be positive, or null for all items.")
        self.every_n_steps, self.at_start, self.split = every_n_steps, at_start, split
        self.max_items, self.with_kl = max_items, with_kl
        self._evaluated: set[int] = set()
        self._collected: list[PairedRecord] = []
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pick up a resumed run's evaluations; evaluate the untrained student."""
        step = trainer.global_step
        self._evaluated = set()
        if step > 0 and (path := _folder(trainer) / "summary.jsonl").exists():
            if trainer.is_global_zero:
                drop_summaries_after(path, step)
            trainer.strategy.barrier()
            self._evaluated = {line.step for line in read_summaries(path) if line.split == self.split}
        if self.at_start and step == 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where the schedule says so."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            summaries = self._evaluate(trainer, pl_module)
            # Not to the loggers again: this makes the values available to ModelCheckpoint(monitor=...).
            pl_module.log_dict(_named(summaries), logger=False, batch_size=1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the final student, unless the schedule or an earlier sitting did."""
        if trainer.global_step not in self._evaluated:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, RemovabilitySummary]:
        step = trainer.global_step
        data = _data_module(trainer)
        started = time.monotonic()
        examples = data.examples(self.split)[: self.max_items][trainer.global_rank :: trainer.world_size]
        chunks = [examples[i : i + data.eval_batch_size] for i in range(0, len(examples), data.eval_batch_size)]
        show = trainer.is_global_zero and trainer.progress_bar_callback is not None
        records: list[PairedRecord] = []
        with trainer.precision_plugin.forward_context():  # the precision of training, as in Lightning's own loops
            for chunk in track(chunks, f"removability, step {step}", transient=True, disable=not show):
                records += self._records(data, _module(pl_module).compare_views(chunk, with_kl=self.with_kl))
        summaries = self._publish(trainer, records, self.split, step, f"step={step:06d}", started)
        self._evaluated.add(step)
        return summaries

    def _records(self, data: ContextDataModule, comparisons: Sequence[ViewComparison]) -> list[PairedRecord]:
        return [_record(data, comparison) for comparison in comparisons]

    def _publish(
        self, trainer: L.Trainer, records: list[PairedRecord], split: str, step: int, name: str, started: float
    ) -> dict[str, RemovabilitySummary]:
        """Gather every rank's records, write the files on rank zero, and log the numbers."""
        records = _gather(trainer, records)
        summaries = summarise_groups(records)
        if trainer.is_global_zero:
            write_records(_folder(trainer) / f"{name}.jsonl", records)
            append_summary(_folder(trainer) / "summary.jsonl", step, split, summaries, time.monotonic() - started)
        prefix = "" if trainer.training else f"{split}/"  # a test must not look like one more point of the fit's curve
        for logger in trainer.loggers:
            logger.log_metrics(_named(summaries, prefix), step=step)
        return summaries

    # validate and test: Lightning's loops decode, this callback grades and counts.

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin `validate`."""
        self._collected, self._started = [], time.monotonic()

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
        """Grade a batch of `validate`."""
        self._collected += self._records(_data_module(trainer), outputs["comparisons"])

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report `validate`."""
        if not trainer.sanity_checking:
            self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report `test`."""
        self._finish(trainer, pl_module, "test")

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        step = _module(pl_module).completed_steps
        name = f"{split}-step={step:06d}"
        summaries = self._publish(trainer, self._collected, split, step, name, self._started)
        if trainer.is_global_zero:
            for group, summary in summaries.items():
                print(f"{split} {group}: {summary.to_dict()}")


def _named(summaries: dict[str, RemovabilitySummary], outer: str = "") -> dict[str, float]:
    """Metric names and values; what is withheld is left out."""
    named: dict[str, float] = {}
    for group, summary in summaries.items():
        prefix = f"{outer}removability/" if group == ALL else f"{outer}removability/{group}/"
        values = summary.to_dict()
        named |= {prefix + name: float(value) for name in LOGGED if (value := values[name]) is not None}
    return named


def _record(data: ContextDataModule, comparison: ViewComparison) -> PairedRecord:
    example: Example = comparison.example
    # A game brings its own verdict: its transcript is no answer to grade.
    no_context = comparison.grade_no_context or data.grade(example, comparison.no_context.text)
    with_context = comparison.grade_with_context or data.grade(example, comparison.with_context.text)
    return PairedRecord(
        id=example.id,
        group=example.group,
        answer=example.answer,
        completion_no_context=comparison.no_context.text,
        completion_with_context=comparison.with_context.text,
        parsed_no_context=no_context.parsed,
        parsed_with_context=with_context.parsed,
        reason_no_context=no_context.reason,
        reason_with_context=with_context.reason,
        length_no_context=len(comparison.no_context.token_ids),
        length_with_context=len(comparison.with_context.token_ids),
        finished_no_context=comparison.no_context.finished,
        finished_with_context=comparison.with_context.finished,
        kl=comparison.kl,
        num_kl_tokens=0 if comparison.kl is None else len(comparison.no_context.token_ids),
        question=example.prompt[-1]["content"],
    )


def _gather(trainer: L.Trainer, records: list[PairedRecord]) -> list[PairedRecord]:
    """All ranks' records, sorted by id; ranks hold disjoint items, so nothing is padded or counted twice."""
    if trainer.world_size > 1:
        parts: list[list[PairedRecord]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(parts, records)
        records = [record for part in parts for record in part]
    return sorted(records, key=lambda record: record.id)


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "removability"


def _data_module(trainer: L.Trainer) -> ContextDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ContextDataModule):
        raise ValueError(f"RemovabilityCallback needs a ContextDataModule to grade answers; the trainer has {data!r}.")
    return data


def _module(pl_module: L.LightningModule) -> ComparesViews:
    if not isinstance(pl_module, ComparesViews):
        raise ValueError(
            f"RemovabilityCallback needs a module with compare_views (see ComparesViews); got {type(pl_module)}."
        )
    return pl_module
