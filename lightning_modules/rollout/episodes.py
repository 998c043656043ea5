"""Episodes: many games in lockstep over any rollout engine; a question is an episode of one turn.

In every round the prompts of all unfinished games go to the engine together. A game stops when it is over by its own
rules, or at its turn limit.

Every turn is one training sample: the two prompts of the conversation so far, and the completion. The conversation is
the example's prompt, then completions and observations in turn. Both views have the same one; the with-context view has
the context in its slot of the example's prompt, where it stays as the game goes on. Earlier turns are rendered as text
by the chat template, as they are at deployment: one that strips reasoning from earlier turns does so in both views. A
turn's prompt is tokenised once, for sampling and for scoring alike, and what is scored is the sampled token ids.
Nothing is truncated: a conversation that outgrows the model ends with the renderer's error.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from datamodules.example import Environment, Example, Grade, Message, grade_game
from lightning_modules.packing import Rollout
from lightning_modules.rollout.engine import Completion, RolloutEngine, SamplingSpec
from lightning_modules.views import PromptPair, View, ViewRenderer, as_text


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion, and the prompts of the conversation before it."""

    prompts: PromptPair
    view: View
    """Whose prompt the completion was sampled from."""
    completion: Completion
    valid: bool
    """The game accepted the move; True for a question."""

    @property
    def rollout(self) -> Rollout:
        """The token ids that score the turn in both views."""
        pair, completion = self.prompts, self.completion
        return Rollout(
            pair.no_context_ids,
            pair.with_context_ids,
            pair.context_prefix_length,
            completion.token_ids,
            sampler_logprobs=completion.logprobs,
        )


@dataclass(slots=True)
class Episode:
    """One game, or one question, as far as it has been played."""

    example: Example
    environment: Environment | None
    """The game; None: a question."""
    view: View = "no_context"
    """Whose prompts its completions are sampled from."""
    turns: list[Turn] = field(default_factory=list)
    history: list[Message] = field(default_factory=list)
    """What follows the example's prompt: completions and observations in turn, the last observation included."""
    done: bool = False
    """The game is over by its own rules, or the question is answered."""

    @property
    def is_over(self) -> bool:
        """There is no further turn."""
        at_limit = self.environment is not None and len(self.turns) >= self.environment.max_turns
        return self.done or at_limit

    @property
    def grade(self) -> Grade | None:
        """The game's own verdict; None: a question, which is graded by its text."""
        return None if self.environment is None else grade_game(won=self.environment.won, done=self.done)

    @property
    def completion(self) -> Completion:
        """All that was sampled, as one: a question's completion, or a game's tokens with its transcript as the text."""
        if self.environment is None:
            return self.turns[0].completion
        completions = [turn.completion for turn in self.turns]
        token_ids = [token for completion in completions for token in completion.token_ids]
        return Completion(token_ids, as_text(self.history), all(completion.finished for completion in completions))

    def take_turn(self, prompts: PromptPair, completion: Completion) -> None:
        """Record a completion; in a game, make its move."""
        if self.environment is None:
            self.turns.append(Turn(prompts, self.view, completion, valid=True))
            self.done = True
            return
        outcome = self.environment.step(completion.text)
        self.turns.append(Turn(prompts, self.view, completion, outcome.valid))
        self.history += [
            {"role": "assistant", "content": completion.text},
            {"role": "user", "content": outcome.observation},
        ]
        self.done = outcome.done


def play_episodes(
    examples: Sequence[Example],
    environments: Sequence[Environment | None],
    renderer: ViewRenderer,
    engine: RolloutEngine,
    sampling: SamplingSpec,
    seed: int,
    view: View | Sequence[View] = "no_context",
) -> list[Episode]:
    """Play every example to its end, in lockstep.

    Args:
        examples: what to play or answer.
        environments: the game of each example, freshly opened; None: a question.
        renderer: makes both prompts of a turn.
        engine: samples the completions of a round, one call for each round.
        sampling: how they are drawn.
        seed: of the first round; later rounds' seeds follow from it (`turn_seed`).
        view: whose prompt the completions are sampled from: one for all, or one for each example.

    Returns:
        The episodes, in the order of `examples`.

    Raises:
        ValueError: if a conversation is longer than the models can read; names the item.
    """
    views = [view] * len(examples) if isinstance(view, str) else view
    episodes = [Episode(*parts) for parts in zip(examples, environments, views, strict=True)]
    for turn in itertools.count():
        active = [episode for episode in episodes if not episode.is_over]
        if not active:
            break
        pairs = [renderer.render(episode.example, episode.history) for episode in active]
        prompts = [pair.ids(episode.view) for episode, pair in zip(active, pairs, strict=True)]
        completions = engine.generate(prompts, sampling, turn_seed(seed, turn))
        for episode, pair, completion in zip(active, pairs, completions, strict=True):
            episode.take_turn(pair, completion)
    return episodes


def all_turns(episodes: Sequence[Episode]) -> list[Turn]:
    """The turns of every episode, one episode after another."""
    return [turn for episode in episodes for turn in episode.turns]


def turn_seed(seed: int, turn: int) -> int:
    """Seed of a round, counted from 0. The first has `seed` itself: a question is drawn as without episodes."""
    return seed if turn == 0 else int(np.random.SeedSequence([seed, turn]).generate_state(1)[0])


class GameCounts(NamedTuple):
    """Sums over games, which can be added up over ranks."""

    num_games: float
    num_won: float
    num_turns: float
    num_invalid: float
    """Turns whose move the game did not accept."""

    def metrics(self) -> dict[str, float]:
        """Shares and means by the names they are logged under; nothing where no game was played."""
        if self.num_games == 0:
            return {}
        return {
            "games/win_rate": self.num_won / self.num_games,
            "games/mean_turns": self.num_turns / self.num_games,
            "games/invalid_move_rate": self.num_invalid / self.num_turns,
        }


def count_games(episodes: Sequence[Episode]) -> GameCounts:
    """Count the games among the episodes; questions are left out."""
    games = [episode for episode in episodes if episode.environment is not None]
    turns = all_turns(games)
    won = sum(game.grade is not None and game.grade.correct for game in games)
    return GameCounts(len(games), won, len(turns), sum(not turn.valid for turn in turns))
