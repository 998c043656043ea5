"""`ViewSample`: show, once, what the model really reads in both views."""

from __future__ import annotations

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from datamodules.example import Example


class ViewSample(Callback):
    """Print both rendered prompts of the first training item at the start of a run and keep them in RUN/views.txt.

    A chat template that slips a system message into the "no-context" view is seen here at once.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print on rank zero."""
        if not trainer.is_global_zero:
            return
        example: Example = trainer.datamodule.examples("train")[0]  # type: ignore[attr-defined]
        pair = pl_module.renderer.render(example)  # type: ignore[operator, union-attr]
        text = (
            f"--- no-context view of {example.id}: {len(pair.no_context_ids)} tokens ---\n{pair.no_context_text}\n"
            f"--- with-context view: {len(pair.with_context_ids)} tokens, of which {pair.context_prefix_length} are "
            f"shared by all items with this context ---\n{pair.with_context_text}\n---\n"
        )
        print(text, flush=True)
        with open(f"{trainer.default_root_dir}/views.txt", "w", encoding="utf-8") as file:
            file.write(text)
