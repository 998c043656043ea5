"""Games: their boards and splits, the rules written again against TextArena's, and what TextArena must not touch."""

from __future__ import annotations

import copy
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("textarena", reason="games need the extra `games` (textarena)")

from datamodules.example import Example, grade_game
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


def test_the_default_lake_has_333_boards_all_won_in_6_moves_so_5_turns_are_refused():
    stats = GameDataModule(max_turns=6).statistics
    assert (stats.num_boards, stats.solvable_share, stats.one_move_share) == (333, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"none of \d+ boards can be won within max_turns=5; raise it"):
        GameDataModule(max_turns=5, num_seeds=500).setup()


def test_splits_share_no_board_and_no_id(small_lake):
    splits = {split: small_lake.examples(split) for split in ("train", "val", "test")}
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 11, "val": 4, "test": 4}
    boards = Counter(board_of(example) for examples in splits.values() for example in examples)
    assert len(boards) == 19
    assert set(boards.values()) == {1}


def test_the_published_split_leaks_and_says_so():
    data = lake(split_by="seed_leaky", num_seeds=200, num_val=40, num_test=40)
    assert data.statistics.num_leaked == 80
    assert "LEAKY: 80 of 80 evaluated items have a board that is trained on." in data.summary()


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
    """Every sequence of up to 5 valid moves, played in TextArena itself."""
    found = set()
    for seed in range(12):
        game = TextArenaGame(env_id, seed, options, 5)
        board = parse_board(env_id, game.first_observation)
        assert board is not None
        found.add(fewest := fewest_moves(board, 5))
        assert fewest == _brute_force(game, 5)
    assert found == ({4} if env_id == "FrozenLake-v0" else {1, 2, 4, 5, None})


def _brute_force(game, max_moves):
    """Fewest moves that win, by playing copies of the real game."""
    if max_moves == 0:
        return None
    wins = []
    for move in MOVES:
        after = copy.deepcopy(game)
        outcome = after.step(f"[{move}]")
        if after.won:
            return 1
        if outcome.valid and not outcome.done:
            wins.append(_brute_force(after, max_moves - 1))
    return min((1 + moves for moves in wins if moves is not None), default=None)


@settings(deadline=None)
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


def test_a_random_player_wins_an_eighth_of_sokoban():
    """docs/games.md: 12.8 % of 2,704 games, more than some models that are to be taught."""
    data = GameDataModule("Sokoban-v0", ROOM, None, 5, num_seeds=300, num_val=1, num_test=1)
    draws = random.Random(0)
    won = [_plays_at_random(data.environment(example), draws) for example in data.examples("train")]
    assert 0.08 < np.mean(won) < 0.24


def _plays_at_random(game, draws):
    for _ in range(game.max_turns):
        if game.step(f"[{draws.choice(MOVES)}]").done:
            break
    return game.won


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
    for rule in ("Hole", "hole", "Objective", "Welcome", "[GAME]", "'H'", "win"):
        assert rule not in prompt
    assert "You are solving the Sokoban puzzle" in GameDataModule(
        "Sokoban-v0", ROOM, None, 5, num_seeds=30, num_val=1, num_test=1, shows_rules=True
    ).examples("test")[0].prompt[-1]["content"]  # fmt: skip


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
    assert small_lake.grade(example, "[right]").reason in ("lost", "unfinished")
    straight = GameDataModule("Sokoban-v0", ROOM, None, 5, num_seeds=60, num_val=1, num_test=1)
    one_move = next(item for item in straight.examples("train") if item.meta["num_moves"] == 1)
    grades = [straight.grade(one_move, f"[{move}]") for move in MOVES]
    assert [(grade.parsed, grade.reason) for grade in grades].count(("win", "correct")) == 1
    assert [(grade.parsed, grade.reason) for grade in grades].count((None, "unfinished")) == 3


@pytest.mark.parametrize(
    ("won", "done", "reason"), [(True, True, "correct"), (False, True, "lost"), (False, False, "unfinished")]
)
def test_a_game_is_won_lost_or_unfinished(won, done, reason):
    assert grade_game(won=won, done=done).reason == reason


def test_unknown_games_and_options_are_refused():
    with pytest.raises(ValueError, match="env_id='Frozen'"):
        TextArenaGame("Frozen", 0, {}, 5)
    with pytest.raises(ValueError, match=r"env_options=.*holes.*can't be opened"):
        TextArenaGame("FrozenLake-v0", 0, {"holes": 2}, 5)
    with pytest.raises(ValueError, match="game for one player"):
        TextArenaGame("TicTacToe-v0", 0, {}, 5)


def test_games_that_differ_only_in_what_is_hidden_are_different_boards():
    data = GameDataModule("GuessTheNumber-v0", None, None, 5, num_seeds=300, num_val=4, num_test=4)
    assert data.statistics.num_boards == 20  # numbers from 1 to 20
    assert len({board_of(item) for item in data.examples("train")}) == 1


def test_a_state_that_cannot_be_compared_says_what_to_do():
    with pytest.raises(ValueError, match=r"_Vehicle.*split_by to 'seed_leaky'"):
        GameDataModule("RushHour-v0", None, None, 5, num_seeds=3, num_val=1, num_test=1).setup()


def test_any_offline_game_runs_through_the_same_class():
    with pytest.raises(ValueError, match=r"only_solvable=True needs.*FrozenLake, Sokoban.*TowerOfHanoi"):
        GameDataModule("TowerOfHanoi-v0", only_solvable=True)
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


@settings(deadline=None)
@given(completion=st.text(st.sampled_from("[]updownleft \n√é")))
def test_no_completion_makes_a_turn_fail(completion):
    assert TextArenaGame("FrozenLake-v0", 1, LAKE, 5).step(completion).observation.strip()
