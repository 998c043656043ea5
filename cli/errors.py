"""What a user sees of an error: the message alone where this project raised it for them, else the traceback.

Refusals (`ValueError`, `OSError`, `ImportError` with field, value and remedy) come up from below Lightning and
jsonargparse, whose frames would bury them. The environment variable CONTEXT_RETURNS_TRACEBACK shows the frames.
"""

from __future__ import annotations

import linecache
import os
import traceback
from pathlib import Path
from types import TracebackType

ROOMS = tuple(str(Path(__file__).parents[1] / room) + os.sep for room in ("cli", "lightning_modules", "datamodules"))
ROOMS += (str(Path(__file__).parents[1] / "callbacks") + os.sep,)
TRACEBACK = "CONTEXT_RETURNS_TRACEBACK"


def refusal(error: BaseException) -> str | None:
    """The message and the notes of an error that this project raised for its user; None for any other error.

    Args:
        error: as it was caught, its traceback with it.
    """
    if os.environ.get(TRACEBACK):
        return None
    found: BaseException | None = error
    while found is not None:
        place = _innermost(found.__traceback__)
        if isinstance(found, ValueError | OSError | ImportError) and _is_our_raise(*place):
            return "\n".join([f"error: {found}", *getattr(error, "__notes__", ())])
        # jsonargparse raises an error of its own over the one of the class that it was making.
        wraps = f"{os.sep}jsonargparse{os.sep}" in place[0]
        found = (found.__cause__ or found.__context__) if wraps else None
    return None


def _innermost(frames: TracebackType | None) -> tuple[str, int]:
    """File and line where an error was raised."""
    walked = list(traceback.walk_tb(frames))
    return (walked[-1][0].f_code.co_filename, walked[-1][1]) if walked else ("", 0)


def _is_our_raise(file: str, line: int) -> bool:
    """Whether it was a ``raise`` of ours, and not a call that failed in our code."""
    return os.path.abspath(file).startswith(ROOMS) and linecache.getline(file, line).lstrip().startswith("raise ")
