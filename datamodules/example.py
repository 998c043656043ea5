"""The contract between data and everything else: `Example`, `Message`, `Grade`, `Environment`.

An `Example` is text only. It knows no tokenizer, no model and no chat template, so the same object feeds our
LightningModule, TRL, or a plain loop. What differs between the two views of the method (arXiv:2606.11627) is one field:

* no-context view   x:      `prompt`
* with-context view (c, x): `prompt` with `privileged_context` placed before it

Where the context is placed (system message, leading turns, user turn) is the reader's choice, not the data's:
see `lightning_modules.views`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict

MetaValue = str | int | float | bool | None


class Message(TypedDict):
    """One chat turn, in the form that every chat template takes."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One item: a prompt, the privileged context that goes with it, and the reference answer."""

    id: str
    """Unique within the data set and stable between runs: paired statistics join on it."""
    prompt: tuple[Message, ...]
    """The no-context prompt x. The last message is a user turn; a system turn may lead."""
    privileged_context: str | tuple[Message, ...] | None
    """The context c: text, or turns (demonstrations). None: this item has no context and both views are the same."""
    answer: str
    """Reference answer in canonical form, as `ContextDataModule.grade` compares it."""
    source: str = ""
    """Where the item comes from (a data set's name), for datasheets and per-source metrics."""
    group: str = ""
    """Metrics are also reported apart for each group of the split (for example ``unseen_country``); "" joins none."""
    meta: Mapping[str, MetaValue] = field(default_factory=dict)
    """Anything else worth keeping per item (subject, board, template). Plain values only: it is written to JSON."""

    def __post_init__(self) -> None:
        """Refuse items that no view could be made of.

        Raises:
            ValueError: if the id is empty, or the prompt is empty, does not end in a user turn, or has blank content.
        """
        if not self.id:
            raise ValueError("Example.id is empty; every item needs an id that is stable between runs.")
        if not self.prompt or self.prompt[-1]["role"] != "user":
            raise ValueError(
                f"Example {self.id!r}: prompt must be a non-empty list of messages that ends in a user turn."
            )
        if not self.prompt[-1]["content"].strip():
            raise ValueError(f"Example {self.id!r}: the last user turn of the prompt is blank.")


GradeReason = Literal["correct", "wrong", "no_answer", "several_answers", "not_a_choice", "lost", "unfinished"]
"""Why a completion counts as it does; everything but ``correct`` counts wrong.

A game is ``correct`` (won), ``lost`` (ended otherwise by its own rules) or ``unfinished`` (stopped at its turn limit).
"""


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one completion."""

    correct: bool
    parsed: str | None
    """The answer read out of the completion, in canonical form; None where none could be read."""
    reason: GradeReason

    def __post_init__(self) -> None:
        """Keep `correct` and `reason` from contradicting each other.

        Raises:
            ValueError: if exactly one of ``correct`` and ``reason == "correct"`` holds.
        """
        if self.correct != (self.reason == "correct"):
            raise ValueError(f"Grade: correct={self.correct} contradicts reason={self.reason!r}.")


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """What one turn of a game led to."""

    observation: str
    """What the player is shown next; never blank, also after the last turn."""
    done: bool
    """The game has ended by its own rules. Its turn limit is kept by whoever plays: see `Environment.max_turns`."""
    valid: bool
    """The game accepted the move."""


class Environment(Protocol):
    """One single-player game in progress, as `lightning_modules.rollout.episodes` drives it.

    `ContextDataModule.environment` opens it; what the player sees first is in the prompt of its `Example`. The same
    example opens the same game every time, and games side by side touch neither each other's random state nor the
    program's.
    """

    @property
    def max_turns(self) -> int:
        """Turns after which an unfinished game counts as not won, at least 1. An invalid move is a turn."""
        ...

    @property
    def won(self) -> bool:
        """Whether the game has been won by now."""
        ...

    def step(self, completion: str) -> TurnOutcome:
        """Play one turn. Never raises for what the completion says: what is no move is an invalid one."""
        ...


def grade_game(*, won: bool, done: bool) -> Grade:
    """Grade a game by how it stands: won; lost, where it has ended by its own rules; else unfinished."""
    if won:
        return Grade(correct=True, parsed="win", reason="correct")
    return Grade(correct=False, parsed=None, reason="lost" if done else "unfinished")
