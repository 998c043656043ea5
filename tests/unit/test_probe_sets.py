"""Probes: every item can be answered by its rule, and its prompt does not give the answer away."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.probe_sets import ORDERS, following_probes, general_probes


def rows(name):
    return [json.loads(line) for line in (files("datamodules") / "probes" / f"{name}.jsonl").read_text().splitlines()]


FOLLOWING, GENERAL = following_probes(), general_probes()
FACTS = {f"following/{row['id']}": row for row in rows("facts")}


def test_sizes_and_ids():
    assert Counter(e.group for e in FOLLOWING.examples) == {"invented_fact": 24, "contrary_fact": 12, "order": 36}
    assert len(GENERAL.examples) == 60
    ids = [e.id for e in (*FOLLOWING.examples, *GENERAL.examples)]
    assert len(set(ids)) == len(ids)
    assert all(e.privileged_context for e in FOLLOWING.examples)
    assert all(e.privileged_context is None for e in GENERAL.examples)


@pytest.mark.parametrize("item", [e for e in FOLLOWING.examples if e.group != "order"], ids=lambda e: e.id)
def test_a_fact_is_followed_by_its_answer_alone(item):
    row = FACTS[item.id]
    question = item.prompt[-1]["content"]
    for spelling in (row["answer"], *row["accepted"]):
        assert FOLLOWING.grade(item, f"It is {spelling}.").correct
    assert FOLLOWING.grade(item, item.privileged_context).correct  # the context says it
    assert not FOLLOWING.grade(item, question).correct  # the question does not
    assert not FOLLOWING.grade(item, "I do not know.").correct
    for prior in row["prior"]:
        assert not FOLLOWING.grade(item, f"It is {prior}.").correct
        assert FOLLOWING.grade(item, f"It is {row['answer']}, not {prior}.").reason == "several_answers"


@pytest.mark.parametrize("item", GENERAL.examples, ids=lambda e: e.id)
def test_a_general_question_takes_its_answer_and_not_its_own_words(item):
    assert GENERAL.grade(item, f"The answer is {item.answer}.").correct
    question = item.prompt[-1]["content"]
    assert GENERAL.grade(item, "I do not know.").reason == "no_answer"
    if ":" not in question and " or " not in question:  # a choice names its answer
        assert not GENERAL.grade(item, question).correct


@pytest.mark.parametrize(
    ("order", "followed", "not_followed"),
    [
        ("upper_case", ["SEVEN", "IT IS 7."], ["Seven", "7", "A", "IT is 7", ""]),
        ("starts_with_reply", ["REPLY: seven"], ["Reply: seven", "My REPLY: seven", "REPLY seven"]),
        ("ends_with_over", ["Seven. OVER", "It is seven OVER."], ["OVER and out", "Seven, over"]),
        ("one_word", ["Seven", "seven."], ["It is seven", "", "7 days"]),
        ("json", ['{"answer": 7}', ' {"answer": "seven", "sure": true}\n'],
         ['{"reply": 7}', "answer: 7", '["answer"]', '{"answer": 7', "[" * 100_000]),
        ("brackets", ["[seven]", "[It is [7].]"], ["It is [seven]", "(seven)", "[seven"]),
    ],
)  # fmt: skip
def test_orders(order, followed, not_followed):
    item = next(e for e in FOLLOWING.examples if e.id.startswith(f"following/{order}/"))
    for text in followed:
        assert FOLLOWING.grade(item, text).correct, text
    for text in not_followed:
        assert not FOLLOWING.grade(item, text).correct, text


@given(st.text(max_size=60))
def test_no_text_breaks_an_order(text):
    for order in ORDERS:
        item = next(e for e in FOLLOWING.examples if e.id.startswith(f"following/{order}/"))
        FOLLOWING.grade(item, text)


def test_orders_that_contradict_each_other_are_not_followed_by_one_text():
    def followed(text):
        return {name for name, follows in ORDERS.items() if follows(text)}

    assert followed("Seven days") == set()
    assert followed("SEVEN") == {"upper_case", "one_word"}
