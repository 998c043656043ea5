"""Rows of a data set wherever it is stored: JSON lines, parquet, a folder of Hugging Face `datasets`, or the hub.

`datasets` and `pyarrow` are imported where they are needed: JSON lines need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datamodules.rows import Place, RowAudit, find_file, read_json_lines

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")

HUB = "hub:"
"""Prefix of a name on the hub: ``hub:OWNER/NAME``, or ``hub:OWNER/NAME#SPLIT``."""

_BATCH_ROWS = 1024
"""Rows of a parquet file in memory at once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it is."""

    file: Path | str
    """File or folder, or the name on the hub."""
    place: Place
    """Line of a text file; number of the row elsewhere; from 1."""
    fields: Mapping[str, Any]


class BadRow(ValueError):
    """A row that is left out; the message is a short constant phrase, as `RowAudit.reject` takes it."""


def parse_rows(rows: Iterable[Row], parse: Callable[[Row], T], audit: RowAudit) -> Iterator[T]:
    """Yield what `parse` makes of every row; those for which it raises `BadRow` go to `audit`."""
    for row in rows:
        try:
            parsed = parse(row)
        except BadRow as reason:
            audit.reject(row.file, row.place, str(reason))
        else:
            yield parsed


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Return a field without the white space around it.

    Raises:
        BadRow: if it is missing, no text, or blank.
    """
    value = fields.get(name)
    if value is None:
        raise BadRow(f"no {name}")
    if not isinstance(value, str):
        raise BadRow(f"{name} is no text")
    if not value.strip():
        raise BadRow(f"empty {name}")
    return value.strip()


def read_rows(path: str, audit: RowAudit, *, split: str, file_names: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a data set.

    Args:
        path: One of: a file, ``.parquet`` or else JSON lines; a folder that holds one of `file_names`, was written by
            ``datasets.save_to_disk``, or holds parquet files as the hub has them; ``hub:OWNER/NAME``, with ``#SPLIT``
            for another split than `split`.
        audit: Counts the rows and takes the bad ones.
        split: Which split to read of several.
        file_names: Names of the JSON lines file in a folder, the first that is there counts.

    Raises:
        FileNotFoundError: if there is nothing at `path` that could be read; says what is there.
        ValueError: if a folder has several splits or parquet files, and none is `split`'s.
        ImportError: if `datasets` is needed and not installed.
    """
    if path.startswith(HUB):
        name, _, named_split = path.removeprefix(HUB).partition("#")
        yield from _numbered(path, _datasets(path).load_dataset(name, split=named_split or split), audit)
        return
    location = Path(path)
    if location.is_dir():
        if (location / "dataset_dict.json").is_file():
            location = _one_of(location, [folder for folder in location.iterdir() if folder.is_dir()], split)
        if (location / "state.json").is_file():
            yield from _numbered(location, _datasets(path).load_from_disk(str(location)), audit)
            return
        parquet = sorted(location.glob("*.parquet"))
        if parquet and not any((location / name).is_file() for name in file_names):
            for file in [file for file in parquet if file.name.startswith(f"{split}-")] or [
                _one_of(location, parquet, split)
            ]:
                yield from _numbered(file, _parquet_rows(file), audit)
            return
        location = find_file(location, file_names, f"path={path!r}")
    if not location.is_file():
        raise FileNotFoundError(f"path={path!r}: there is no such file or folder. Names on the hub begin with {HUB!r}.")
    if location.suffix == ".parquet":
        yield from _numbered(location, _parquet_rows(location), audit)
    else:
        for line, fields in read_json_lines(location, audit):
            yield Row(location, line, fields)


def _numbered(source: Path | str, rows: datasets.Dataset | Iterator[dict[str, Any]], audit: RowAudit) -> Iterator[Row]:
    audit.files.append(source)
    for number, fields in enumerate(rows, start=1):
        audit.num_rows += 1
        yield Row(source, number, fields)


def _one_of(folder: Path, parts: list[Path], split: str) -> Path:
    """Return the part named `split`, or the only one."""
    named = [part for part in parts if part.stem == split] or parts
    if len(named) != 1:
        names = sorted(part.name for part in parts)
        raise ValueError(f"{folder} holds {names} and no {split!r}; give the path of one of them.")
    return named[0]


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(f"{path}: reading parquet needs pyarrow: pip install datasets") from error
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole parquet file: {error}.") from error


def _datasets(path: str) -> Any:  # the module `datasets`
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"path={path!r} needs the package `datasets`: pip install datasets") from error
    return datasets
