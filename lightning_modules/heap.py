"""Memory that a CPU's heap has free and keeps: given back to the system between two passes of different lengths.

glibc cuts blocks below 32 MiB out of its heap. What a pass over the prompts alone frees are holes that the longer
blocks of a pass with the context do not fit, so that both would count into the peak. Giving the holes' pages back costs
one page fault for each that is used again; having every such block from the kernel and back (MALLOC_MMAP_THRESHOLD_)
costs one at every use. docs/performance.md has the measurements.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; None where the C library is another one."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # no such library, function, or (on Windows) way to ask
        return None
    return trim


def give_back_free_heap(device: torch.device) -> None:
    """Return the heap's free pages to the system, where tensors of `device` lie in it: on a CPU, with glibc."""
    trim = _malloc_trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)
