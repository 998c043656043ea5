"""`PredictionWriter`: the answers of `python -m cli predict`, in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import BasePredictionWriter


class PredictionWriter(BasePredictionWriter):
    """Write RUN/predictions.jsonl (one file per rank): one line per item, with both views' answers.

    Example:
        ``python -m cli predict --config RUN/config.yaml --ckpt_path last --trainer.callbacks+=PredictionWriter``
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start an empty file."""
        self._path(trainer).parent.mkdir(parents=True, exist_ok=True)
        self._path(trainer).write_text("")

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch."""
        with self._path(trainer).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in prediction)

    def _path(self, trainer: L.Trainer) -> Path:
        rank = "" if trainer.world_size == 1 else f".rank{trainer.global_rank}"
        return Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
