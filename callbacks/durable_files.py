"""Writing a run's files so that a kill or a full disk loses at most the line being written.

Two operations are enough for every file of a run: `append` for logs that grow by a line, `replace` for a file that is
rewritten as a whole. `read_whole_lines` reads what they leave behind. One process writes a file (rank zero); nothing
here locks. Standard library only.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def append(path: Path, line: bytes, *, sync: bool) -> None:
    """Append `line` to `path`, after cutting off a half-written last line that an earlier kill left there.

    When writing fails, the file is cut back to its length before the call.

    Args:
        path: the file; it is created when missing, its folder must exist.
        line: complete text lines, the last one ending in a newline.
        sync: wait until the disk has the line. Without, it survives a killed process, but not a power cut.

    Raises:
        OSError: if the line cannot be written. For a full disk or quota the message says what to do.
    """
    assert line.endswith(b"\n"), line
    with disk_full_explained(path):
        cut_half_line(path)
        # Unbuffered: a buffer would be flushed again on close, behind the cut below.
        with open(path, "ab", buffering=0) as file:
            size_before = file.seek(0, os.SEEK_END)
            try:
                remaining = memoryview(line)
                while remaining:  # a nearly full disk takes part of the line first and fails on the rest
                    remaining = remaining[file.write(remaining) :]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # the reader also copes with a half-written last line
                    file.truncate(size_before)
                raise


def replace(path: Path, content: bytes) -> None:
    """Make `content` the whole content of `path`; at every moment the file holds all of the old or all of the new.

    Args:
        path: the file; it is created when missing, its folder must exist.
        content: the new bytes.

    Raises:
        OSError: if `content` cannot be written; the old file is then untouched. For a full disk or quota the message
            says what to do.
    """
    # A fixed name, so that a kill leaves one stray file at most: the next call overwrites it.
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_full_explained(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def read_whole_lines(path: Path) -> list[bytes]:
    """Return the lines of `path`, each with its newline, without a half-written last line; warn if there was one."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        _warn_of_half_line(path)
        lines.pop()
    return lines


def cut_half_line(path: Path) -> None:
    """Cut `path` after its last newline; do nothing if it ends in one, is empty or does not exist."""
    if not path.is_file():
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        _warn_of_half_line(path)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _warn_of_half_line(path: Path) -> None:
    """Say that the last line of `path` is incomplete and not used."""
    warnings.warn(
        f"{path}: the last line is half-written (the process that wrote it was killed); it is dropped.", stacklevel=3
    )


@contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Re-raise a full disk or quota met while writing `path` with the remedy in its message and the same errno."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)}. Everything written to this file before is kept. Free space there (old "
            f"checkpoints are the largest files of a run) and resume from the run's last checkpoint",
            str(path),
        ) from error
