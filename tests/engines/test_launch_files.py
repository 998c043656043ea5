"""torchrun.sh, really run with two CPU processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.integration.conftest import CONFIG, ROOT, Runs


def test_torchrun_starts_two_ranks_and_continues(tmp_path, tiny_model_dir):
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(model=tiny_model_dir))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PROCESSES_PER_NODE": "2", "PYTHON": sys.executable, "MASTER_PORT": str(port)}
    run = tmp_path / "run"
    for steps in ("1", "2"):
        command = [
            str(ROOT / "examples/launch/torchrun.sh"), str(tmp_path / "tiny.yaml"),
            str(ROOT / "configs/strategy/ddp.yaml"),
            "--trainer.default_root_dir", str(run), "--trainer.max_steps", steps,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr + done.stdout
    assert [row["step"] for row in Runs.metrics(run)] == ["1", "2"]
