"""Games in lockstep: who is asked when, what both views read at every turn, and when a game stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from datamodules.example import Example, TurnOutcome
from lightning_modules.comparison import compare_episodes, token_means
from lightning_modules.rollout.engine import Completion, SamplingSpec
from lightning_modules.rollout.episodes import all_turns, count_games, play_episodes, turn_seed
from lightning_modules.scoring import ViewScores
from lightning_modules.views import ViewRenderer, ViewSpec

TURNS = (
    {"role": "user", "content": "Which continent is Lima in?"},
    {"role": "assistant", "content": "South America"},
)
MARK = "<|im_start|>user\n"
ANSWERS = "<|im_end|>\n<|im_start|>assistant\n"


class Countdown:
    """A game that is won by saying "down" so many times; "stop" ends it, anything else is refused."""

    def __init__(self, start: int, max_turns: int = 9) -> None:
        self.left, self.max_turns = start, max_turns
        self.heard: list[str] = []

    @property
    def won(self) -> bool:
        return self.left == 0

    def step(self, completion: str) -> TurnOutcome:
        self.heard.append(completion)
        valid = completion in ("down", "stop")
        self.left -= completion == "down"
        return TurnOutcome(f"Now {self.left}.", self.won or completion == "stop", valid)


class ScriptedEngine:
    """Answers each prompt by a function of its text; keeps what it was asked."""

    def __init__(self, tokenizer, reply: Callable[[str], str]) -> None:
        self.tokenizer, self.reply = tokenizer, reply
        self.rounds: list[tuple[list[str], int]] = []

    def generate(self, prompts, sampling, seed):
        texts = [self.tokenizer.decode(prompt) for prompt in prompts]
        self.rounds.append((texts, seed))
        return [self._completion(self.reply(text)) for text in texts]

    def _completion(self, text):
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return Completion([*ids, self.tokenizer.eos_token_id], text, finished=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def play(tokenizer):
    def run(games, reply=lambda text: "down", context="Say down.", view="no_context", positions=2048, **spec):
        engine = ScriptedEngine(tokenizer, reply)
        renderer = ViewRenderer(tokenizer, ViewSpec(**spec), positions, 8)
        examples = [
            Example(f"item-{i}", ({"role": "user", "content": f"Game {i}?"},), context, "win")
            for i in range(len(games))
        ]
        return play_episodes(examples, games, renderer, engine, SamplingSpec(8), 7, view), engine

    return run


def test_unfinished_games_go_to_the_engine_together(play):
    episodes, engine = play([Countdown(1), Countdown(3), Countdown(2)])
    asked = [[next(i for i in range(3) if f"Game {i}?" in text) for text in texts] for texts, _ in engine.rounds]
    assert asked == [[0, 1, 2], [1, 2], [1]]
    assert [len(episode.turns) for episode in episodes] == [1, 3, 2]
    assert [episode.example.id for episode in episodes] == ["item-0", "item-1", "item-2"]


def test_every_round_has_a_seed_of_its_own_and_the_first_the_given_one(play):
    _, engine = play([Countdown(3)])
    seeds = [seed for _, seed in engine.rounds]
    assert seeds == [turn_seed(7, turn) for turn in range(3)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("slot", "context", "head"),
    [
        ("system", "Say down.", "<|im_start|>system\nSay down.<|im_end|>\n" + MARK),
        ("user", "Say down.", MARK + "Say down.\n\n"),
        ("leading_turns", TURNS, f"{MARK}{TURNS[0]['content']}{ANSWERS}South America<|im_end|>\n{MARK}"),
    ],
)
def test_both_views_read_the_same_conversation_at_every_turn(play, slot, context, head):
    (episode,), engine = play([Countdown(3)], context=context, context_slot=slot)
    conversation = f"Game 0?{ANSWERS}"
    for number, turn in enumerate(episode.turns):
        assert turn.prompts.no_context_text == MARK + conversation
        assert turn.prompts.with_context_text == head + conversation  # the context stays where it was
        assert engine.rounds[number][0] == [turn.prompts.no_context_text]
        conversation += f"down<|im_end|>\n{MARK}Now {2 - number}.{ANSWERS}"
    assert len({turn.prompts.context_prefix for turn in episode.turns}) == 1
    assert episode.turns[0].prompts.context_prefix_length > 0


def test_a_template_that_strips_reasoning_strips_it_in_both_views(tokenizer, play):
    whole = tokenizer.chat_template
    tokenizer.chat_template = whole.replace("message['content']", "message['content'].split('</think>')[-1]")
    try:
        (episode,), _ = play([Countdown(9, max_turns=2)], reply=lambda text: "<think>hm</think>down")
    finally:
        tokenizer.chat_template = whole
    pair = episode.turns[1].prompts
    assert "assistant\ndown<|im_end|>" in pair.no_context_text
    assert pair.with_context_text.endswith(pair.no_context_text)
    assert "think" not in pair.with_context_text
    assert episode.environment.heard == ["<think>hm</think>down"] * 2


def test_the_with_context_view_is_played_from_its_own_prompts(play):
    (episode,), engine = play([Countdown(2)], view="with_context")
    assert [texts for texts, _ in engine.rounds] == [[turn.prompts.with_context_text] for turn in episode.turns]
    assert {turn.view for turn in episode.turns} == {"with_context"}


def test_each_episode_keeps_its_view_to_its_end(play):
    views = ["with_context", "no_context", "with_context"]
    episodes, engine = play([Countdown(2), Countdown(3), None], view=views)
    assert [[turn.view for turn in episode.turns] for episode in episodes] == [
        ["with_context"] * 2, ["no_context"] * 3, ["with_context"]
    ]  # fmt: skip
    asked = [text for texts, _ in engine.rounds for text in texts]
    expected = [turn.prompts.text(turn.view) for episode in episodes for turn in episode.turns]
    assert sorted(asked) == sorted(expected)
    assert sum("Say down." in text for text in asked) == 3


def test_games_stop_when_won_lost_or_at_their_limit(play):
    replies = {"Game 0?": "down", "Game 1?": "stop", "Game 2?": "down"}
    episodes, _ = play(
        [Countdown(3, max_turns=3), Countdown(3), Countdown(4, max_turns=3)],
        reply=lambda text: next(reply for question, reply in replies.items() if question in text),
    )
    assert [episode.grade.reason for episode in episodes] == ["correct", "lost", "unfinished"]
    assert [len(episode.turns) for episode in episodes] == [3, 1, 3]


def test_a_question_is_one_turn_and_is_not_graded(play):
    (question, game), engine = play([None, Countdown(2)])
    assert len(question.turns) == 1
    assert question.grade is None
    assert question.completion is question.turns[0].completion
    assert len(engine.rounds[1][0]) == 1
    assert count_games([question, game]) == count_games([game])
    assert count_games([question]).metrics() == {}


def test_invalid_moves_are_turns_and_are_counted(play):
    replies = iter(["down", "up", "left", "down", "down"])
    episodes, _ = play([Countdown(3, max_turns=4)], reply=lambda text: next(replies))
    counts = count_games(episodes)
    assert counts == (1, 0, 4, 2)
    assert counts.metrics() == {"games/win_rate": 0.0, "games/mean_turns": 4.0, "games/invalid_move_rate": 0.5}


def test_a_games_completion_is_all_its_tokens_and_its_transcript(play, tokenizer):
    (episode,), _ = play([Countdown(2)])
    down = [*tokenizer.encode("down", add_special_tokens=False), tokenizer.eos_token_id]
    assert episode.completion == Completion(
        down * 2, "Assistant: down\nUser: Now 1.\nAssistant: down\nUser: Now 0.", finished=True
    )
    assert [turn.rollout.completion_ids for turn in all_turns([episode])] == [down] * 2


def test_one_turn_cut_at_the_token_limit_makes_the_game_so(play):
    (episode,), _ = play([Countdown(2)])
    cut = episode.turns[0].completion
    episode.turns[0] = replace(episode.turns[0], completion=Completion(cut.token_ids, "", False))
    assert not episode.completion.finished


def test_a_conversation_over_the_limit_is_refused_not_truncated(play):
    with pytest.raises(
        ValueError, match=r"Item 'item-0' after \d+ turns: its prompt has \d+ tokens .* 112 are allowed"
    ):
        play([Countdown(50, max_turns=50)], positions=120)


def test_the_comparison_takes_the_games_verdicts_and_weighs_turns_by_tokens(play):
    replies = iter(["down", "a longer answer that is no move", "down"])
    (without,), _ = play([Countdown(2)], reply=lambda text: next(replies))
    (with_,), _ = play([Countdown(2)], reply=lambda text: "stop")

    (kl,) = token_means([0.25, 0.75, 0.5], [[turn.rollout for turn in without.turns]])
    lengths = [len(turn.completion.token_ids) for turn in without.turns]
    assert len(set(lengths)) == 2
    assert kl == pytest.approx((0.25 * lengths[0] + 0.75 * lengths[1] + 0.5 * lengths[2]) / sum(lengths))
    comparison = compare_episodes(without.example, [without], [with_], ViewScores(kl, -1.5))
    assert (comparison.kl, comparison.log_probability) == (kl, -1.5)
    assert comparison.grade_no_context.correct
    assert comparison.grade_with_context.reason == "lost"
    assert comparison.no_context_turns == without.turns
    assert comparison.prompts == without.turns[0].prompts


def test_a_player_that_searches_wins_every_lake(tokenizer):
    pytest.importorskip("textarena", reason="games need the extra `games` (textarena)")
    from datamodules.game_boards import MOVES, FrozenLake, fewest_moves
    from datamodules.games import GameDataModule

    def reply(text):
        board = FrozenLake.from_text(text[text.rindex("Current Board") :])
        for move, after in ((m, b) for m in MOVES for b in [step(board, m)] if b is not None):
            if fewest_moves(after, 9) == fewest_moves(board, 9) - 1:
                return f"Not [up] but [{move}]"
        raise AssertionError(board)

    def step(board, move):
        cell = (board.player[0] + MOVES[move][0], board.player[1] + MOVES[move][1])
        return next((b for b in board.successors() if b.player == cell), None)

    data = GameDataModule(
        "FrozenLake-v0", {"size": 3, "num_holes": 2}, max_turns=5, num_seeds=200, num_val=4, num_test=4
    )
    examples = data.examples("train")
    episodes = play_episodes(
        examples,
        [data.environment(example) for example in examples],
        ViewRenderer(tokenizer, ViewSpec(), 8192, 16),
        ScriptedEngine(tokenizer, reply),
        SamplingSpec(16),
        0,
    )
    assert count_games(episodes).metrics() == {
        "games/win_rate": 1.0,
        "games/mean_turns": 4.0,
        "games/invalid_move_rate": 0.0,
    }
