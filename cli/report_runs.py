"""What a report knows of a run: its method and its evaluations, read from the run's folder."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from callbacks.paired_records import PairedRecord
from callbacks.removability_files import ORIGINAL, SummaryLine, read_records, read_summaries
from callbacks.removability_metrics import ALL, RemovabilitySummary, summarise
from cli.report_config import RunConfig, read_config

Series = tuple[str, int]
"""Split and number of items: evaluations that share both can be joined by a line."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a report."""

    label: str
    """The folder's name, with parent folders where another run has the same name."""
    folder: Path
    lines: tuple[SummaryLine, ...]
    """The evaluations with the context itself, by step; at least one."""
    config: RunConfig = field(default_factory=RunConfig)
    control_lines: tuple[SummaryLine, ...] = ()
    """The evaluations with a control in the context's place, by step."""
    repeated: tuple[SummaryLine, ...] = ()
    """Evaluations left out because a later one has the same step, split, number of items and context."""
    probe_lines: tuple[SummaryLine, ...] = ()
    """The evaluations by probes, by step; the name of the set stands for the split."""
    damage: tuple[str, ...] = ()
    """What was wrong with the run's files and could be passed over, in sentences."""

    @property
    def consistency(self) -> str | None:
        """`model.consistency` of config.yaml; None: not known."""
        return self.config.consistency

    @property
    def consistency_coef(self) -> float | None:
        """`model.consistency_coef` of config.yaml; None: not known."""
        return self.config.consistency_coef

    @property
    def method(self) -> str:
        """See `RunConfig.method`."""
        return self.config.method

    @property
    def last_lines(self) -> list[SummaryLine]:
        """The last evaluation of every series."""
        return list({series(line): line for line in self.lines}.values())


def series(line: SummaryLine) -> Series:
    """Return the split and the number of items of an evaluation."""
    return line.split, line.summaries[ALL].num_items


def lines_by_step(run: Run, split: str, num_items: int) -> dict[int, SummaryLine]:
    """Return a run's evaluations of one split and number of items, by step."""
    return {line.step: line for line in run.lines if series(line) == (split, num_items)}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs of a report, in the order given.

    Raises:
        FileNotFoundError: if a folder or its removability/summary.jsonl is missing.
        ValueError: if no folder is given or one twice, or a summary file is empty or broken.
    """
    if not folders:
        raise ValueError("No run given; name at least one run folder.")
    resolved = [folder.resolve() for folder in folders]
    folder, count = Counter(resolved).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder} is given {count} times; name each run once.")
    labels = [_shortest_label(path, resolved) for path in resolved]
    return [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def read_run(folder: Path, label: str) -> Run:
    """Read one run; config.yaml may be missing, evaluations may not.

    Raises:
        FileNotFoundError: if the folder or its removability/summary.jsonl is missing.
        ValueError: if summary.jsonl has no whole line with the context itself, or a broken one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run folder; give the folder that holds the run's config.yaml.")
    path = folder / "removability" / "summary.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: this run has not been evaluated yet, or is no run folder.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written = read_summaries(path)
        probes, damage = _read_probes(folder / "probes" / "summary.jsonl")
    latest = {(line.step, line.context, *series(line)): line for line in written}
    kept = sorted(latest.values(), key=lambda line: line.step)
    lines = tuple(line for line in kept if line.context == ORIGINAL)
    if not lines:
        raise ValueError(
            f"{path} holds no evaluation with the context itself; wait for the run's first one, or leave the run out."
        )
    return Run(
        label=label,
        folder=folder,
        lines=lines,
        config=read_config(folder / "config.yaml"),
        control_lines=tuple(line for line in kept if line.context != ORIGINAL),
        repeated=tuple(line for line in written if latest[(line.step, line.context, *series(line))] is not line),
        probe_lines=probes,
        damage=(*(str(warning.message) for warning in caught), *damage),
    )


def _read_probes(path: Path) -> tuple[tuple[SummaryLine, ...], list[str]]:
    """The latest evaluation of each set and step, by step, and what is wrong with the file: no reason to stop."""
    if not path.is_file():
        return (), []
    try:
        latest = {(line.step, line.split): line for line in read_summaries(path)}
    except ValueError as error:
        return (), [f"The probes are left out. {error}"]
    return tuple(sorted(latest.values(), key=lambda line: line.step)), []


def records_of(run: Run, line: SummaryLine) -> list[PairedRecord]:
    """Read the items behind an evaluation; see `find_records`."""
    return find_records(run, line)[1]


def find_records(run: Run, line: SummaryLine) -> tuple[Path, list[PairedRecord]]:
    """Find the file behind an evaluation and read its items.

    A fit names its files by the step, `validate` and `test` by the split as well; the file is the one whose items give
    the evaluation's own counts.

    Raises:
        ValueError: if a file is broken, or none holds these items; the message says which files were looked at.
    """
    suffix = "" if line.context == ORIGINAL else f".{line.context}"
    names = [f"{line.split}-step={line.step:06d}{suffix}.jsonl", f"step={line.step:06d}{suffix}.jsonl"]
    counts = _counts(line.summaries[ALL])
    for name in [*names, *(f"{name}.gz" for name in names)]:
        path = run.folder / "removability" / name
        if not path.is_file():
            continue
        records = read_records(path)
        if records and _counts(summarise(records)) == counts:
            return path, records
    raise ValueError(
        f"{run.label}: neither {' nor '.join(names)} holds the items of its {line.split} evaluation at step "
        f"{line.step}, so it is not compared item by item"
    )


def _counts(summary: RemovabilitySummary) -> tuple[int, int, int, int]:
    return summary.num_items, summary.num_correct_no_context, summary.num_harmed, summary.num_helped


def _shortest_label(path: Path, others: Sequence[Path]) -> str:
    """Return the last parts of `path`, as few as tell it apart from the others: the folder's name, mostly."""
    for num_parts in range(1, len(path.parts) + 1):
        tail = path.parts[-num_parts:]
        if sum(other.parts[-num_parts:] == tail for other in others) == 1:
            break
    return Path(*tail).as_posix()
