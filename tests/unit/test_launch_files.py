"""The launch files are valid bash, quote what they are given, and say what they need. A run: tests/engines."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "examples/launch").glob("*.sh"))


def test_there_are_launch_files():
    assert {path.name for path in FILES} == {"slurm.sh", "torchrun.sh"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_they_are_valid_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert re.search(r"^set -.*uo pipefail$", text, re.MULTILINE)
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "--ckpt_path auto" in code
    unquoted = re.findall(r'(?<!["\w{(=:-])\$(?:\{?\w+\}?|@|\*)(?!["\w}:])', re.sub(r'"[^"]*"', '""', code))
    assert [word for word in unquoted if word not in ("$1", "$2", "$?")] == []


def test_slurm_tells_srun_and_comes_back_for_the_right_code(tmp_path):
    """With srun and scontrol that only write down what they were told."""
    calls = tmp_path / "calls"
    for name, code in (("srun", 75), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    command = [str(FILES[0]), "a b.yaml", "zero2.yaml", "--trainer.max_steps", "3"]
    done = subprocess.run(command, env=environment, check=False)
    assert done.returncode == 75
    srun, requeue = calls.read_text().splitlines()
    assert "-m cli fit --config a b.yaml --config zero2.yaml --trainer.accelerator gpu --trainer.num_nodes 2" in srun
    assert srun.endswith("--trainer.devices 8 --ckpt_path auto --trainer.max_steps 3")
    assert requeue == "scontrol requeue 7"
