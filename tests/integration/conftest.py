"""A real run of a tiny random model through the command line, and what it left behind."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.main import main

ROOT = Path(__file__).parents[2]

CONFIG = """
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 3
  enable_progress_bar: false
  logger:
    - class_path: RunCSVLogger
      init_args: {{save_dir: "${{trainer.default_root_dir}}"}}
model:
  student: {{name: "{model}"}}
  views: {{context_slot: leading_turns}}
  sampling: {{max_completion_length: 6}}
  optimizer:
    class_path: torch.optim.SGD
    init_args: {{lr: 0.1}}
  seed: ${{seed_everything}}
data:
  class_path: GeographyDataModule
  init_args: {{num_train: 60, num_val: 24, num_test: 24, batch_size: 8, seed: "${{seed_everything}}"}}
removability: {{every_n_steps: 0, at_start: false, max_items: 4}}
checkpoint: {{every_n_train_steps: 1, save_top_k: -1}}
"""


class Runs:
    """Starts runs under one folder and reads their files."""

    def __init__(self, root: Path, config: Path) -> None:
        self.root, self.config = root, config

    def fit(self, name: str, *args: str) -> Path:
        """Run `fit`; returns the run's folder."""
        main(self.args("fit", name, *args))
        return self.root / name

    def fit_on_two_ranks(self, name: str, *args: str) -> Path:
        """Run `fit` in processes of its own, by DDP on two CPU ranks."""
        words = self.args("fit", name, *args, "--trainer.devices", "2", "--trainer.strategy", "ddp")
        done = subprocess.run(
            [sys.executable, "-m", "cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return self.root / name

    def args(self, command: str, name: str, *args: str) -> list[str]:
        return [command, "--config", str(self.config), "--trainer.default_root_dir", str(self.root / name), *args]

    @staticmethod
    def metrics(run: Path) -> list[dict[str, str]]:
        """Rows of metrics.csv that belong to training steps, without the columns that measure time."""
        with (run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        return [{name: value for name, value in row.items() if not name.startswith("throughput/")} for row in rows]

    @staticmethod
    def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
        """The student's weights after `step` optimizer steps."""
        checkpoint = torch.load(run / f"checkpoints/step={step:06d}.ckpt", weights_only=True)
        return {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("student.")}

    @staticmethod
    def summaries(run: Path) -> list[dict]:
        return [json.loads(line) for line in (run / "removability/summary.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def tiny_config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.format(model=tiny_model_dir))
    return path


@pytest.fixture
def runs(tmp_path: Path, tiny_config: Path) -> Runs:
    return Runs(tmp_path, tiny_config)


@pytest.fixture
def weights_equal() -> Callable[..., None]:
    def check(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], *, exactly: bool = False) -> None:
        assert ours.keys() == theirs.keys()
        for name in ours:
            tolerance = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-4, "atol": 2e-6}
            torch.testing.assert_close(ours[name], theirs[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")

    return check
