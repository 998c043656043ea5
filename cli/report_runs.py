"""What a report knows of a run: its method and its evaluations, read from the run's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from callbacks.removability_files import SummaryLine, read_summaries
from callbacks.removability_metrics import ALL

Series = tuple[str, int]
"""Split and number of items: evaluations that share both can be joined by a line."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a report."""

    label: str
    """The folder's name, with parent folders where another run has the same name."""
    folder: Path
    consistency: str | None
    """`model.consistency` of config.yaml; None: not known."""
    consistency_coef: float | None
    """`model.consistency_coef` of config.yaml; None: not known."""
    lines: tuple[SummaryLine, ...]
    """The evaluations by step; at least one."""
    repeated: tuple[SummaryLine, ...] = ()
    """Evaluations left out because a later one has the same step, split and number of items."""

    @property
    def method(self) -> str:
        """The consistency term and its coefficient, in words."""
        if self.consistency is None:
            return "unknown"
        if self.consistency == "none" or self.consistency_coef is None:
            return self.consistency
        return f"{self.consistency} x {self.consistency_coef:g}"

    @property
    def drawn_series(self) -> Series:
        """The split and item count with the most evaluations; the first one where several have as many."""
        return Counter(series(line) for line in self.lines).most_common(1)[0][0]

    @property
    def drawn_lines(self) -> list[SummaryLine]:
        """The evaluations of `drawn_series`, by step."""
        return [line for line in self.lines if series(line) == self.drawn_series]

    @property
    def last_lines(self) -> list[SummaryLine]:
        """The last evaluation of every series."""
        return list({series(line): line for line in self.lines}.values())


def series(line: SummaryLine) -> Series:
    """Return the split and the number of items of an evaluation."""
    return line.split, line.summaries[ALL].num_items


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
        ValueError: if summary.jsonl has no whole line, or a broken one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run folder; give the folder that holds the run's config.yaml.")
    path = folder / "removability" / "summary.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: this run has not been evaluated yet, or is no run folder.")
    written = read_summaries(path)
    if not written:
        raise ValueError(f"{path} holds no evaluation; wait for the run's first one, or leave the run out.")
    latest = {(line.step, *series(line)): line for line in written}
    kept = sorted(latest.values(), key=lambda line: line.step)
    repeated = tuple(line for line in written if latest[(line.step, *series(line))] is not line)
    consistency, coef = _read_method(folder / "config.yaml")
    return Run(label, folder, consistency, coef, tuple(kept), repeated)


def comparison_notes(runs: Sequence[Run]) -> list[str]:
    """Say, in sentences, what a reader must know before comparing the runs of one report."""
    notes = []
    drawn = {run.label: f"{run.drawn_series[0]} ({run.drawn_series[1]} items)" for run in runs}
    if len(set(drawn.values())) > 1:
        listed = _by_value(drawn, "{labels} on {value}")
        notes.append(f"The runs were NOT evaluated on the same items, so their curves do not compare: {listed}.")
    ends = {run.label: str(run.drawn_lines[-1].step) for run in runs}
    if len(set(ends.values())) > 1:
        notes.append(f"The last evaluations are at different steps: {_by_value(ends, '{labels} at {value}')}.")
    for run in runs:
        if len(run.last_lines) > 1:
            notes.append(f"{run.label} was evaluated on several item sets; the figure shows {drawn[run.label]}.")
        if run.repeated:
            steps = ", ".join(str(step) for step in sorted({line.step for line in run.repeated}))
            notes.append(f"{run.label} was evaluated more than once at step {steps}; the later evaluation counts.")
        if run.consistency is None:
            notes.append(f"{run.label}: {run.folder / 'config.yaml'} names no model.consistency: method unknown.")
    return notes


def _shortest_label(path: Path, others: Sequence[Path]) -> str:
    """Return the last parts of `path`, as few as tell it apart from the others: the folder's name, mostly."""
    for num_parts in range(1, len(path.parts) + 1):
        tail = path.parts[-num_parts:]
        if sum(other.parts[-num_parts:] == tail for other in others) == 1:
            break
    return Path(*tail).as_posix()


def _by_value(values: Mapping[str, str], sentence: str) -> str:
    """List labels by what they share: "a, b on val (200 items); c on val (100 items)"."""
    return "; ".join(
        sentence.format(labels=", ".join(label for label in values if values[label] == value), value=value)
        for value in dict.fromkeys(values.values())
    )


def _read_method(path: Path) -> tuple[str | None, float | None]:
    """Return `model.consistency` and its coefficient; None for what a missing or foreign config does not say."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = config["model"]
        model = model.get("init_args", model)  # the module was given by class_path
        consistency, coef = model.get("consistency"), model.get("consistency_coef")
    except (FileNotFoundError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None, None  # the evaluations do not depend on it; `comparison_notes` says so
    return (
        consistency if isinstance(consistency, str) else None,
        float(coef) if isinstance(coef, int | float) else None,
    )
