"""`ShowsMechanism`: what callbacks that look into a student ask of its module."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from datamodules.example import Example
from lightning_modules.objective.consistency import ObjectiveSettings
from lightning_modules.packing import Rollout
from lightning_modules.scoring import ViewScorer


@runtime_checkable
class ShowsMechanism(Protocol):
    """A module that trains a student on two views of its own completions, and lets it be looked into."""

    scorer: ViewScorer
    """Holds the student and the teacher, and lays out both views of a micro-batch."""
    objective_settings: ObjectiveSettings
    """The objective that training follows."""
    max_tokens_per_micro_batch: int | None
    """Budget of a pass, in with-context tokens; None: one pass per context."""

    def draw_rollouts(self, examples: Sequence[Example]) -> list[Rollout]:
        """Draw completions as training does: of a question one, of a game one per turn.

        They train the no-context view: under context dropout those that the student samples without the context.
        The same on every rank, the same for the same weights, and without changing any random state.
        """
        ...

    def initial_student(self) -> AbstractContextManager[PreTrainedModel]:
        """The student as it was before the first step of the run, for as long as the context is open; frozen."""
        ...
