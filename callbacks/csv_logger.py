"""RUN/metrics.csv: one file per run, which a resumed run continues.

Lightning's CSVLogger deletes the file of the run that it resumes, keeps up to 100 rows in memory and rewrites the file
in place when a metric appears. Here every row is on its way to the disk when `log_metrics` returns.
"""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from numbers import Real
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from callbacks.durable_files import append, cut_half_line, read_whole_lines, replace

STEP = "step"
"""The first column."""


class RunCSVLogger(Logger):
    """Write metrics to ``save_dir/metrics.csv``, one row per call of `log_metrics`, and append on resume.

    The file is never deleted: rows of an earlier run in the same folder stay, so give every run its own folder. New
    metric names become new columns on the right. Rows logged apart for one step (training, evaluation) stay apart.
    Checkpoints land in ``save_dir/checkpoints``. Only rank zero writes.

    Example:
        >>> trainer = Trainer(logger=RunCSVLogger("runs/quickstart"))  # doctest: +SKIP
    """

    def __init__(self, save_dir: str) -> None:
        """Remember the folder; nothing is created before the first row.

        Args:
            save_dir: the run's folder. No sub-folders for names or versions are added.
        """
        super().__init__()
        self._save_dir = os.fspath(save_dir)
        self._path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: ModelCheckpoint then adds no sub-folder to `save_dir`."""
        return ""

    @property
    def version(self) -> str:
        """Empty, for the same reason."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return self._save_dir

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self._save_dir

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Write nothing: every value of the run is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: finite or not, but numbers (or tensors with one element) by name.
            step: optimizer steps; None leaves the cell empty.

        Raises:
            ValueError: if a value is not a number, or a name is "step" or contains a line break.
            OSError: if the row cannot be written; the file ends in its last whole row. For a full disk the message
                says what to do.
        """
        cells = {name: _number(name, value) for name, value in metrics.items()}
        if self._columns is None:
            self._columns = self._read_columns()
        new_columns = [name for name in ([] if self._columns else [STEP]) + list(cells) if name not in self._columns]
        if new_columns:
            self._add_columns(new_columns)
        cells[STEP] = "" if step is None else str(step)
        append(self._path, _csv_line([cells.get(column, "") for column in self._columns]), sync=False)

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Drop the rows that a run resumed at `step` will write again; the other rows stay byte for byte.

        Call it once, before the first row, with ``trainer.global_step`` of the loaded checkpoint. Rows of this very
        step are kept, so rows must be labelled with the optimizer steps COMPLETED. Lightning labels the rows of
        ``self.log`` one lower, unless a metric called "step" is logged with them, which then becomes the label.

        Args:
            step: optimizer steps that the checkpoint had completed.

        Raises:
            ValueError: if the file is not one of ours, or a row has a step that is not a whole number.
            OSError: if the file cannot be read or replaced; it is then unchanged.
        """
        self._columns = self._read_columns()
        if not self._columns:
            return
        header, *rows = read_whole_lines(self._path)
        kept = [row for number, row in enumerate(rows, start=2) if not self._is_after(step, row, number)]
        if len(kept) < len(rows):
            replace(self._path, header + b"".join(kept))

    def _read_columns(self) -> list[str]:
        """Return the header's names; empty where the file is missing or was killed within its header."""
        cut_half_line(self._path)
        lines = read_whole_lines(self._path) if self._path.exists() else []
        if not lines:
            return []
        columns = next(csv.reader([lines[0].decode()]))
        if columns[:1] != [STEP]:
            raise ValueError(
                f"{self._path}: the first column is {columns[:1]}, not {STEP!r}, so this is not a file of "
                f"RunCSVLogger. Move it away, or choose another save_dir."
            )
        return columns

    def _add_columns(self, names: list[str]) -> None:
        """Append columns to the header and empty cells to the rows, in one step that a kill cannot cut in two."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_whole_lines(self._path)[1:] if self._columns else []
        columns = [*(self._columns or []), *names]
        padding = b"," * len(names) + b"\n"
        replace(self._path, _csv_line(columns) + b"".join(row.rstrip(b"\r\n") + padding for row in rows))
        self._columns = columns

    def _is_after(self, step: int, row: bytes, number: int) -> bool:
        cell = row.split(b",", maxsplit=1)[0].strip()
        if not cell:  # logged without a step: no reason to drop it
            return False
        try:
            return int(cell) > step
        except ValueError as error:
            raise ValueError(
                f"{self._path}, line {number}: step {cell.decode(errors='replace')!r} is not a whole number. Repair or "
                f"delete the line, then resume."
            ) from error


def _number(name: str, value: object) -> str:
    if name == STEP or "\n" in name or "\r" in name:
        raise ValueError(f"Metric name {name!r} is refused: it must be one line and not {STEP!r}; pass step= instead.")
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real):
        raise ValueError(f"Metric {name!r} is {value!r}; metrics.csv takes numbers and tensors with one element.")
    return str(value)


def _csv_line(cells: list[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()
