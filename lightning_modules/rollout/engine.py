"""What the rest of the code knows of a sampler: `RolloutEngine`, `SamplingSpec`, `Completion`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class SamplingSpec:
    """How completions are drawn."""

    max_completion_length: int = 512
    """Most tokens of a completion, its end token included."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy decoding."""
    top_p: float = 1.0
    """Nucleus: smallest set of tokens with this probability mass; 1 keeps all."""
    top_k: int = 0
    """Most likely tokens kept; 0 keeps all."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: naming the field, its value and what is accepted.
        """
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length is {self.max_completion_length}; it must be at least 1.")
        if self.temperature < 0.0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1].")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (keep all) or positive.")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer."""

    token_ids: list[int]
    """Sampled tokens, at least one; the end token is the last of a finished completion. No padding."""
    text: str
    """Decoded without special tokens: what graders read."""
    finished: bool
    """Whether it ended by itself; False: cut off at max_completion_length."""
    logprobs: list[float] | None = field(default=None, compare=False)
    """Log-probability in nats of each token under the weights that sampled it, at temperature 1 whatever the sampling;
    None: the engine does not tell. Not compared: engines batch as they please, which moves the last digits."""


class RolloutEngine(Protocol):
    """Samples completions with the student's weights."""

    logprob_gap: float | None
    """Mean distance in nats between the engine's and the trainer's log-probabilities of tokens sampled with the current
    weights; None: not measured, or the engine samples with the trainer's own module."""

    def current_weights(self) -> AbstractContextManager[None]:
        """The student's current weights sample inside this context; an engine may give memory back at its end.

        All ranks enter and leave it together. In a block inside another one nothing happens.
        """
        ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingSpec, seed: int) -> list[Completion]:
        """One completion for each prompt (token ids), in order.

        The result is a function of weights, prompts, sampling and seed: the caller's random state is neither used nor
        changed.
        """
        ...
