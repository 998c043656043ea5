"""`held_lock`: one process at a time, and what it has started, for as long as any of them lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix: no lock
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held_lock(path: Path) -> Iterator[tuple[int, ...]]:
    """Hold an exclusive lock on a file, which is made and stays.

    Yields:
        What `subprocess.Popen` takes as `pass_fds`: a process that gets them holds the lock as long as it lives, also
        where this one is killed.

    Raises:
        BlockingIOError: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if fcntl is None:
            yield ()
            return
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield (file.fileno(),)
