"""Free pages of the heap go back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from lightning_modules import heap
from lightning_modules.heap import give_back_free_heap

HOLES = """
import torch
from lightning_modules.heap import give_back_free_heap

def resident_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

blocks = [torch.ones(2**20 // 4) for _ in range(256)]  # 1 MiB each
del blocks[::2]
before = resident_mib()
give_back_free_heap(torch.device("cuda"))
kept = resident_mib()
give_back_free_heap(torch.device("cpu"))
print(before, kept, resident_mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives pages back when asked")
def test_holes_between_blocks_are_given_back():
    """128 holes of 1 MiB between blocks that are in use; a threshold above them keeps them in the heap at all."""
    done = subprocess.run(
        [sys.executable, "-c", HOLES],
        capture_output=True,
        text=True,
        check=True,
        env={"MALLOC_MMAP_THRESHOLD_": str(2**25), "PATH": ""},
    )
    before, kept, after = map(float, done.stdout.split())
    assert kept > before - 10  # nothing of a GPU's lies there
    assert after < before - 100


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    give_back_free_heap(torch.device("cpu"))
