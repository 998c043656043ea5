"""Where training has changed the weights: ||W - W0|| / ||W0|| by layer and module, Frobenius norms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.adapters import adapter_layers, base_parameters, delta
from lightning_modules.mechanism.parameter_groups import ParameterGroup, parameter_group


@dataclass(frozen=True, slots=True)
class WeightChange:
    """How far a group of parameters is from where it began."""

    change: float
    """||W - W0||."""
    initial: float
    """||W0||."""
    num_parameters: int

    @property
    def relative(self) -> float | None:
        """||W - W0|| / ||W0||; None where W0 is zero."""
        return self.change / self.initial if self.initial > 0.0 else None


@torch.no_grad()
def weight_changes(student: nn.Module, initial: nn.Module) -> dict[ParameterGroup, WeightChange]:
    """Compare the two models' parameters, group by group, in the order of the model; one parameter at a time.

    Of a student with LoRA the change of an adapted weight is alpha / r * B A. A head that is tied to the embeddings and
    has adapters of its own is a matrix of its own: the embeddings do not change with it.

    Args:
        student: the model as it is.
        initial: the same model as it was; taken in the student's data types, whose rounding is no change.

    Raises:
        ValueError: if the two have not the same parameters.
    """
    before = dict(initial.named_parameters())
    sums: dict[ParameterGroup, tuple[float, float, int]] = {}
    adapters = adapter_layers(student)

    def add(name: str, difference: Tensor, start: Tensor) -> None:
        norms = torch.stack([torch.linalg.vector_norm(difference), torch.linalg.vector_norm(start)])
        squares = norms.double().square().tolist()
        changed, began, count = sums.get(parameter_group(name), (0.0, 0.0, 0))
        sums[parameter_group(name)] = (changed + squares[0], began + squares[1], count + start.numel())

    for name, parameter in base_parameters(student):
        if name not in before or before[name].shape != parameter.shape:
            raise ValueError(f"The initial student has no parameter {name} of shape {tuple(parameter.shape)}.")
        start = before[name].to(parameter.dtype).float()
        layer = adapters.pop(name.removesuffix(".weight"), None)
        add(name, parameter.float() - start if layer is None else delta(layer), start)
    for name, layer in adapters.items():
        add(f"{name}.weight", delta(layer), layer.base_layer.weight.float())
    return {group: WeightChange(c**0.5, b**0.5, count) for group, (c, b, count) in sums.items()}


def whole(groups: Iterable[WeightChange]) -> WeightChange:
    """The change over all parameters, from that of every group."""
    parts = list(groups)
    return WeightChange(
        sum(part.change**2 for part in parts) ** 0.5,
        sum(part.initial**2 for part in parts) ** 0.5,
        sum(part.num_parameters for part in parts),
    )
