"""`WholeFileIO`: a checkpoint's file has its name only when all of it is on the disk.

Lightning's own plugin builds the checkpoint in memory, three times its size at the peak, writes it to the system's
temporary folder and moves it, which between two file systems is a copy in place; it never waits for the disk. Here the
bytes go straight to a file beside the checkpoint's place, which is flushed to the disk and then renamed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

UNFINISHED = ".unfinished"
"""Ending of what is being written; a kill leaves it behind."""


class WholeFileIO(TorchCheckpointIO):
    """Writes files whole or not at all, to a file system; reads no pickled code unless told to."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what `torch.save` can hold.
            path: its file; folders are created.
            storage_options: not accepted.

        Raises:
            TypeError: if there are storage_options.
            OSError: if it can't be written. A file that was there is then untouched.
        """
        if storage_options is not None:
            raise TypeError("WholeFileIO takes no storage_options.")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + UNFINISHED)
        try:
            with open(unfinished, "wb") as file:
                _save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """As Lightning's, which would run the code in a file from a URL unless told not to; here None means not to."""
        return super().load_checkpoint(path, map_location, weights_only is not False)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder; where a file system has no such thing, do nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _RemembersError:
    """A file that keeps the error of a write: torch reports its own, without an errno, in its place."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _save(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    remembering = _RemembersError(file)
    try:
        torch.save(checkpoint, remembering)  # type: ignore[arg-type]  # write and flush are all that it calls
    except (RuntimeError, OSError) as error:
        if remembering.error is not None:
            raise remembering.error from error
        raise
