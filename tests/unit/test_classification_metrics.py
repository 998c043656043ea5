"""Macro-F1 and its parts, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callbacks.classification_metrics import MAX_CLASSES, class_scores, macro_f1
from callbacks.paired_records import PairedRecord
from callbacks.removability_metrics import RemovabilitySummary, summarise


def test_three_classes_by_hand() -> None:
    #            a    a    a    a    b    b    c     c
    answers = ["a", "a", "a", "a", "b", "b", "c", "c"]
    parsed = ["a", "a", "b", None, "b", "a", "other", "b"]
    scores = class_scores(answers, parsed)
    assert list(scores) == ["a", "b", "c"]
    assert (scores["a"].precision, scores["a"].recall, scores["a"].f1) == (2 / 3, 2 / 4, 4 / 7)
    assert (scores["b"].precision, scores["b"].recall, scores["b"].f1) == (1 / 3, 1 / 2, 2 / 5)
    assert (scores["c"].precision, scores["c"].recall, scores["c"].f1) == (None, 0.0, 0.0)
    assert macro_f1(answers, parsed) == pytest.approx((4 / 7 + 2 / 5) / 3)


def test_a_constant_answer_scores_far_less_than_its_accuracy() -> None:
    answers, parsed = ["yes"] * 69 + ["no"] * 31, ["yes"] * 100
    assert macro_f1(answers, parsed) == pytest.approx((2 * 69 / 169) / 2)


@given(st.lists(st.sampled_from("abc"), min_size=2).filter(lambda answers: len(set(answers)) > 1))
def test_bounds(answers: list[str]) -> None:
    assert macro_f1(answers, answers) == 1.0
    assert macro_f1(answers, [None] * len(answers)) == 0.0


def test_one_class_or_free_answers_have_none() -> None:
    assert macro_f1(["a", "a"], ["a", "b"]) is None
    numbers = [str(number) for number in range(MAX_CLASSES + 1)]
    assert macro_f1(numbers, numbers) is None
    assert macro_f1(numbers[1:], numbers[1:]) == 1.0


@pytest.mark.parametrize(("answers", "parsed"), [([], []), (["a"], []), (["a", "b"], ["a"])])
def test_lists_must_match(answers: list[str], parsed: list[str | None]) -> None:
    with pytest.raises(ValueError, match=rf"{len(answers)} answers and {len(parsed)} parsed"):
        class_scores(answers, parsed)


def record(id_: int, answer: str, without: str | None, with_: str | None) -> PairedRecord:
    reasons = ["no_answer" if p is None else "correct" if p == answer else "wrong" for p in (without, with_)]
    return PairedRecord(
        id=str(id_),
        group="",
        answer=answer,
        completion_no_context="",
        completion_with_context="",
        parsed_no_context=without,
        parsed_with_context=with_,
        reason_no_context=reasons[0],  # type: ignore[arg-type]
        reason_with_context=reasons[1],  # type: ignore[arg-type]
        length_no_context=1,
        length_with_context=1,
        finished_no_context=True,
        finished_with_context=True,
        kl=None,
        num_kl_tokens=0,
    )


def test_the_summary_has_both_views() -> None:
    summary = summarise([record(0, "yes", "yes", None), record(1, "yes", "no", "yes"), record(2, "no", "no", "no")])
    # Without: yes 2*1/(2+1), no 2*1/(1+2). With: yes 2*1/(2+1), no 2*1/(1+1).
    assert summary.macro_f1_no_context == pytest.approx(2 / 3)
    assert summary.macro_f1_with_context == pytest.approx((2 / 3 + 1) / 2)


def test_a_summary_written_before_macro_f1_is_read() -> None:
    values = summarise([record(0, "yes", "yes", "no")]).to_dict()
    for name in ("macro_f1_no_context", "macro_f1_with_context"):
        del values[name]
    assert RemovabilitySummary.from_dict(values).macro_f1_with_context is None
