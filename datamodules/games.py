"""`GameDataModule`: text games of several turns, with the rules taken out of the prompt and put into the context.

The games are TextArena's (0.7.4; Apache-2.0 or MIT by game, installed separately). The settings of arXiv:2606.11627 are
FrozenLake 3x3 with 2 holes and Sokoban 6x6 with 1 box, at most 5 turns.

What the two views show. The no-context prompt is `INSTRUCTION` and the opening board: how to write a move and how many
turns there are, but neither the rules nor the goal nor what the symbols mean. TextArena's own opening prompt, which
explains all that, is never shown; its boards and replies are shown as they are, the list of actions included. The
privileged context is experience from earlier games: ``frozen_lake_experience``, ``sokoban_experience``, or your file.

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
from datamodules.example import Environment, Example, Grade, Message
from datamodules.game_boards import ACTIONS, PARSERS, fewest_moves, parse_board
from datamodules.sampling import shuffled
from datamodules.textarena_game import OptionValue, TextArenaGame

INSTRUCTION = (
    "Play this game. You make one move per turn and have at most {max_turns} turns. Write your move in square "
    "brackets, for example [move]; if you write several, the last one counts."
)


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
        num_seeds: Seeds 0 to num_seeds - 1 are opened to find boards; Sokoban takes about 5 ms each.
        num_train: Training items; None: all that validation and test leave.
        num_val: Validation items.
        num_test: Test items.
        split_by: ``board``: no board is in two splits. ``seed_leaky``: the published protocol, one item per seed, whose
            boards recur across splits; `statistics` counts them.
        only_solvable: Leave out boards that cannot be won within the turn limit; the published protocol keeps them.
        split_seed: Which boards go where.
        batch_size: Games per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Games per evaluation batch, on each rank.
        seed: Order of the training items.
        num_workers: Processes per loader; 0 reads in the main process.

    Raises:
        ValueError: if a number is out of range. From `setup`: if the game or an option is unknown, or it has fewer
            boards than asked for.
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
        split_seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Check the numbers; no game is opened before `setup`."""
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        self.env_id = env_id
        self.licences = {env_id: "TextArena, Apache-2.0 or MIT by game"}
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
        self.only_solvable = only_solvable
        self.split_seed = require_int("split_seed", split_seed, minimum=0)
        self._statistics: BoardStatistics | None = None

    def load_splits(self) -> dict[Split, list[Example]]:
        """Open every seed, then deal the boards (or, leaky, the seeds) out to the splits."""
        context = None if self.context is None else load_context(self.context)
        openings = self._open_seeds()
        boards = list({opening.observation: opening for opening in reversed(openings)}.values())[::-1]
        items = openings if self.split_by == "seed_leaky" else boards
        if self.only_solvable:
            self._require_known_rules(boards[0])
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
        lines = [super().summary(), f"{self.env_id} {dict(self.env_options)}: {stats.num_boards} distinct boards in "]
        lines[-1] += f"{stats.num_seeds} seeds"
        if stats.solvable_share is not None and stats.one_move_share is not None:
            lines[-1] += f", {stats.solvable_share:.1%} can be won within {self.max_turns} moves"
            lines[-1] += f", {stats.one_move_share:.1%} in one"
        if self.split_by == "seed_leaky":
            lines.append(
                f"LEAKY: {stats.num_leaked} of {self.num_val + self.num_test} evaluated boards are trained on."
            )
        return "\n".join(lines)

    def environment(self, example: Example) -> Environment:
        """Open the item's game afresh."""
        seed = example.meta["seed"]
        assert isinstance(seed, int)
        actions = ACTIONS if self.env_id.split("-")[0] in PARSERS else None
        return TextArenaGame(self.env_id, seed, self.env_options, self.max_turns, actions)

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade a lone completion as the first turn of its game; games of several turns are graded by playing them."""
        game = self.environment(example)
        game.step(completion)
        return grade_game(game)

    def _open_seeds(self) -> list[_Opening]:
        moves: dict[str, int | None] = {}
        openings = []
        for seed in range(self.num_seeds):
            observation = TextArenaGame(self.env_id, seed, self.env_options, self.max_turns).first_observation
            if observation not in moves:
                board = parse_board(self.env_id, observation)
                moves[observation] = None if board is None else fewest_moves(board, self.max_turns)
            openings.append(_Opening(seed, observation, moves[observation]))
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
        known = parse_board(self.env_id, boards[0].observation) is not None
        solvable = sum(board.num_moves is not None for board in boards) / len(boards)
        one_move = sum(board.num_moves == 1 for board in boards) / len(boards)
        trained = {opening.observation for opening in splits["train"]}
        leaked = sum(opening.observation in trained for opening in [*splits["val"], *splits["test"]])
        return BoardStatistics(
            self.num_seeds, len(boards), solvable if known else None, one_move if known else None, leaked
        )

    def _require_known_rules(self, opening: _Opening) -> None:
        if parse_board(self.env_id, opening.observation) is None:
            raise ValueError(f"only_solvable=True needs a game whose rules are known here; {self.env_id} is not one.")

    def _example(self, opening: _Opening, context: str | tuple[Message, ...] | None) -> Example:
        instruction = INSTRUCTION.format(max_turns=self.max_turns)
        return Example(
            id=f"{self.env_id}:{opening.seed}",
            prompt=(Message(role="user", content=f"{instruction}\n\n{opening.observation}"),),
            privileged_context=context,
            answer="win",
            source=self.env_id,
            meta={"env_id": self.env_id, "seed": opening.seed, "num_moves": opening.num_moves},
        )


def grade_game(game: Environment) -> Grade:
    """Return the grade of a game that has been played: won, or lost."""
    return Grade(correct=game.won, parsed=None, reason="correct" if game.won else "lost")
