"""`HFExport`: the trained student as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.adapters import has_adapters, merged_copy
from lightning_modules.strategies import whole_weights


class HFExport(Callback):
    """Write RUN/<folder> at the end of a fit: safetensors, config and tokenizer, ready for from_pretrained.

    The folder appears as a whole or not at all; one from an earlier fit is replaced. Of a student with LoRA it holds
    the adapter as peft writes it, or, if `merged`, a plain model.

    Args:
        folder: name under the run's folder.
        merged: write the weights with the adapters added to them, in float32; a copy of the student in main memory is
            made for it. Of no effect without adapters.
    """

    def __init__(self, folder: str = "export", merged: bool = False) -> None:
        super().__init__()
        self.folder, self.merged = folder, merged
        self._has_begun = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember that the fit has steps to make."""
        self._has_begun = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder on rank zero."""
        student, tokenizer = cast(PreTrainedModel, pl_module.student), pl_module.tokenizer
        with whole_weights(trainer.strategy, student):
            if trainer.is_global_zero:
                written = merged_copy(student) if self.merged and has_adapters(student) else student
                export(written, cast(PreTrainedTokenizerBase, tokenizer), Path(trainer.default_root_dir) / self.folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make up for what a kill left out after the last step: such a fit resumes to no step, nor to on_train_end."""
        if not self._has_begun and trainer.global_step > 0:
            self.on_train_end(trainer, pl_module)
        self._has_begun = False


def export(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Write a model, of one with adapters these alone, and its tokenizer to `target`, as a whole or not at all."""
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    student.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
