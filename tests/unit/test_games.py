"""Games: their boards and splits, the rules written again against TextArena's, and what TextArena must not touch."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("textarena", reason="games need the extra `games` (textarena)")

from datamodules.example import Example
from datamodules.game_boards import ACTIONS, FrozenLake, Sokoban, fewest_moves, parse_board
from datamodules.games import GameDataModule
from datamodules.textarena_game import TextArenaGame, last_action

LAKE = {"size": 3, "num_holes": 2}
ROOM = {"dim_room": [6, 6], "num_boxes": 1}
MOVES = ("up", "down", "left", "right")


def lake(**arguments) -> GameDataModule:
    return GameDataModule(env_options=LAKE, max_turns=5, **({"num_val": 4, "num_test": 4} | arguments))


@pytest.fixture(scope="module")
def small_lake() -> GameDataModule:
    return lake(num_seeds=2000)


def board_of(example: Example) -> str:
    return example.prompt[-1]["content"].split("\n\n", 1)[1]


# ------------------------------------------------------------------------------------------------------------- boards


def test_the_small_lake_has_19_boards_all_won_in_4_moves(small_lake):
    stats = small_lake.statistics
    assert (stats.num_boards, stats.solvable_share, stats.num_leaked) == (19, 1.0, 0)
    examples = [example for split in ("train", "val", "test") for example in small_lake.examples(split)]
    assert {example.meta["num_moves"] for example in examples} == {4}
    assert "19 distinct boards in 2000 seeds, 100.0% can be won within 5 moves" in small_lake.summary()


def test_the_default_lake_has_333_boards_and_none_is_won_in_5_turns():
    stats = GameDataModule(max_turns=5).statistics
    assert (stats.num_boards, stats.solvable_share) == (333, 0.0)


def test_splits_share_no_board_and_no_id(small_lake):
    splits = {split: small_lake.examples(split) for split in ("train", "val", "test")}
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 11, "val": 4, "test": 4}
    boards = Counter(board_of(example) for examples in splits.values() for example in examples)
    assert len(boards) == 19
    assert set(boards.values()) == {1}


def test_the_published_split_leaks_and_says_so():
    data = lake(split_by="seed_leaky", num_seeds=200, num_val=40, num_test=40)
    assert data.statistics.num_leaked == 80
    assert "LEAKY: 80 of 80 evaluated boards are trained on." in data.summary()


def test_splits_are_the_same_in_every_run_and_differ_by_split_seed(small_lake):
    again, other = lake(), lake(split_seed=1)
    ids = [[example.id for example in data.examples("test")] for data in (small_lake, again, other)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_too_few_boards_are_refused_by_number():
    with pytest.raises(ValueError, match=r"19 distinct boards in num_seeds=500.*num_val=4 and num_test=64 need 69"):
        lake(num_seeds=500, num_test=64).setup()


def test_sokoban_some_boards_cannot_be_won_in_5_moves_and_many_need_one():
    data = GameDataModule("Sokoban-v0", ROOM, "sokoban_experience", 5, num_seeds=200, num_val=20, num_test=20)
    stats = data.statistics
    assert stats.solvable_share is not None
    assert 0.80 < stats.solvable_share < 0.92
    assert stats.one_move_share is not None
    assert 0.2 < stats.one_move_share < 0.4
    solvable = GameDataModule("Sokoban-v0", ROOM, None, 5, 200, num_val=20, num_test=20, only_solvable=True)
    assert all(example.meta["num_moves"] is not None for example in solvable.examples("train"))


@pytest.mark.parametrize(("env_id", "options"), [("FrozenLake-v0", LAKE), ("Sokoban-v0", ROOM)])
def test_the_search_agrees_with_playing_every_sequence_of_moves(env_id, options):
    """Up to 4 moves in TextArena itself, two boards out of each hundred seeds."""
    for seed in (0, 1, 100, 101):
        board = parse_board(env_id, TextArenaGame(env_id, seed, options, 4).first_observation)
        assert board is not None
        assert fewest_moves(board, 4) == _brute_force(env_id, options, seed, 4)


def _brute_force(env_id, options, seed, max_moves):
    wins = []
    for moves in itertools.product(MOVES, repeat=max_moves):
        game = TextArenaGame(env_id, seed, options, max_moves)
        for number, move in enumerate(moves, start=1):
            if game.step(f"[{move}]").done:
                wins += [number] * game.won
                break
    return min(wins, default=None)


@given(seed=st.integers(0, 300), moves=st.lists(st.sampled_from(MOVES), max_size=8))
def test_one_move_at_a_time_the_rules_are_textarenas(seed, moves):
    """The board after each valid move of real Sokoban is among the successors of the one before."""
    game = TextArenaGame("Sokoban-v0", seed, ROOM, 8)
    board = Sokoban.from_text(game.first_observation)
    for move in moves:
        outcome = game.step(f"[{move}]")
        if outcome.valid:
            after = Sokoban.from_text(outcome.observation)
            assert after in board.successors()
            board = after
            assert board.won == game.won
        if outcome.done:
            break


def test_a_target_below_the_player_is_found():
    board = Sokoban.from_text("# # # # #\n# P X _ #\n# # # # #")
    assert board.targets == {(1, 1)}
    assert fewest_moves(board, 5) is None


def test_boards_worked_by_hand():
    straight = FrozenLake.from_text("|  P  |  G  |\n|  H  |     |")
    assert (fewest_moves(straight, 5), fewest_moves(straight, 0)) == (1, None)
    push = Sokoban.from_text("# # # # # #\n# P X _ O #\n# # # # # #")
    assert (fewest_moves(push, 5), fewest_moves(push, 1)) == (2, None)


# -------------------------------------------------------------------------------------------------------------- games


def test_textarena_leaves_the_programs_random_state_alone():
    before = (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2])
    game = TextArenaGame("FrozenLake-v0", 3, LAKE, 5)
    game.step("[down]")
    TextArenaGame("2048-v0", 3, {}, 5).step("[left]")  # draws a tile at every turn
    assert (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before


def test_a_games_own_draws_do_not_depend_on_what_is_played_beside_it():
    alone, beside, other = (TextArenaGame("2048-v0", seed, {}, 5) for seed in (3, 3, 4))
    moves = ["[left]", "[up]", "[left]"]
    played = [alone.step(move).observation for move in moves]
    interleaved = []
    for move in moves:
        other.step("[down]")
        random.random()
        interleaved.append(beside.step(move).observation)
    assert interleaved == played


def test_the_prompt_shows_the_board_but_not_the_rules(small_lake):
    prompt = small_lake.examples("train")[0].prompt[-1]["content"]
    assert "at most 5 turns" in prompt
    assert "|  P  |" in prompt
    for rule in ("Hole", "hole", "Objective", "Welcome", "[GAME]", "win"):
        assert rule not in prompt


def test_invalid_moves_are_told_apart_and_two_in_a_row_lose():
    game = TextArenaGame("FrozenLake-v0", 0, LAKE, 5)  # start in the upper left corner
    outcomes = [game.step("[up]"), game.step("[down]"), game.step("no brackets"), game.step("[fly]")]
    assert [outcome.valid for outcome in outcomes] == [False, True, False, False]
    assert [outcome.done for outcome in outcomes] == [False, False, False, True]
    assert not game.won
    with pytest.raises(RuntimeError, match="over"):
        game.step("[up]")


def test_won_and_lost_games_are_graded_so(small_lake):
    example = small_lake.examples("test")[0]
    game = small_lake.environment(example)
    assert game.max_turns == 5
    assert not game.won
    assert small_lake.grade(example, "[right]").reason == "lost"


def test_unknown_games_and_options_are_refused():
    with pytest.raises(ValueError, match="env_id='Frozen'"):
        TextArenaGame("Frozen", 0, {}, 5)
    with pytest.raises(ValueError, match=r"env_options=.*holes.*can't be opened"):
        TextArenaGame("FrozenLake-v0", 0, {"holes": 2}, 5)
    with pytest.raises(ValueError, match="game for one player"):
        TextArenaGame("TicTacToe-v0", 0, {}, 5)


def test_any_offline_game_runs_through_the_same_class():
    data = GameDataModule("TowerOfHanoi-v0", None, None, 5, num_seeds=3, num_val=1, num_test=1, split_by="seed_leaky")
    assert data.statistics.solvable_share is None
    assert not data.environment(data.examples("test")[0]).step("[A C]").done


# ------------------------------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize(
    ("completion", "action"),
    [
        ("[up]", "up"),
        ("Not [up], rather [ Down ].", "Down"),
        ("[[left]]", "left"),
        ("up", None),
        ("[]", None),
        ("[up] and then [ ]", None),
        ("[right", None),
        ("[up] [right", "up"),
        ("", None),
    ],
)
def test_the_last_brackets_count(completion, action):
    assert last_action(completion) == action


def test_brackets_that_are_no_action_are_passed_over_where_the_actions_are_known():
    assert last_action("[down], so [1, 0] is next", ACTIONS) == "down"
    assert last_action("[Up] [fly]", ACTIONS) == "up"
    assert last_action("[fly]", ACTIONS) is None


@given(before=st.text(), action=st.text(st.characters(exclude_characters="[]"), min_size=1), after=st.text())
def test_whatever_stands_before_the_last_brackets_is_ignored(before, action, after):
    assert last_action(f"{before}[{action}]{after.replace(']', ')')}") == (action.strip() or None)


@given(completion=st.text(st.sampled_from("[]updownleft \n√é")))
def test_no_completion_makes_a_turn_fail(completion):
    assert TextArenaGame("FrozenLake-v0", 1, LAKE, 5).step(completion).observation.strip()
