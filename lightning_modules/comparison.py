"""What callbacks may know of a module whose context is to be removable: `ComparesViews`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from datamodules.example import Example
from lightning_modules.rollout.engine import Completion
from lightning_modules.views import PromptPair


@dataclass(frozen=True, slots=True)
class ViewComparison:
    """Both views' answers to one example."""

    example: Example
    prompts: PromptPair
    no_context: Completion
    with_context: Completion
    kl: float | None
    """Mean per-token KL(q_x || q_c) in nats over the no-context completion; None where it was not asked for."""


@runtime_checkable
class ComparesViews(Protocol):
    """Any module that can answer with and without the context can be evaluated for removability."""

    @property
    def completed_steps(self) -> int:
        """Optimizer steps behind the current weights, also outside a fit."""
        ...

    def compare_views(self, examples: Sequence[Example], *, with_kl: bool = True) -> list[ViewComparison]:
        """Answer every example in both views, in order, without changing any random state."""
        ...
