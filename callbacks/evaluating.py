"""What a module needs around itself while a callback has it answer items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.strategies import whole_weights, zero_stage


@contextmanager
def evaluating(trainer: L.Trainer, module: L.LightningModule, *, with_base: bool = False) -> Iterator[None]:
    """Whole weights, the precision of training, and current weights in the module's engine (`engine`), if it has one.

    All ranks enter and leave it together, however many items each has: once for a whole evaluation. Of a module that
    has a `student`, that alone is whole (a teacher beside it would double what ZeRO-3 needs), unless its answers are
    to be compared `with_base` (`comparison.KnowsItsBase`).
    """
    current_weights = getattr(getattr(module, "engine", None), "current_weights", nullcontext)
    model = module if with_base else getattr(module, "student", module)
    with whole_weights(trainer.strategy, model), trainer.precision_plugin.forward_context(), current_weights():
        yield


def is_back_on_its_device(trainer: L.Trainer, module: L.LightningModule, user: str) -> bool:
    """Undo, in on_fit_end, that Lightning has by then moved the module to the CPU; whether it can be evaluated again.

    On a CPU the answers of a run on GPUs would be hours of work, and in another precision. At ZeRO stage 3 on GPUs the
    shares of the parameters can't be taken back from here, and a warning says what to do.
    """
    device = trainer.strategy.root_device
    if device.type != "cpu" and zero_stage(trainer.strategy) == 3:
        rank_zero_warn(
            f"{user}: the evaluation of the last step, which a kill had left out, can't be made up for at ZeRO-3. "
            "Make it by python -m cli validate --config RUN/config.yaml --ckpt_path last."
        )
        return False
    module.to(device)
    return True
