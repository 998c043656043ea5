"""`HFExport`: the trained student as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback


class HFExport(Callback):
    """Write RUN/<folder> at the end of a fit: safetensors, config and tokenizer, ready for from_pretrained.

    The folder appears as a whole or not at all; one from an earlier fit is replaced.

    Args:
        folder: name under the run's folder.
    """

    def __init__(self, folder: str = "export") -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder on rank zero."""
        if trainer.is_global_zero:
            export(pl_module, Path(trainer.default_root_dir) / self.folder)


def export(pl_module: L.LightningModule, target: Path) -> None:
    """Write student and tokenizer of a `ContextDistillation` module to `target`."""
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pl_module.student.save_pretrained(unfinished)  # type: ignore[operator, union-attr]
    pl_module.tokenizer.save_pretrained(unfinished)  # type: ignore[operator, union-attr]
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
