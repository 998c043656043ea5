"""Reading data files row by row, with every bad row counted and named by file and line.

A bad row (half a JSON line, a missing field, a label outside the map, broken encoding) stops the load by default. A
user who knows the data may allow a share of them; they are then left out and reported. Nothing is ever repaired in
silence.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 5
"""Bad rows that a message names; all of them are counted."""

Place = int | str
"""Where a row is in its file: the line of a text file, the number of the row in a table, or its key; from 1."""


@dataclass
class RowAudit:
    """Collects the bad rows of a load."""

    max_bad_share: float = 0.0
    """Share of bad rows, between 0 and 1, that does not stop the load."""
    num_rows: int = 0
    """Rows seen, good and bad."""
    problems: list[tuple[Path | str, Place, str]] = field(default_factory=list)
    """File (or name on the hub), place and reason of every bad row."""
    files: list[Path | str] = field(default_factory=list)
    """Everything that was read, for messages."""

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            ValueError: if it is not between 0 and 1.
        """
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ValueError(f"max_bad_share={self.max_bad_share!r} must be between 0 and 1.")

    def reject(self, path: Path | str, place: Place, reason: str) -> None:
        """Note one bad row; `reason` is a short constant phrase, so that reasons can be counted."""
        self.problems.append((path, place, reason))

    def finish(self) -> None:
        """End the load.

        Raises:
            ValueError: if nothing was read, or more than the allowed share of rows is bad; names the first ones.
        """
        if self.num_rows == 0:
            read = ", ".join(str(path) for path in self.files) or "The data"
            raise ValueError(f"{read}: no rows. Is the path right, and is the file not empty?")
        num_bad = len(self.problems)
        if num_bad <= self.max_bad_share * self.num_rows:
            return
        if num_bad == self.num_rows:
            raise ValueError(f"{self.report()}\nNo row is good: is this the format that is documented?")
        enough = math.ceil(1e4 * num_bad / self.num_rows) / 1e4
        raise ValueError(
            f"{self.report()}\nCorrect or remove them, or allow this share with max_bad_share={enough:.4f}, which "
            "leaves them out."
        )

    def report(self) -> str:
        """Return the counts by reason and the first bad rows; one line if there are none."""
        if not self.problems:
            return f"{self.num_rows} rows, none bad."
        reasons = Counter(reason for _, _, reason in self.problems).most_common()
        counts = ", ".join(f"{reason}: {count}" for reason, count in reasons)
        shown = "\n".join(f"  {path}:{place}: {reason}" for path, place, reason in self.problems[:SHOWN])
        more = f"\n  and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
        return f"{len(self.problems)} of {self.num_rows} rows are bad ({counts}):\n{shown}{more}"


def read_lines(path: Path, audit: RowAudit) -> Iterator[tuple[int, str]]:
    """Yield line number (1-based) and text of every line, without its end. A line that is not UTF-8 is a bad row.

    Only line feeds end a line, a carriage return before one belongs to the end, and a byte order mark is no text.
    Blank lines are yielded: where one label stands for one line, their place counts.
    """
    audit.files.append(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            audit.num_rows += 1
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                audit.reject(path, number, "not UTF-8")


def read_json_lines(path: Path, audit: RowAudit) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line number (1-based) and object of every JSON line; blank lines are no rows."""
    for number, line in read_lines(path, audit):
        if not line.strip():
            audit.num_rows -= 1
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            audit.reject(path, number, "not a whole JSON line")
            continue
        if not isinstance(value, dict):
            audit.reject(path, number, "not a JSON object")
        elif "\\ud" in line.lower() and not is_unicode(json.dumps(value, ensure_ascii=False)):
            audit.reject(path, number, "half of a surrogate pair")
        else:
            yield number, value


def read_table(
    path: Path, audit: RowAudit, delimiter: str = ",", header: tuple[str, ...] | None = None
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the line where the row begins (1-based), and its fields, for every row of a CSV file.

    Fields may hold line ends and delimiters inside quotes. A row with more or fewer fields than the header, or with
    quotes that do not match, is bad, and so is each line of it: one stray quote swallows the rows behind it up to the
    next one. Blank lines are no rows.

    Args:
        path: The file, in UTF-8, with or without a byte order mark.
        audit: Counts the rows and takes the bad ones.
        delimiter: One character between fields.
        header: The columns' names for a file without a header line; None reads them from the first line.

    Raises:
        ValueError: if a file that should name its columns does not, or names one twice.
    """
    audit.files.append(path)
    # A byte that is no UTF-8 becomes a lone surrogate, which no valid file can hold: U+FFFD may be meant.
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    # newline="" splits at line feeds and carriage returns only, not at U+2028 as str.splitlines does.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = _columns(path, reader) if header is None else header
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error:
            _reject_lines(path, audit, begin, reader.line_num, "quotes that do not match")
            continue
        if row is None:
            return
        if not row:
            continue
        if len(row) != len(columns):
            _reject_lines(path, audit, begin, reader.line_num, f"another number of fields than {len(columns)}")
            continue
        audit.num_rows += 1
        if not is_unicode("".join(row)):
            audit.reject(path, begin, "not UTF-8")
        else:
            yield begin, dict(zip(columns, row, strict=True))


def _reject_lines(path: Path, audit: RowAudit, first: int, last: int, reason: str) -> None:
    """Every line from `first` to `last` as a bad row."""
    for line in range(first, max(first, last) + 1):
        audit.num_rows += 1
        audit.reject(path, line, reason)


def _columns(path: Path, reader: Iterator[list[str]]) -> tuple[str, ...]:
    """Read the names of the columns off the first line."""
    try:
        columns = tuple(next(reader, ()))
    except csv.Error as error:
        raise ValueError(f"{path}:1: the header has quotes that do not match: {error}.") from error
    if not columns:
        raise ValueError(f"{path} is empty; a header line with the column names is needed.")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}:1: the header {list(columns)} names a column twice.")
    return columns


def is_unicode(text: str) -> bool:
    """Return whether `text` holds no half of a surrogate pair: such text can be neither written nor tokenised."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_columns(path: Path, present: Mapping[str, object], needed: tuple[str, ...]) -> None:
    """Refuse a file without a column that every row needs.

    Raises:
        ValueError: naming the file, what is missing and what is there.
    """
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(f"{path} has no column {missing}; it has {sorted(present)}.")


def find_file(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """Return the first of `names` that exists in `folder`.

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
