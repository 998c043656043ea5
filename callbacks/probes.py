"""`ProbeEvaluation`: what else has training done to the model? Deafness to new contexts, and forgetting.

Deafness: a model that ignores every context has no harm either. `datamodules.probe_sets.following_probes` gives it NEW
contexts, facts and orders; ``following/rate`` is the share that its answers show, ``following/rate_without`` the share
that they would show anyway.

Forgetting: questions of common knowledge (``general_probes``) and any data sets the user names, without a context:
``forgetting/<set>/accuracy``, and how far the answers' distribution has moved from the untrained model's,
``forgetting/<set>/kl_to_base`` (nats per token).

Files under RUN/probes/: <set>-step=000020.jsonl with one line per item, summary.jsonl with one line per set and
evaluation, both as in RUN/removability/.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from rich.progress import track

from callbacks.evaluating import evaluating, is_back_on_its_device
from callbacks.evaluation_schedule import EvaluationSchedule
from callbacks.paired_evaluation import comparing, paired_record
from callbacks.paired_records import PairedRecord
from callbacks.rank_records import gather_records
from callbacks.removability_files import append_summary, drop_summaries_after, read_summaries, write_records
from callbacks.removability_metrics import ALL, RemovabilitySummary, summarise_groups
from datamodules.base import ContextDataModule, Split
from datamodules.controls import Slot
from datamodules.probe_sets import ProbeSet, following_probes, general_probes
from lightning_modules.comparison import ComparesViews, ComparisonSpec, KnowsItsBase

FOLLOWING = "following"
GENERAL = "general"


@dataclass(frozen=True)
class ProbeRunner:
    """Runs the sets on a module; needs no trainer."""

    following: bool
    forgetting: Mapping[str, ProbeSet]
    context_slot: Slot
    batch_size: int

    def sets(self) -> dict[str, ProbeSet]:
        """Every set by name, in the order of running."""
        return ({FOLLOWING: following_probes()} if self.following else {}) | dict(self.forgetting)

    def run(self, module: ComparesViews, name: str, rank: int = 0, world_size: int = 1) -> Iterator[list[PairedRecord]]:
        """Run this rank's share of one set, batch after batch."""
        probes = self.sets()[name]
        examples = probes.examples[rank::world_size]
        for start in range(0, len(examples), self.batch_size):
            batch = examples[start : start + self.batch_size]
            if name == FOLLOWING:
                comparisons = module.compare_views(batch, ComparisonSpec(with_kl=False, context_slot=self.context_slot))
                yield [paired_record(probes.grade, comparison) for comparison in comparisons]
                continue
            comparisons = module.compare_views(
                [replace(example, privileged_context=None) for example in batch], ComparisonSpec(with_kl=False)
            )
            records = [paired_record(probes.grade, comparison) for comparison in comparisons]
            to_base = module.base_divergences(comparisons) if isinstance(module, KnowsItsBase) else None
            if to_base is not None:
                records = [replace(record, kl_to_base=kl) for record, kl in zip(records, to_base, strict=True)]
            yield records


def probe_metrics(name: str, summaries: Mapping[str, RemovabilitySummary]) -> dict[str, float]:
    """The numbers of one set, by the names they are logged under."""
    if name == FOLLOWING:
        metrics = {}
        for group, summary in summaries.items():
            prefix = "following/" if group == ALL else f"following/{group}/"
            metrics[f"{prefix}rate"] = summary.accuracy_with_context
            metrics[f"{prefix}rate_without"] = summary.accuracy_no_context
        return metrics
    summary = summaries[ALL]
    metrics = {f"forgetting/{name}/accuracy": summary.accuracy_no_context}
    if summary.mean_kl_to_base is not None:
        metrics[f"forgetting/{name}/kl_to_base"] = summary.mean_kl_to_base
    return metrics


