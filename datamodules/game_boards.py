"""Boards of grid games as text, and the fewest moves that win them: breadth-first search over the games' rules.

The rules are TextArena's (0.7.4), written again over tuples because a search through its own objects is a hundred times
slower; ``tests/unit/test_games.py`` holds the two against each other by playing every sequence of moves. A search
makes valid moves only: an invalid one costs a turn and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Cell = tuple[int, int]
"""Row and column, from 0."""

MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}

ACTIONS = frozenset([*MOVES, "w", "a", "s", "d"])
"""What the games accept as an action: the moves, and their keys."""


@dataclass(frozen=True, slots=True)
class FrozenLake:
    """A lake: the player walks from its cell to the goal; a hole ends the game."""

    player: Cell
    goal: Cell
    frozen: frozenset[Cell]
    """Cells that can be walked on, the goal included."""

    @classmethod
    def from_text(cls, observation: str) -> FrozenLake:
        """Read the board between bars: ``|  P  |     |  H  |``."""
        rows = [line.strip("|").split("|") for line in observation.splitlines() if line.startswith("|")]
        cells = {(r, c): cell.strip() for r, row in enumerate(rows) for c, cell in enumerate(row)}
        frozen = frozenset(cell for cell, symbol in cells.items() if symbol != "H")
        return cls(_only(cells, "P"), _only(cells, "G"), frozen)

    @property
    def won(self) -> bool:
        """The player stands on the goal."""
        return self.player == self.goal

    def successors(self) -> list[FrozenLake]:
        """Boards after each valid move that does not lose."""
        targets = (_add(self.player, step) for step in MOVES.values())
        return [FrozenLake(target, self.goal, self.frozen) for target in targets if target in self.frozen]


@dataclass(frozen=True, slots=True)
class Sokoban:
    """A warehouse: the player pushes every box onto a target, one box at a time, and never pulls."""

    player: Cell
    boxes: frozenset[Cell]
    targets: frozenset[Cell]
    floor: frozenset[Cell]
    """Cells that are no wall, whatever stands on them."""

    @classmethod
    def from_text(cls, observation: str) -> Sokoban:
        """Read the board: ``#`` wall, ``_`` floor, ``O`` target, ``X`` box, ``√`` box on a target, ``P`` player.

        The player hides a target below it. There are as many targets as boxes, so a missing one is the player's cell.
        """
        rows = [line.split() for line in observation.splitlines() if line.startswith("#")]
        cells = {(r, c): symbol for r, row in enumerate(rows) for c, symbol in enumerate(row)}
        player = _only(cells, "P")
        boxes = frozenset(cell for cell, symbol in cells.items() if symbol in "X√")
        targets = frozenset(cell for cell, symbol in cells.items() if symbol in "O√")
        if len(targets) < len(boxes):
            targets |= {player}
        return cls(player, boxes, targets, frozenset(cell for cell, symbol in cells.items() if symbol != "#"))

    @property
    def won(self) -> bool:
        """Every box stands on a target."""
        return self.boxes == self.targets

    def successors(self) -> list[Sokoban]:
        """Boards after each valid move."""
        boards = []
        for step in MOVES.values():
            target = _add(self.player, step)
            if target in self.boxes:
                pushed = _add(target, step)
                if pushed in self.floor and pushed not in self.boxes:
                    boxes = self.boxes - {target} | {pushed}
                    boards.append(Sokoban(target, boxes, self.targets, self.floor))
            elif target in self.floor:
                boards.append(Sokoban(target, self.boxes, self.targets, self.floor))
        return boards


Board = FrozenLake | Sokoban

PARSERS: dict[str, Callable[[str], Board]] = {"FrozenLake": FrozenLake.from_text, "Sokoban": Sokoban.from_text}
"""By the first part of a TextArena id: the games whose rules are known here."""


def parse_board(env_id: str, observation: str) -> Board | None:
    """Return the board that an observation shows, or None for a game whose rules are not known here.

    Args:
        env_id: a TextArena id such as ``FrozenLake-v0``.
        observation: the game's first observation.

    Raises:
        ValueError: if the observation shows no board of that game.
    """
    parser = PARSERS.get(env_id.split("-")[0])
    return None if parser is None else parser(observation)


def fewest_moves(board: Board, max_moves: int) -> int | None:
    """Return the length of the shortest win, or None if `max_moves` moves do not suffice."""
    reached: set[Board] = {board}
    frontier: set[Board] = {board}
    for moves in range(max_moves + 1):
        if any(candidate.won for candidate in frontier):
            return moves
        frontier = {successor for candidate in frontier for successor in candidate.successors()} - reached
        reached |= frontier
    return None


def _only(cells: dict[Cell, str], symbol: str) -> Cell:
    """Return the one cell with `symbol`."""
    found = [cell for cell, own in cells.items() if own == symbol]
    if len(found) != 1:
        raise ValueError(f"The board shows {len(found)} cells {symbol!r} where there must be one: {cells}.")
    return found[0]


def _add(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]
