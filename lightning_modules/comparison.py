"""What callbacks may know of a module whose context is to be removable: `ComparesViews`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from datamodules.example import Example, Grade
from lightning_modules.rollout.engine import Completion
from lightning_modules.rollout.episodes import Episode, Turn, all_turns
from lightning_modules.scoring import ViewScorer
from lightning_modules.views import PromptPair


@dataclass(frozen=True, slots=True)
class ViewComparison:
    """Both views' answers to one example; of a game, both views' games."""

    example: Example
    prompts: PromptPair
    """Of the first turn."""
    no_context: Completion
    """Of a game: the tokens of all its turns, with the transcript as the text."""
    with_context: Completion
    kl: float | None
    """Mean per-token KL(q_x || q_c) in nats over the no-context completion; None where it was not asked for."""
    no_context_turns: Sequence[Turn] = ()
    """The turns that `no_context` sums up, each with both its prompts: what any further scoring goes through."""
    grade_no_context: Grade | None = None
    """A game's own verdict; None: the text of the completion is to be graded."""
    grade_with_context: Grade | None = None


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


def compare_episodes(no_context: Episode, with_context: Episode, kl: float | None) -> ViewComparison:
    """Pair the two views' episodes of one example."""
    assert no_context.example.id == with_context.example.id
    return ViewComparison(
        example=no_context.example,
        prompts=no_context.turns[0].prompts,
        no_context=no_context.completion,
        with_context=with_context.completion,
        kl=kl,
        no_context_turns=no_context.turns,
        grade_no_context=no_context.grade,
        grade_with_context=with_context.grade,
    )


def episode_divergences(scorer: ViewScorer, episodes: Sequence[Episode], max_tokens: int | None) -> list[float]:
    """Mean per-token KL(q_x || q_c) of each episode in nats, over the tokens of all its turns."""
    kls = iter(scorer.view_divergences([turn.rollout for turn in all_turns(episodes)], max_tokens))
    means = []
    for episode in episodes:
        lengths = [len(turn.completion.token_ids) for turn in episode.turns]
        means.append(sum(next(kls) * length for length in lengths) / sum(lengths))
    return means