class ProbeEvaluation(Callback):
    """Evaluate following and forgetting at the start, every so many optimizer steps, and at the end of a fit.

    `validate` and `test` run every set once.

    Args:
        every_n_steps: optimizer steps between evaluations; 0: only at the start and at the end.
        at_start: evaluate the untrained student too.
        following: give new contexts.
        context_slot: where the new contexts go; choose the slot of the run's own context, if it is one of the two.
        general: ask the questions of common knowledge.
        data: further sets for forgetting, by the name they are logged under. Their contexts are not used.
        data_split: split of `data` that is evaluated.
        max_items: items of each of `data`; None: all of them.
        batch_size: items answered together.

    Raises:
        ValueError: if a number is out of range, or a set of `data` has a name that is taken.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        at_start: bool = True,
        following: bool = True,
        context_slot: Slot = "system",
        general: bool = True,
        data: dict[str, ContextDataModule] | None = None,
        data_split: Literal["val", "test"] = "val",
        max_items: int | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.schedule = EvaluationSchedule("ProbeEvaluation", every_n_steps, at_start)
        if batch_size < 1 or (max_items is not None and max_items < 1):
            raise ValueError(f"ProbeEvaluation: batch_size={batch_size}, max_items={max_items}; both must be positive.")
        self.following, self.context_slot, self.general = following, context_slot, general
        self.data, self.data_split, self.max_items = data or {}, data_split, max_items
        self.batch_size = batch_size
        taken = {FOLLOWING, GENERAL} & self.data.keys()
        if taken:
            raise ValueError(f"ProbeEvaluation: data has the names {sorted(taken)}, which are taken; choose others.")
        self._runner: ProbeRunner | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pick up a resumed run's evaluations; evaluate the untrained student."""
        self._pick_up(trainer)
        if self.schedule.is_due_at_start(trainer):
            self._evaluate(trainer, pl_module, 0)

    def _pick_up(self, trainer: L.Trainer) -> None:
        def read(path: Path) -> list[tuple[int, str]]:
            return [(line.step, line.split) for line in read_summaries(path)]

        self.schedule.begin(trainer, _folder(trainer) / "summary.jsonl", drop_summaries_after, read)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate where the schedule says so."""
        if self.schedule.is_due(trainer):
            self._evaluate(trainer, pl_module, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the final student by every set that neither the schedule nor an earlier sitting took."""
        self._evaluate(trainer, pl_module, trainer.global_step, skip_evaluated=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make up for what a kill left out after the last step: such a fit resumes to no step at all."""
        if self.schedule.ends_without_a_step() and is_back_on_its_device(trainer, pl_module, "ProbeEvaluation"):
            self._pick_up(trainer)
            self.on_train_end(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate once, after the paired evaluation."""
        self._evaluate(trainer, pl_module, comparing(pl_module, "ProbeEvaluation").completed_steps)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate once, after the paired evaluation of `validate`."""
        if trainer.state.fn == "validate":
            self._evaluate(trainer, pl_module, comparing(pl_module, "ProbeEvaluation").completed_steps)

    def _evaluate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, step: int, skip_evaluated: bool = False
    ) -> None:
        if self._runner is None:
            forgetting: dict[str, ProbeSet] = {GENERAL: general_probes()} if self.general else {}
            forgetting |= {name: _split(data, self.data_split, self.max_items) for name, data in self.data.items()}
            self._runner = ProbeRunner(self.following, forgetting, self.context_slot, self.batch_size)
        show = trainer.is_global_zero and trainer.progress_bar_callback is not None
        names = list(self._runner.sets())
        for name in self.schedule.missing(step, names) if skip_evaluated else names:
            started = time.monotonic()
            batches = self._runner.run(
                comparing(pl_module, "ProbeEvaluation"), name, trainer.global_rank, trainer.world_size
            )
            records: list[PairedRecord] = []
            with evaluating(trainer, pl_module, with_base=True):
                for batch in track(batches, f"{name}, step {step}", transient=True, disable=not show):
                    records += batch
            records = gather_records(trainer, records)
            summaries = summarise_groups(records)
            if trainer.is_global_zero:
                write_records(_folder(trainer) / f"{name}-step={step:06d}.jsonl", records)
                elapsed = time.monotonic() - started
                append_summary(_folder(trainer) / "summary.jsonl", step, name, summaries, elapsed)
            for logger in trainer.loggers:
                logger.log_metrics(probe_metrics(name, summaries), step=step)
            self.schedule.done(step, [name])


def _split(data: ContextDataModule, split: Split, max_items: int | None) -> ProbeSet:
    return ProbeSet(data.examples(split)[:max_items], data.grade)


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "probes"
