"""Reading data files row by row, with every bad row counted and named by file and line.

A bad row (half a JSON line, a missing field, a label outside the map, broken encoding) stops the load by default. A
user who knows the data may allow a share of them; they are then left out and reported. Nothing is ever repaired in
silence.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 5
"""Bad rows that a message names; all of them are counted."""


@dataclass
class RowAudit:
    """Collects the bad rows of a load."""

    max_bad_share: float = 0.0
    """Share of bad rows, between 0 and 1, that does not stop the load."""
    num_rows: int = 0
    """Rows seen, good and bad."""
    problems: list[tuple[Path, int, str]] = field(default_factory=list)
    """File, line (1-based) and reason of every bad row."""

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            ValueError: if it is not between 0 and 1.
        """
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ValueError(f"max_bad_share is {self.max_bad_share}; it must be between 0 and 1.")

    def reject(self, path: Path, line: int, reason: str) -> None:
        """Note one bad row; `reason` is a short constant phrase, so that reasons can be counted."""
        self.problems.append((path, line, reason))

    def finish(self) -> None:
        """End the load.

        Raises:
            ValueError: if nothing was read, or more than the allowed share of rows is bad; names the first ones.
        """
        if self.num_rows == 0:
            raise ValueError("The data hold no rows. Is the path right, and are the files not empty?")
        if len(self.problems) > self.max_bad_share * self.num_rows:
            raise ValueError(
                f"{self.report()}\nCorrect or remove them, or allow this share with max_bad_share="
                f"{len(self.problems) / self.num_rows:.4f} (rounded up), which leaves them out."
            )

    def report(self) -> str:
        """Counts by reason and the first bad rows; one line if there are none."""
        if not self.problems:
            return f"{self.num_rows} rows, none bad."
        reasons = Counter(reason for _, _, reason in self.problems).most_common()
        counts = ", ".join(f"{reason}: {count}" for reason, count in reasons)
        shown = "\n".join(f"  {path}:{line}: {reason}" for path, line, reason in self.problems[:SHOWN])
        more = f"\n  and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
        return f"{len(self.problems)} of {self.num_rows} rows are bad ({counts}):\n{shown}{more}"


def read_lines(path: Path, audit: RowAudit) -> Iterator[tuple[int, str]]:
    """Yield line number (1-based) and text of every line, without its end. A line that is not UTF-8 is a bad row.

    Blank lines are yielded: where one label stands for one line, their place counts.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            audit.num_rows += 1
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                audit.reject(path, number, "not UTF-8")


def read_json_lines(path: Path, audit: RowAudit) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line number and object of every JSON line; blank lines are no rows."""
    for number, line in read_lines(path, audit):
        if not line.strip():
            audit.num_rows -= 1
            continue
        try:
            value = json.loads(line)
        except ValueError:
            audit.reject(path, number, "not a whole JSON line")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            audit.reject(path, number, "not a JSON object")


def read_table(path: Path, audit: RowAudit, delimiter: str = ",") -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield line number (of the row's end) and fields of every row of a CSV file with a header.

    A row with more or fewer fields than the header is a bad row. Fields may hold line ends inside quotes.

    Raises:
        ValueError: if the file has no header.
    """
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    header = next(reader, None)
    if not header:
        raise ValueError(f"{path} is empty; a header line with the column names is needed.")
    for row in reader:
        if not row:
            continue
        audit.num_rows += 1
        if len(row) != len(header):
            audit.reject(path, reader.line_num, "another number of fields than the header")
        elif any("\N{REPLACEMENT CHARACTER}" in cell for cell in row):
            audit.reject(path, reader.line_num, "not UTF-8")
        else:
            yield reader.line_num, dict(zip(header, row, strict=True))


def require_columns(path: Path, present: Mapping[str, object], needed: tuple[str, ...]) -> None:
    """Refuse a file without a column that every row needs.

    Raises:
        ValueError: naming the file, what is missing and what is there.
    """
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(f"{path} has no column {missing}; it has {sorted(present)}.")


def find_file(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """The first of `names` that exists in `folder`.

    Raises:
        FileNotFoundError: if the folder does not exist or holds none of them; names what is there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: {folder} is not a folder.")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())[:10]
    raise FileNotFoundError(f"{what}: none of {', '.join(names)} is in {folder}; it holds {there or 'nothing'}.")
