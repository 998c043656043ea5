"""Weights that ZeRO-3 spreads over the ranks: gathered for a while, or left whole where they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import lightning.pytorch as L
from torch import nn

from lightning_modules.objective.chunked import is_spread


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather parameters that ZeRO-3 has spread, for as long as no engine has been made of the model."""
    if not is_spread(model):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        yield


@contextmanager
def built_whole(beside: nn.Module) -> Iterator[None]:
    """Have modules inside built whole and in the types they ask for, where ZeRO-3 spreads the model they are for.

    DeepSpeed spreads their parameters when its engine is made.
    """
    if not is_spread(beside):
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import restore_init_context, shutdown_init_context

    shutdown_init_context()
    try:
        yield
    finally:
        restore_init_context()


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Shapes of the whole trained parameters by name, also where ZeRO-3 has spread them."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return {name: list(getattr(value, "ds_shape", value.shape)) for name, value in named}


class LayerHooks:
    """The hooks by which ZeRO-3 gathers a layer before it runs and spreads it again afterwards.

    Where the weights are whole anyway, they must not run: they would spread them again after the first forward.
    DeepSpeed has no public switch; this is what TRL does (`trl.models.utils.remove_hooks`).
    """

    def __init__(self, engine: object) -> None:
        """Find them; before `deepspeed.initialize`, when the module is its own engine, there are none.

        Raises:
            ImportError: if this DeepSpeed keeps them elsewhere.
        """
        self._offload: Any = None
        if isinstance(engine, L.LightningModule):
            return
        optimizer = getattr(engine, "optimizer", None)
        self._offload = getattr(optimizer, "parameter_offload", optimizer)  # in its place where nothing is trained
        for name in ("module", "forward_hooks", "backward_hooks", "_register_deepspeed_module"):
            if not hasattr(self._offload, name):
                raise ImportError(
                    f"ZeROStrategy at stage 3 needs deepspeed 0.19; in {version('deepspeed')} the hooks that gather "
                    f"layers are not where they were ({name} is missing)."
                )

    def remove(self) -> None:
        """Take them away; the weights have to be whole."""
        if self._offload is None:
            return
        for parameter in self._offload.module.parameters():
            parameter.ds_active_sub_modules.clear()
        for hook in (*self._offload.forward_hooks, *self._offload.backward_hooks):
            hook.remove()
        self._offload.forward_hooks, self._offload.backward_hooks = [], []

    def restore(self) -> None:
        """Put them back."""
        if self._offload is not None:
            self._offload._register_deepspeed_module(self._offload.module)
