"""Runs that are killed, and what must be left of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import ROOT, Runs

STEPS = (
    "--trainer.max_steps", "46", "--checkpoint.every_n_train_steps", "2", "--checkpoint.save_top_k", "1",
    "--removability.every_n_steps", "7", "--removability.at_start", "true", "--removability.max_items", "3",
    "--data.init_args.batch_size", "4", "--model.sampling.max_completion_length", "4",
    "--trainer.callbacks+=RolloutTable", "--trainer.callbacks.init_args.every_n_steps", "1",
    "--model.teacher.kind", "ema", "--model.teacher.update_rate", "0.1",
    "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "0.01",
    "--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR", "--model.lr_scheduler.total_iters", "40",
    "--model.consistency_delay_steps", "3", "--model.consistency_warmup_steps", "20",
)  # fmt: skip
"""Whatever moves is in it: samples, AdamW, a schedule of the learning rate and of the coefficient, a moving average."""


def kill(runs: Runs, name: str, args: tuple[str, ...], **plan: object) -> tuple[list[dict], str]:
    """Make a run that is killed; returns where each sitting ended, and what they all wrote to their terminals."""
    file = runs.root / "plan.json"
    values = {"args": runs.args("fit", name, *args), "folder": str(runs.root / name), **plan}
    file.write_text(json.dumps(values))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/killed_runs.py"), str(file)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((runs.root / "killed.json").read_text()), done.stdout + done.stderr


def same_files(killed: Path, whole: Path) -> None:
    """No row, rollout or evaluation is missing, there twice, or another."""
    assert Runs.metrics(killed) == Runs.metrics(whole)
    assert (killed / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()
    summaries = [[line | {"elapsed_s": 0} for line in Runs.summaries(run)] for run in (killed, whole)]
    assert summaries[0] == summaries[1]
    names = [sorted(path.name for path in (run / "removability").iterdir()) for run in (killed, whole)]
    assert names[0] == names[1]
    for name in set(names[0]) - {"summary.jsonl"}:
        assert (killed / "removability" / name).read_bytes() == (whole / "removability" / name).read_bytes()
    lines = [(run / "metrics.csv").read_text().count("\n") for run in (killed, whole)]
    assert lines[0] == lines[1]
