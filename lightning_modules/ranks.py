"""Sums and maxima over the ranks of a trainer; of one process the value itself."""

from __future__ import annotations

import lightning.pytorch as L
import torch


def sum_over_ranks(trainer: L.Trainer, value: float) -> float:
    """The sum of every rank's value, in float64 where the device has it."""
    if trainer.world_size == 1:
        return float(value)
    device = trainer.strategy.root_device
    tensor = torch.tensor(value, dtype=torch.float64 if device.type != "mps" else None, device=device)
    return float(trainer.strategy.reduce(tensor, reduce_op="sum"))


def max_over_ranks(trainer: L.Trainer, value: int) -> int:
    """The largest of all ranks' values."""
    if trainer.world_size == 1:
        return value
    return int(trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="max"))
