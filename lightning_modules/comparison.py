"""Both views' answers to the same items: what evaluations are made of, and what callbacks may know of a module.

`ViewComparer` answers with one model; `ComparesViews` is all that a callback asks of a module. The answers of the two
views are drawn with different seeds: with the same one, views that agree would also be lucky together, and harm could
not be read against the noise of sampling. The items of a call enter its seeds, so that an evaluation's batches, which
are a call each, are drawn independently: with one seed for all, items at the same place of two batches would be lucky
together, and intervals over items too narrow.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from datamodules.example import Environment, Example, Grade
from lightning_modules.packing import Rollout
from lightning_modules.rollout.engine import Completion, RolloutEngine, SamplingSpec
from lightning_modules.rollout.episodes import Episode, Turn, play_episodes
from lightning_modules.scoring import ViewScorer, ViewScores
from lightning_modules.views import ContextSlot, PromptPair, View, ViewRenderer

OpenGame = Callable[[Example], Environment | None]
"""Opens the game of an example; None: the example is a question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to an item; of a game, the tokens of all its turns with the transcript as the text."""

    completion: Completion
    grade: Grade | None = None
    """A game's own verdict; None: the text of the completion is to be graded."""


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
    log_probability: float | None = None
    """Mean over the no-context completion's tokens of log q_x(y_t) in nats; None where `kl` is None."""
    grade_no_context: Grade | None = None
    """A game's own verdict; None: the text of the completion is to be graded."""
    grade_with_context: Grade | None = None
    further_no_context: Sequence[Answer] = ()
    """Answers beyond the first, where `ComparisonSpec` asks for them."""
    further_with_context: Sequence[Answer] = ()
    no_context_episodes: Sequence[Episode] = ()
    """The episodes behind the no-context answers, the first one's first: what any further scoring goes through."""
    no_context_states: Sequence[Tensor] = field(default=(), compare=False, repr=False)
    """Of each turn of the first no-context answer the hidden states (T, H) in main memory, where asked for."""

    @property
    def no_context_turns(self) -> Sequence[Turn]:
        """The turns that `no_context` sums up, each with both its prompts."""
        return self.no_context_episodes[0].turns if self.no_context_episodes else ()


@dataclass(frozen=True, slots=True)
class ComparisonSpec:
    """What is wanted of a comparison."""

    with_kl: bool = True
    """Also score the first no-context answer in both views."""
    num_no_context: int = 1
    """Answers per item, drawn independently; more than one makes sense where decoding samples."""
    num_with_context: int = 1
    context_slot: ContextSlot | None = None
    """Where the context goes; None: where the module's views put it."""
    given: Sequence[ViewComparison] | None = None
    """Comparisons of the same items with another context, whose no-context answers are taken over."""
    keep_states: bool = False
    """Keep the scored no-context view, so that comparisons that are `given` these score their own context alone."""


@runtime_checkable
class ComparesViews(Protocol):
    """Any module that can answer with and without the context can be evaluated for removability."""

    @property
    def completed_steps(self) -> int:
        """Optimizer steps behind the current weights, also outside a fit."""
        ...

    @property
    def evaluation(self) -> SamplingSpec:
        """How `compare_views` decodes."""
        ...

    def compare_views(
        self, examples: Sequence[Example], spec: ComparisonSpec = ComparisonSpec()
    ) -> list[ViewComparison]:
        """Answer every example in both views, in order, without changing any random state."""
        ...


@runtime_checkable
class KnowsItsBase(Protocol):
    """A module that still has the model it started from, to tell what training has moved."""

    def base_divergences(self, comparisons: Sequence[ViewComparison]) -> list[float] | None:
        """Mean per-token KL(model || base) of each no-context answer in nats, without the context; None: no base."""
        ...


