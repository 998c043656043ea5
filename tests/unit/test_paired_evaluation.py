"""Graded pairs with a scripted module: what each context sees, how often items are answered, what a record holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from callbacks.paired_evaluation import ControlSpec, PairedEvaluation, paired_record
from callbacks.removability_metrics import summarise
from datamodules.example import Example, Grade
from lightning_modules.comparison import Answer, ComparisonSpec, ViewComparison
from lightning_modules.rollout.engine import Completion, SamplingSpec
from lightning_modules.views import PromptPair

CONTEXT = "Say yes. Say it loudly. Say it twice."


def example(number: int, context: str | None = CONTEXT) -> Example:
    return Example(f"item-{number}", ({"role": "user", "content": f"Question {number}?"},), context, "yes", group="g")


class ScriptedModule:
    """Answers the k-th sample of a view with a word that says so; keeps what it was asked."""

    completed_steps = 0

    def __init__(self, temperature: float = 0.0) -> None:
        self.evaluation = SamplingSpec(8, temperature=temperature)
        self.asked: list[tuple[list[Example], ComparisonSpec]] = []

    def compare_views(self, examples, spec=ComparisonSpec()):
        self.asked.append((list(examples), spec))
        return [self.compare(example, spec) for example in examples]

    def compare(self, example, spec):
        def answer(view, number):
            words = f"{view} {number} {example.privileged_context}"
            return Answer(Completion(list(range(len(words.split()))), words, number % 2 == 0))

        without = [answer("without", number) for number in range(spec.num_no_context)]
        with_ = [answer("with", number) for number in range(spec.num_with_context)]
        return ViewComparison(
            example, PromptPair(example.id, [1], [1], 0, "", ""), without[0].completion, with_[0].completion,
            kl=0.5 if spec.with_kl else None, log_probability=-0.25 if spec.with_kl else None,
            further_no_context=without[1:], further_with_context=with_[1:],
        )  # fmt: skip


def grade(example: Example, completion: str) -> Grade:
    right = completion.startswith("without 0")
    return Grade(right, completion.split()[0], "correct" if right else "wrong")


def run(module, batches, controls=(), **fields):
    merged: dict[str, list] = {}
    for batch in PairedEvaluation(**fields).run(module, grade, batches, controls):
        for context, records in batch.items():
            merged.setdefault(context, []).extend(records)
    return merged


def test_each_control_is_compared_with_the_very_same_no_context_answers():
    module = ScriptedModule()
    items = [example(0), example(1, None)]
    controls = [ControlSpec("truncated", fraction=0.3), ControlSpec("system_slot")]
    records = run(module, [items], controls)
    assert list(records) == ["original", "truncated", "system_slot"]
    (_, first), (truncated, second), (moved, third) = module.asked
    assert first.given is None
    assert [spec.keep_states for spec in (first, second, third)] == [True, False, False]
    assert [c.example for c in second.given] == items
    assert [c.example for c in third.given] == items
    assert [e.privileged_context for e in truncated] == ["Say yes.", None]
    assert [e.privileged_context for e in moved] == [CONTEXT, None]
    assert (first.context_slot, second.context_slot, third.context_slot) == (None, None, "system")


def test_a_record_holds_the_question_both_grades_and_the_cost():
    (record,) = run(ScriptedModule(), [[example(3)]])["original"]
    assert (record.id, record.group, record.question, record.answer) == ("item-3", "g", "Question 3?", "yes")
    assert (record.reason_no_context, record.reason_with_context) == ("correct", "wrong")
    assert (record.length_no_context, record.kl, record.num_kl_tokens) == (10, 0.5, 10)
    assert record.further_no_context == ()
    module = ScriptedModule()
    run(module, [[example(3)]])
    assert not module.asked[0][1].keep_states  # nobody would take them over
    (unscored,) = run(ScriptedModule(), [[example(3)]], with_kl=False)["original"]
    assert (unscored.kl, unscored.num_kl_tokens, unscored.log_probability_no_context) == (None, 0, None)


def test_the_log_probability_is_kept_of_an_answer_and_not_of_a_game():
    answered = ScriptedModule().compare(example(3), ComparisonSpec())
    assert paired_record(grade, answered).log_probability_no_context == -0.25
    verdict = Grade(False, None, "lost")
    played = replace(answered, grade_no_context=verdict, grade_with_context=verdict)
    assert paired_record(grade, played).log_probability_no_context is None


def test_sampled_decoding_draws_the_no_context_view_twice_for_the_noise_floor():
    module = ScriptedModule(temperature=1.0)
    records = run(module, [[example(n) for n in range(20)]])["original"]
    assert (module.asked[0][1].num_no_context, module.asked[0][1].num_with_context) == (2, 1)
    summary = summarise(records)
    assert (summary.self_flip, summary.num_self_flipped, summary.num_samples_no_context) == (1.0, 20, 2)
    assert summary.mean_accuracy_no_context == 0.5
    assert summary.mean_accuracy_with_context is None


def test_several_samples():
    records = run(ScriptedModule(temperature=0.7), [[example(0)]], num_samples=4)["original"]
    assert [sample.completion.split()[1] for sample in records[0].further_with_context] == ["1", "2", "3"]
    assert [sample.finished for sample in records[0].further_no_context] == [False, True, False]
    assert summarise(records).pass_at_k_no_context == {"1": 0.25, "2": 0.5, "4": 1.0}


def test_greedy_answers_are_not_drawn_twice():
    with pytest.raises(ValueError, match=r"num_samples is 3, but decoding is greedy .* set evaluation.temperature"):
        run(ScriptedModule(), [[example(0)]], num_samples=3)
    with pytest.raises(ValueError, match=r"num_samples is 0; it must be at least 1"):
        PairedEvaluation(num_samples=0)


def test_one_kind_of_control_twice_is_refused():
    with pytest.raises(ValueError, match=r"controls are \['truncated', 'truncated'\]; name each kind once"):
        run(ScriptedModule(), [[example(0)]], [ControlSpec("truncated"), ControlSpec("truncated", fraction=0.2)])


def test_a_games_own_verdict_is_taken():
    module = ScriptedModule()

    def compare(item, spec):
        won = Grade(True, "win", "correct")
        pair = PromptPair(item.id, [1], [1], 0, "", "")
        done = Completion([1, 2], "transcript", True)
        return ViewComparison(item, pair, done, done, None, grade_no_context=won)

    module.compare = compare
    (record,) = run(module, [[example(0)]], with_kl=False)["original"]
    assert record.parsed_no_context == "win"
    assert record.reason_with_context == "wrong"
