"""The files of the paired evaluation: RUN/removability/step=000020.jsonl and RUN/removability/summary.jsonl.

The first holds one `PairedRecord` per line and is replaced as a whole. The second grows by one line per evaluation.
Neither torch nor lightning is imported, so results can be read anywhere.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from callbacks.durable_files import append, cut_half_line, read_whole_lines, replace
from callbacks.paired_records import PairedRecord
from callbacks.removability_metrics import ALL, RemovabilitySummary

T = TypeVar("T")

ORIGINAL = "original"
"""`SummaryLine.context` of an evaluation with the context itself."""


@dataclass(frozen=True, slots=True)
class SummaryLine:
    """One evaluation, as a line of summary.jsonl."""

    step: int
    """Optimizer steps completed before the evaluation; 0 is the untrained student."""
    split: str
    """The split that was evaluated."""
    summaries: Mapping[str, RemovabilitySummary]
    """By group; "all" holds every item."""
    elapsed_s: float
    """Seconds that the evaluation took."""
    context: str = ORIGINAL
    """What stood in the context's place: the context itself, or the name of a control."""

    def __post_init__(self) -> None:
        """Refuse a line that readers could not place.

        Raises:
            ValueError: if `step` is negative, or the summary over every item is missing.
        """
        if self.step < 0:
            raise ValueError(f"step={self.step}; it counts completed optimizer steps, so it is at least 0.")
        if ALL not in self.summaries:
            raise ValueError(f"summaries={sorted(self.summaries)} lacks {ALL!r}; pass what summarise_groups returns.")

    def to_json(self) -> str:
        """Return the line, without a newline."""
        summaries = {group: summary.to_dict() for group, summary in self.summaries.items()}
        values: dict[str, object] = {"step": self.step, "split": self.split, "elapsed_s": self.elapsed_s}
        values |= {"context": self.context, "summaries": summaries}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if `line` is not JSON or lacks a field.
        """
        values = json.loads(line)
        try:
            summaries = {name: RemovabilitySummary.from_dict(summary) for name, summary in values["summaries"].items()}
            context = str(values.get("context", ORIGINAL))  # files from before there were controls lack it
            return cls(int(values["step"]), str(values["split"]), summaries, float(values["elapsed_s"]), context)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a summary line ({error!r})") from error


def write_records(path: Path, records: Sequence[PairedRecord]) -> None:
    """Write one line per record; `path` holds all of them or is left as it was.

    Args:
        path: the file; its folder is created.
        records: the evaluation's records.

    Raises:
        OSError: if they cannot be written. For a full disk the message says what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, "".join(record.to_json() + "\n" for record in records).encode())


def read_records(path: Path) -> list[PairedRecord]:
    """Read what `write_records` wrote; of a file whose name ends in .gz, compressed since.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is broken; the message names the file and the line.
    """
    return [_parse(path, number, line, PairedRecord.from_json) for number, line in _numbered_lines(path)]


def append_summary(
    path: Path,
    step: int,
    split: str,
    summaries: Mapping[str, RemovabilitySummary],
    elapsed_s: float,
    context: str = ORIGINAL,
) -> None:
    """Append one evaluation to summary.jsonl and wait until the disk has it.

    Args:
        path: the file; it and its folder are created.
        step: optimizer steps completed.
        split: the split that was evaluated.
        summaries: what `summarise_groups` returned.
        elapsed_s: seconds that the evaluation took.
        context: name of the control that stood in the context's place.

    Raises:
        OSError: if the line cannot be written; earlier lines are kept. For a full disk the message says what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    append(path, (SummaryLine(step, split, summaries, elapsed_s, context).to_json() + "\n").encode(), sync=True)


def read_summaries(path: Path) -> list[SummaryLine]:
    """Read summary.jsonl in the order of writing. A half-written last line is skipped with a warning.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if any other line is broken; the message names the file and the line.
    """
    return [_parse(path, number, line, SummaryLine.from_json) for number, line in _numbered_lines(path)]


def drop_summaries_after(path: Path, step: int) -> int:
    """Drop the evaluations that a run resumed at `step` will repeat; the other lines stay byte for byte.

    Args:
        path: summary.jsonl; may be missing.
        step: optimizer steps that the checkpoint had completed. Lines of this very step are kept.

    Returns:
        The number of evaluations dropped.

    Raises:
        OSError: if the file cannot be read or replaced; it is then unchanged.
        ValueError: if a line is broken, apart from a half-written last one.
    """
    if not path.exists():
        return 0
    cut_half_line(path)
    lines = _numbered_lines(path)
    kept = [line for number, line in lines if _parse(path, number, line, SummaryLine.from_json).step <= step]
    if len(kept) < len(lines):
        replace(path, b"".join(kept))
    return len(lines) - len(kept)


def _numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    if path.suffix != ".gz":
        return list(enumerate(read_whole_lines(path), start=1))
    try:
        return list(enumerate(gzip.decompress(path.read_bytes()).splitlines(keepends=True), start=1))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is broken; restore the file. {error}") from error


def _parse(path: Path, number: int, line: bytes, from_json: Callable[[str], T]) -> T:
    try:
        return from_json(line.decode())  # UnicodeDecodeError is a ValueError
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is broken; restore the file or delete that line. {error}") from error
