"""`RolloutTable`: what a run trains on, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from callbacks.durable_files import read_whole_lines, replace

COLUMNS = ["step", "id", "view", "prompt", "completion", "length", "finished"]
"""`view` is the one that the completion was sampled from, `prompt` that view's."""


class RolloutTable(Callback):
    """Keep some rollouts of some steps in RUN/rollouts.jsonl and, with a WandbLogger, as the table ``rollouts``.

    Args:
        every_n_steps: optimizer steps between tables.
        num_rollouts: rollouts of a step that are kept.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, every_n_steps: int = 10, num_rollouts: int = 4) -> None:
        super().__init__()
        if every_n_steps < 1 or num_rollouts < 1:
            raise ValueError(
                f"RolloutTable: every_n_steps={every_n_steps}, num_rollouts={num_rollouts}; both must be positive."
            )
        self.every_n_steps, self.num_rollouts = every_n_steps, num_rollouts

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rollouts of steps that a resumed run repeats."""
        path = Path(trainer.default_root_dir) / "rollouts.jsonl"
        if trainer.is_global_zero and path.exists():
            lines = read_whole_lines(path)
            replace(path, b"".join(line for line in lines if json.loads(line)["step"] <= trainer.global_step))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step's first rollouts."""
        step = trainer.global_step
        if not trainer.is_global_zero or step % self.every_n_steps:
            return
        rows = [
            [
                step,
                turn.prompts.example_id,
                turn.view,
                turn.prompts.text(turn.view),
                turn.completion.text,
                len(turn.completion.token_ids),
                turn.completion.finished,
            ]
            for turn in outputs["turns"][: self.num_rollouts]
        ]
        with open(Path(trainer.default_root_dir) / "rollouts.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("rollouts", columns=COLUMNS, data=rows, step=step)
