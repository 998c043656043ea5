"""`TextArenaGame`: one game of TextArena (0.7.4) as an `Environment`.

Three things of TextArena are contained here:

* it seeds Python's global random state at every reset, and some games draw from it at every turn. Each game gets a
  random state of its own, swapped in for the length of a call, so that games in lockstep disturb neither each other nor
  the program;
* its wrappers add prefixes and its games read the FIRST bracketed action. The unwrapped game is used, and it is handed
  one action only, the LAST one of the completion;
* its opening prompt states the rules. It is dropped unless asked for: see `datamodules.games`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from datamodules.example import TurnOutcome

OptionValue = int | float | bool | str | list[int]

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


class TextArenaGame:
    """Implements `Environment`.

    Args:
        env_id: TextArena's id of a single-player game, such as ``FrozenLake-v0``.
        seed: the board, at least 0; the same seed opens the same game.
        options: the game's own arguments, such as ``{"size": 3, "num_holes": 2}``; a list becomes a tuple.
        max_turns: turns after which an unfinished game is not won, at least 1.
        actions: what counts as an action inside brackets, in lower case; None: anything.
        shows_rules: the first observation begins with the game's own rules.

    Raises:
        ImportError: if the package ``textarena`` is not installed.
        ValueError: if the id is unknown, an option is not the game's, it is not for one player, or it can't be opened
            (some games download their words).
    """

    def __init__(
        self,
        env_id: str,
        seed: int,
        options: Mapping[str, OptionValue],
        max_turns: int,
        actions: Collection[str] | None = None,
        shows_rules: bool = False,
    ) -> None:
        """Open the game."""
        self._max_turns, self._actions = max_turns, actions
        self._random_state = (random.Random(seed).getstate(), np.random.RandomState(seed).get_state())
        with self._own_random_state():
            self._game = _open(env_id, seed, options)
        self._first_observation = self._observe(shows_rules)

    @property
    def first_observation(self) -> str:
        """What the player is shown before the first turn."""
        return self._first_observation

    @property
    def initial_state(self) -> str:
        """Everything that tells this game's opening from another's, hidden parts included; equal games, equal text.

        Raises:
            ValueError: if the state holds objects that can't be compared between games.
        """
        return f"{self._first_observation}\n{_canonical(self._game.state.game_state)}"

    @property
    def max_turns(self) -> int:
        """Turns after which an unfinished game counts as not won."""
        return self._max_turns

    @property
    def won(self) -> bool:
        """The game has ended with TextArena's full reward, 1. Part of a solution earns less, and is not won."""
        rewards = self._game.state.rewards
        return bool(self._game.state.done and rewards is not None and rewards[0] >= 1)

    def step(self, completion: str) -> TurnOutcome:
        """Play the last action of `completion`; without one the move is invalid.

        TextArena forgives one invalid move; a second one in a row ends the game.

        Raises:
            RuntimeError: if the game is over.
        """
        state = self._game.state
        if state.done:
            raise RuntimeError("This game is over; open a new one.")
        action = last_action(completion, self._actions)
        errors = state.error_count
        with self._own_random_state():
            done, _ = self._game.step("" if action is None else f"[{action}]")
        valid = state.error_count <= errors and not state.game_info[0]["invalid_move"]
        return TurnOutcome(self._observe(), bool(done), bool(valid))

    def _observe(self, shows_rules: bool = False) -> str:
        """Return what is new to the player: not their own words, and the rules only if asked for."""
        from textarena import ObservationType

        hidden = {ObservationType.PLAYER_ACTION} | (set() if shows_rules else {ObservationType.PROMPT})
        state = self._game.state
        _, messages = self._game.get_observation()
        texts = [text.strip() for _, text, kind in messages if kind not in hidden]
        if state.done:
            texts.append(str(state.game_info[0].get("reason") or "").strip())
        return "\n\n".join(text for text in texts if text) or "(The game shows nothing.)"

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Run on this game's random state, and give the program's back."""
        program = (random.getstate(), np.random.get_state())
        _set_random_state(self._random_state)
        try:
            yield
        finally:
            self._random_state = (random.getstate(), np.random.get_state())
            _set_random_state(program)


def last_action(completion: str, actions: Collection[str] | None = None) -> str | None:
    """Return the last action that `completion` gives in square brackets, without white space around it.

    With `actions` (lower case) only these count, in any case, and other brackets are passed over, as in OPCD's code
    (arXiv:2602.12275): "[down], so [1, 0] is next" gives ``down``. Without, whatever stands in the last brackets is it.
    None: there is none. A bracket that is never closed is text.
    """
    found = [text.strip() for text in _BRACKETS.findall(completion)]
    if actions is not None:
        found = [text.lower() for text in found if text.lower() in actions]
    return (found[-1] or None) if found else None


def _open(env_id: str, seed: int, options: Mapping[str, OptionValue]) -> Any:
    """Build and reset a game without its wrappers, which would pick the action and decorate the boards."""
    try:
        import textarena
    except ImportError as error:
        raise ImportError("Games need the package `textarena`: pip install 'context-returns[games]'") from error
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    try:
        game = textarena.make(env_id, **arguments)
        while isinstance(game, textarena.Wrapper):
            game = game.env
        game.reset(num_players=1, seed=seed)
    # Another library's code: whatever it raises, the user needs to know what was asked of it.
    except Exception as error:
        raise ValueError(
            f"env_id={env_id!r} with env_options={dict(options)} can't be opened as a game for one player: "
            f"{type(error).__name__}: {error}. `textarena.pprint_registry_detailed()` lists ids and options."
        ) from error
    if not isinstance(game.state, textarena.SinglePlayerState):
        raise ValueError(f"env_id={env_id!r} is not a game for one player.")
    return game


def _canonical(value: Any) -> str:
    """Write plain values as text, independent of the order of sets and of the process."""
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{_canonical(key)}: {_canonical(item)}" for key, item in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_canonical(item) for item in value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_canonical(item) for item in value) + "]"
    if isinstance(value, np.ndarray | np.generic):
        return _canonical(value.tolist())
    raise ValueError(
        f"This game's state holds a {type(value).__name__}, so its boards can't be told apart; set split_by to "
        "'seed_leaky', which does not compare boards."
    )


def _set_random_state(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
