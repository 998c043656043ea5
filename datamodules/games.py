"""`GameDataModule`: text games of several turns, with the rules taken out of the prompt and put into the context.

The games are TextArena's (0.7.4, MIT, installed separately). The settings of arXiv:2606.11627 are FrozenLake 3x3 with 2
holes and Sokoban 6x6 with 1 box, at most 5 turns.

What the two views show. TextArena opens a game with its rules. They are left out of both views, and in their place
stands what OPCD's code (arXiv:2602.12275) leaves of them, in our words (`GRID_INSTRUCTION`): that P is the player, that
a turn is one step, the names of the moves and how to write them, and that a goal is to be reached; not what holes,
boxes, targets and walls are or do. TextArena's boards and replies are shown as they are. The privileged context is
experience from earlier games: ``frozen_lake_experience``, ``sokoban_experience``, or your file. Departures from OPCD:
the prompt names the turn limit, and the conversation so far is turns of the chat (with all that the player wrote),
where OPCD packs earlier boards and moves into a single user turn.

Splits are by board. TextArena numbers games by seed, and different seeds open the same board: 2,000 seeds of FrozenLake
3x3 with 2 holes open 19 boards, so that a split by seed (the published protocol) tests on boards that were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.base import ContextDataModule, Split, require_int
from datamodules.contexts import load_context
from datamodules.example import Environment, Example, Grade, Message, grade_game
from datamodules.game_boards import ACTIONS, PARSERS, fewest_moves, parse_board
from datamodules.sampling import shuffled
from datamodules.textarena_game import OptionValue, TextArenaGame

GRID_INSTRUCTION = (
    "You are the player on this grid, shown as P. In each turn you move by one step: [up], [down], [left] or [right]. "
    "Reach the goal in as few steps as possible; you have at most {max_turns} turns. Write your move in square "
    "brackets; if you write several, the last one counts."
)
"""For the games of `game_boards`."""

INSTRUCTION = (
    "Play this game; you have at most {max_turns} turns. Write your action in square brackets; if you write several, "
    "the last one counts."
)
"""For any other game."""


@dataclass(frozen=True, slots=True)
class BoardStatistics:
    """What the enumerated seeds hold. Shares are fractions of the distinct boards."""

    num_seeds: int
    num_boards: int
    """Distinct opening boards."""
    solvable_share: float | None
    """Boards that can be won within the turn limit; None where the rules are not known here (see `game_boards`)."""
    one_move_share: float | None
    """Boards that a single move wins."""
    num_leaked: int
    """Validation and test items whose board is also trained on; 0 unless ``split_by`` is ``seed_leaky``."""


@dataclass(frozen=True, slots=True)
class _Opening:
    """The opening of one seed."""

    seed: int
    observation: str
    board: str
    """Equal for seeds that open the same game: what is seen of it and, where it can be compared, what is hidden."""
    num_moves: int | None
    """Fewest moves that win within the turn limit; None: none do, or the rules are not known here."""


class GameDataModule(ContextDataModule):
    """Single-player text games, one item per distinct opening board.

    `Example.id` is ``env_id:seed``, of the first seed that opens the board; `Example.meta` has ``env_id``, ``seed`` and
    ``num_moves`` (fewest moves that win within the turn limit, or None). `environment` opens the item's game.

    FrozenLake 3x3 with 2 holes has 19 boards: too few for a harm rate, which needs 20 won games. The default, 4x4 with
    3 holes, has 333.

    Args:
        env_id: TextArena's id of a single-player game that needs no network, such as ``FrozenLake-v0``, ``Sokoban-v0``.
        env_options: The game's own arguments: ``{size: 3, num_holes: 2}``, ``{dim_room: [6, 6], num_boxes: 1}``.
            None: TextArena's defaults, for FrozenLake 4x4 with 3 holes.
        context: Name or path of the privileged context of every item, as `load_context` takes it. None: no context.
        max_turns: Turns after which an unfinished game counts as lost. The paper: 5, in which no board of FrozenLake
            4x4 can be won: all need 6, hence 8 here.
        num_seeds: Seeds 0 to num_seeds - 1 are opened to find boards; Sokoban takes 3 to 10 ms each.
        num_train: Training items; None: all that validation and test leave.
        num_val: Validation items.
        num_test: Test items.
        split_by: ``board``: no board is in two splits. ``seed_leaky``: the published protocol, one item per seed, whose
            boards recur across splits; `statistics` counts them.
        only_solvable: Leave out boards that cannot be won within the turn limit; the published protocol keeps them.
        shows_rules: Both views begin with the game's own rules: for games that are not to be found out.
        split_seed: Which boards go where.
        batch_size: Games per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Games per evaluation batch, on each rank.
        seed: Order of the training items.
        num_workers: Processes per loader; 0 reads in the main process.

    Raises:
        ValueError: if a number is out of range. From `setup`: if the game or an option is unknown, it has fewer boards
            than asked for, or none of them can be won within the turn limit.
        FileNotFoundError: from `setup`, if there is no such context.
        ImportError: from `setup`, if `textarena` is not installed.
    """

    def __init__(
        self,
        env_id: str = "FrozenLake-v0",
        env_options: dict[str, OptionValue] | None = None,
        context: str | None = "frozen_lake_experience",
        max_turns: int = 8,
        num_seeds: int = 2000,
        num_train: int | None = None,
        num_val: int = 64,
        num_test: int = 64,
        split_by: Literal["board", "seed_leaky"] = "board",
        only_solvable: bool = False,
        shows_rules: bool = False,
        split_seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Check the numbers; no game is opened before `setup`."""
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        self.env_id = env_id
        self.licences = {env_id: "MIT (TextArena)"}
        self.env_options: Mapping[str, OptionValue] = env_options or {}
        self.context = context
        self.max_turns = require_int("max_turns", max_turns, minimum=1)
        self.num_seeds = require_int("num_seeds", num_seeds, minimum=3)
        self.num_train = None if num_train is None else require_int("num_train", num_train, minimum=1)
        self.num_val = require_int("num_val", num_val, minimum=1)
        self.num_test = require_int("num_test", num_test, minimum=1)
        if split_by not in ("board", "seed_leaky"):
            raise ValueError(f"split_by={split_by!r} is neither 'board' nor 'seed_leaky'.")
        self.split_by = split_by
        self.only_solvable, self.shows_rules = only_solvable, shows_rules
        self.rules_are_known = env_id.split("-")[0] in PARSERS
        self.split_seed = require_int("split_seed", split_seed, minimum=0)
        if only_solvable and not self.rules_are_known:
            known = ", ".join(PARSERS)
            raise ValueError(f"only_solvable=True needs a game whose rules are known here ({known}), not {env_id!r}.")
        self._statistics: BoardStatistics | None = None

    def load_splits(self) -> dict[Split, list[Example]]:
        """Open every seed, then deal the boards (or, leaky, the seeds) out to the splits."""
        context = None if self.context is None else load_context(self.context)
        openings = self._open_seeds()
        boards = list({opening.board: opening for opening in reversed(openings)}.values())[::-1]
        items = openings if self.split_by == "seed_leaky" else boards
        if self.rules_are_known and all(board.num_moves is None for board in boards):
            raise ValueError(
                f"{self.env_id} {dict(self.env_options)}: none of {len(boards)} boards can be won within "
                f"max_turns={self.max_turns}; raise it, or choose a smaller game through env_options."
            )
        if self.only_solvable:
            items = [opening for opening in items if opening.num_moves is not None]
        splits = self._deal(items)
        self._statistics = self._count(boards, splits)
        return {split: [self._example(opening, context) for opening in dealt] for split, dealt in splits.items()}

    @property
    def statistics(self) -> BoardStatistics:
        """What the enumerated seeds hold; loads the data if need be."""
        self.setup()
        assert self._statistics is not None
        return self._statistics

    def summary(self) -> str:
        """Return the base class's table, and what the boards are like."""
        stats = self.statistics
        found = f"{self.env_id} {dict(self.env_options)}: {stats.num_boards} distinct boards in {stats.num_seeds} seeds"
        if stats.solvable_share is not None and stats.one_move_share is not None:
            found += f", {stats.solvable_share:.1%} can be won within {self.max_turns} moves"
            found += f", {stats.one_move_share:.1%} in one"
        lines = [super().summary(), found]
        if self.split_by == "seed_leaky":
            lines.append(
                f"LEAKY: {stats.num_leaked} of {self.num_val + self.num_test} evaluated items have a board "
                "that is trained on."
            )
        return "\n".join(lines)

    def environment(self, example: Example) -> Environment:
        """Open the item's game afresh."""
        seed = example.meta["seed"]
        assert isinstance(seed, int)
        return self._open(seed)

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade a lone completion as the first turn of its game: ``unfinished``, unless that turn ends it.

        A game of several turns is graded by playing it: see `environment`.
        """
        game = self.environment(example)
        outcome = game.step(completion)
        return grade_game(won=game.won, done=outcome.done)

    def _open(self, seed: int) -> TextArenaGame:
        actions = ACTIONS if self.rules_are_known else None
        return TextArenaGame(self.env_id, seed, self.env_options, self.max_turns, actions, self.shows_rules)

    def _open_seeds(self) -> list[_Opening]:
        moves: dict[str, int | None] = {}
        openings = []
        compares = self.split_by == "board" or self.rules_are_known
        for seed in range(self.num_seeds):
            game = self._open(seed)
            observation = game.first_observation
            if observation not in moves:
                board = parse_board(self.env_id, observation)
                moves[observation] = None if board is None else fewest_moves(board, self.max_turns)
            openings.append(
                _Opening(seed, observation, game.initial_state if compares else observation, moves[observation])
            )
        return openings

    def _deal(self, items: Sequence[_Opening]) -> dict[Split, list[_Opening]]:
        num_train = 1 if self.num_train is None else self.num_train
        needed = num_train + self.num_val + self.num_test
        if len(items) < needed:
            unit = "seeds" if self.split_by == "seed_leaky" else "distinct boards"
            raise ValueError(
                f"{self.env_id} {dict(self.env_options)} has {len(items)} {unit} in num_seeds={self.num_seeds}, but "
                f"num_train={self.num_train}, num_val={self.num_val} and num_test={self.num_test} need {needed}; lower "
                "these, raise num_seeds, or choose a game with more boards through env_options."
            )
        order = shuffled(list(items), np.random.default_rng(self.split_seed))
        test, rest = order[: self.num_test], order[self.num_test :]
        val, train = rest[: self.num_val], rest[self.num_val :]
        return {"train": train[: self.num_train], "val": val, "test": test}

    def _count(self, boards: Sequence[_Opening], splits: Mapping[Split, Sequence[_Opening]]) -> BoardStatistics:
        known = self.rules_are_known
        solvable = sum(board.num_moves is not None for board in boards) / len(boards)
        one_move = sum(board.num_moves == 1 for board in boards) / len(boards)
        trained = {opening.board for opening in splits["train"]}
        leaked = sum(opening.board in trained for opening in [*splits["val"], *splits["test"]])
        return BoardStatistics(
            self.num_seeds, len(boards), solvable if known else None, one_move if known else None, leaked
        )

    def _example(self, opening: _Opening, context: str | tuple[Message, ...] | None) -> Example:
        template = GRID_INSTRUCTION if self.rules_are_known else INSTRUCTION
        instruction = template.format(max_turns=self.max_turns)
        return Example(
            id=f"{self.env_id}:{opening.seed}",
            prompt=(Message(role="user", content=f"{instruction}\n\n{opening.observation}"),),
            privileged_context=context,
            answer="win",
            source=self.env_id,
            meta={"env_id": self.env_id, "seed": opening.seed, "num_moves": opening.num_moves},
        )
