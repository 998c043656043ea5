"""What a module needs around itself while a callback has it answer items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import lightning.pytorch as L

from lightning_modules.strategies import whole_weights


@contextmanager
def evaluating(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Whole weights, the precision of training, and current weights in the module's engine (`engine`), if it has one.

    All ranks enter and leave it together, however many items each has: once for a whole evaluation.
    """
    current_weights = getattr(getattr(module, "engine", None), "current_weights", nullcontext)
    with whole_weights(trainer.strategy, module), trainer.precision_plugin.forward_context(), current_weights():
        yield