class ViewComparer:
    """Answers examples in both views with one model."""

    def __init__(
        self,
        renderer: ViewRenderer,
        engine: RolloutEngine,
        scorer: ViewScorer,
        sampling: SamplingSpec,
        max_tokens: int | None = None,
    ) -> None:
        """Compare with these parts.

        Args:
            renderer: makes the prompts.
            engine: samples with the model.
            scorer: scores with the same model.
            sampling: how answers are decoded.
            max_tokens: budget of a scoring pass in with-context tokens; None: one pass per context.
        """
        self.renderer, self.engine, self.scorer = renderer, engine, scorer
        self.sampling, self.max_tokens = sampling, max_tokens

    def compare(
        self, examples: Sequence[Example], spec: ComparisonSpec, open_game: OpenGame, seed: int
    ) -> list[ViewComparison]:
        """Answer every example in both views, in order; the result is a function of the weights and the arguments.

        Raises:
            ValueError: if `spec.given` is of other items, or a conversation is longer than the models can read.
        """
        renderer = self.renderer if spec.context_slot is None else self.renderer.with_slot(spec.context_slot)
        seeds = _view_seeds(seed, examples)
        if spec.given is None:
            without = self._answers(renderer, examples, spec.num_no_context, open_game, seeds[0], "no_context")
        else:
            if [comparison.example.id for comparison in spec.given] != [example.id for example in examples]:
                raise ValueError("ComparisonSpec.given holds other items than the examples; pass the same, in order.")
            without = [list(comparison.no_context_episodes) for comparison in spec.given]
        if self.sampling.temperature == 0.0 and all(example.privileged_context is None for example in examples):
            with_ = without  # both prompts are the same, and so is what greedy decoding makes of them
        else:
            with_ = self._answers(renderer, examples, spec.num_with_context, open_game, seeds[1], "with_context")
        compared = zip(examples, without, with_, strict=True)
        if not spec.with_kl:
            return [compare_episodes(*parts) for parts in compared]
        scores, states = self._scores(renderer, examples, without, spec)
        return [compare_episodes(*parts, own, kept) for parts, own, kept in zip(compared, scores, states, strict=True)]

    def _scores(
        self,
        renderer: ViewRenderer,
        examples: Sequence[Example],
        without: Sequence[Sequence[Episode]],
        spec: ComparisonSpec,
    ) -> tuple[list[ViewScores], list[list[Tensor]]]:
        """Scores of each example's first no-context answer and, where they are to be kept, its turns' hidden states."""
        if spec.given is None:
            rollouts = [[turn.rollout for turn in episodes[0].turns] for episodes in without]
        else:
            pairs = zip(examples, without, strict=True)
            rollouts = [with_other_context(renderer, example, episodes[0]) for example, episodes in pairs]
        known = [states for comparison in spec.given or () for states in comparison.no_context_states]
        assert len(known) in (0, sum(map(len, rollouts))), "all of the comparisons keep their states, or none does"
        kept = dict(enumerate(known)) if known or spec.keep_states else None
        turns = [turn for turns in rollouts for turn in turns]
        by_turn = self.scorer.view_scores(turns, self.max_tokens, kept)
        kls = token_means([scores.kl for scores in by_turn], rollouts)
        log_probabilities = token_means([scores.log_probability for scores in by_turn], rollouts)
        states = iter([kept[number] for number in sorted(kept)] if kept else [])
        kept_by_episode = [list(itertools.islice(states, len(turns))) for turns in rollouts]
        return list(map(ViewScores, kls, log_probabilities)), kept_by_episode

    def base_divergences(self, comparisons: Sequence[ViewComparison], base: PreTrainedModel) -> list[float]:
        """See `KnowsItsBase`; `base` has the tokenizer of the model that answered."""
        rollouts = [[turn.rollout for turn in comparison.no_context_turns] for comparison in comparisons]
        turns = [turn for turns in rollouts for turn in turns]
        return token_means(self.scorer.base_divergences(turns, base, self.max_tokens), rollouts)

    def _answers(
        self,
        renderer: ViewRenderer,
        examples: Sequence[Example],
        num_samples: int,
        open_game: OpenGame,
        seed: int,
        view: View,
    ) -> list[list[Episode]]:
        """Every example's episodes, as many as samples."""
        repeated = [example for example in examples for _ in range(num_samples)]
        games = [open_game(example) for example in repeated]
        episodes = play_episodes(repeated, games, renderer, self.engine, self.sampling, seed, view)
        return [episodes[start : start + num_samples] for start in range(0, len(episodes), num_samples)]


def _view_seeds(seed: int, examples: Sequence[Example]) -> tuple[int, int]:
    """Seeds of the no-context and the with-context answers to these items, whichever context that is."""
    ids = hashlib.sha256("\n".join(example.id for example in examples).encode()).digest()
    without, with_ = np.random.SeedSequence([seed, int.from_bytes(ids)]).generate_state(2)
    return int(without), int(with_)


def compare_episodes(
    example: Example,
    no_context: Sequence[Episode],
    with_context: Sequence[Episode],
    scores: ViewScores | None = None,
    no_context_states: Sequence[Tensor] = (),
) -> ViewComparison:
    """Pair the two views' episodes of one example; its context may be another than the no-context episodes' own."""
    assert {episode.example.id for episode in (*no_context, *with_context)} == {example.id}
    return ViewComparison(
        example=example,
        prompts=with_context[0].turns[0].prompts,
        no_context=no_context[0].completion,
        with_context=with_context[0].completion,
        kl=None if scores is None else scores.kl,
        log_probability=None if scores is None else scores.log_probability,
        grade_no_context=no_context[0].grade,
        grade_with_context=with_context[0].grade,
        further_no_context=[Answer(episode.completion, episode.grade) for episode in no_context[1:]],
        further_with_context=[Answer(episode.completion, episode.grade) for episode in with_context[1:]],
        no_context_episodes=no_context,
        no_context_states=no_context_states,
    )


def with_other_context(renderer: ViewRenderer, example: Example, episode: Episode) -> list[Rollout]:
    """The token ids that score every turn of an episode, with the context of `example` in place of the episode's."""
    pairs = [renderer.render(example, episode.history[: 2 * number]) for number in range(len(episode.turns))]
    return [replace(turn, prompts=pair).rollout for turn, pair in zip(episode.turns, pairs, strict=True)]


def token_means(by_turn: Sequence[float], rollouts: Sequence[Sequence[Rollout]]) -> list[float]:
    """Mean over the tokens of all turns of each episode, from the means over each turn's tokens, in order."""
    values = iter(by_turn)
    means = []
    for turns in rollouts:
        lengths = [len(turn.completion_ids) for turn in turns]
        means.append(sum(next(values) * length for length in lengths) / sum(lengths))
    return means
