"""`Throughput`: completion tokens per second of a training step, sampling included."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Log ``throughput/tokens_per_s`` and ``throughput/step_s`` of every step; evaluations are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it. This callback must come before those that evaluate."""
        elapsed = time.monotonic() - self._started
        pl_module.log_dict(
            {"throughput/tokens_per_s": outputs["num_tokens"] / elapsed, "throughput/step_s": elapsed}, batch_size=1
        )
