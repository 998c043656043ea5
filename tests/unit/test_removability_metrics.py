"""Paired metrics against tables worked by hand, a recount from the definitions, and generated evaluations."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.paired_records import PairedRecord
from callbacks.removability_metrics import (
    MIN_HARM_ITEMS,
    RemovabilitySummary,
    paired_rates,
    summarise,
    summarise_groups,
)

RECORD = PairedRecord(
    id="paris",
    group="seen_country",
    answer="Europe",
    completion_no_context="Europe.",
    completion_with_context="Asia\nor Europe “maybe”",
    parsed_no_context="Europe",
    parsed_with_context=None,
    reason_no_context="correct",
    reason_with_context="several_answers",
    length_no_context=3,
    length_with_context=6,
    finished_no_context=True,
    finished_with_context=False,
    kl=0.25,
    num_kl_tokens=3,
)


def make_records(both: int, harmed: int, helped: int, neither: int, group: str = "") -> list[PairedRecord]:
    """Records with the four cells of the paired table as given."""
    cells = [("correct", "correct", both), ("correct", "wrong", harmed), ("wrong", "correct", helped)]
    cells.append(("no_answer", "not_a_choice", neither))
    views = [(x, c) for x, c, count in cells for _ in range(count)]
    return [
        replace(RECORD, id=f"{group}/{number}", group=group, reason_no_context=x, reason_with_context=c)
        for number, (x, c) in enumerate(views)
    ]


def test_table_worked_by_hand():
    summary = summarise(make_records(both=30, harmed=10, helped=15, neither=45))
    assert summary.num_items == 100
    assert summary.accuracy_no_context == 0.40
    assert summary.accuracy_with_context == 0.45
    assert summary.both_correct == 0.30
    assert summary.neither == 0.45
    assert (summary.harm, summary.num_harmed, summary.num_correct_no_context) == (0.25, 10, 40)
    assert (summary.help, summary.num_helped, summary.num_wrong_no_context) == (0.25, 15, 60)


def test_the_paper_s_llama_3b_row():
    # arXiv:2606.11627, Llama-3.2-3B MedMCQA under OPD: 74.8 without, 65.3 with, both correct 63.1, harm 15.7 %.
    # Of its 500 items those are 374, 327 (65.4 %) and 315 or 316 items.
    summary = summarise(make_records(both=315, harmed=59, helped=12, neither=114))
    assert summary.accuracy_no_context == pytest.approx(0.748)
    assert summary.accuracy_with_context == pytest.approx(0.653, abs=0.002)
    assert summary.both_correct == pytest.approx(0.631, abs=0.002)
    assert summary.harm == pytest.approx(0.157, abs=0.002)


@pytest.mark.parametrize("num_correct", [0, 1, MIN_HARM_ITEMS - 1])
def test_harm_is_withheld_on_few_items_and_its_counts_are_not(num_correct):
    summary = summarise(make_records(both=0, harmed=num_correct, helped=0, neither=40))
    assert summary.harm is None
    assert (summary.num_harmed, summary.num_correct_no_context) == (num_correct, num_correct)
    assert summary.help == 0.0


@pytest.mark.parametrize("num_wrong", [0, 1, MIN_HARM_ITEMS - 1])
def test_help_is_withheld_on_few_items_and_its_counts_are_not(num_wrong):
    summary = summarise(make_records(both=40, harmed=0, helped=num_wrong, neither=0))
    assert summary.help is None
    assert (summary.num_helped, summary.num_wrong_no_context) == (num_wrong, num_wrong)
    assert summary.harm == 0.0


def test_rates_appear_at_the_limit():
    summary = summarise(make_records(both=19, harmed=1, helped=1, neither=19))
    assert (summary.harm, summary.help) == (0.05, 0.05)


def test_lengths_and_clipping_worked_by_hand():
    records = [
        replace(RECORD, id="a", length_no_context=10, length_with_context=2, finished_with_context=True),
        replace(RECORD, id="b", length_no_context=20, length_with_context=4),
        replace(RECORD, id="c", length_no_context=30, length_with_context=84, finished_no_context=False),
    ]
    summary = summarise(records)
    assert (summary.mean_length_no_context, summary.mean_length_with_context) == (20.0, 30.0)
    assert summary.length_inflation == 0.5
    assert summary.clipped_ratio_no_context == pytest.approx(1 / 3)
    assert summary.clipped_ratio_with_context == pytest.approx(2 / 3)


def test_length_inflation_of_empty_completions_is_undefined():
    assert summarise([replace(RECORD, length_no_context=0)]).length_inflation is None


def test_kl_is_weighted_by_tokens_and_skips_unmeasured_records():
    records = [
        replace(RECORD, id="long", kl=0.1, num_kl_tokens=90),
        replace(RECORD, id="short", kl=1.1, num_kl_tokens=10),
        replace(RECORD, id="unmeasured", kl=None, num_kl_tokens=0),
    ]
    summary = summarise(records)
    assert summary.mean_kl == pytest.approx(0.2)  # (0.1 * 90 + 1.1 * 10) / 100; the mean over records would be 0.6
    assert summary.num_kl_tokens == 100


def test_kl_is_undefined_where_nothing_was_measured():
    assert summarise([replace(RECORD, kl=None, num_kl_tokens=0)]).mean_kl is None


def test_groups_follow_all_and_the_empty_group_has_no_entry():
    records = make_records(20, 5, 0, 0, "unseen") + make_records(1, 0, 0, 2, "seen") + make_records(0, 0, 3, 0)
    summaries = summarise_groups(records)
    assert list(summaries) == ["all", "seen", "unseen"]
    assert [summary.num_items for summary in summaries.values()] == [31, 3, 25]
    assert summaries["unseen"].harm == 0.2
    assert summaries["seen"].harm is None
    assert summaries["unseen"] == summarise(records[:25])


def test_a_group_called_all_is_refused():
    with pytest.raises(ValueError, match=r"'all'.*rename Example\.group"):
        summarise_groups([replace(RECORD, group="all")])


@pytest.mark.parametrize("function", [summarise, summarise_groups])
def test_no_records_are_refused(function):
    with pytest.raises(ValueError, match="No records"):
        function([])


def test_duplicate_ids_are_refused_by_name():
    with pytest.raises(ValueError, match="'paris' occurs 2 times"):
        summarise([RECORD, replace(RECORD, id="lima"), RECORD])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id is empty"),
        ({"reason_no_context": "right"}, "reason_no_context='right'; accepted: correct, wrong"),
        ({"reason_with_context": None}, "reason_with_context=None"),
        ({"length_with_context": -1}, "length_with_context=-1"),
        ({"kl": math.nan}, "kl=nan.*not finite"),
        ({"kl": math.inf}, "kl=inf.*not finite"),
        ({"log_probability_no_context": -math.inf}, "log_probability_no_context=-inf.*not finite"),
        ({"kl": None}, "give both, or None and 0"),
        ({"num_kl_tokens": 0}, "give both, or None and 0"),
    ],
)
def test_impossible_records_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECORD, **changes)


def test_json_is_one_line_and_comes_back_equal():
    line = RECORD.to_json()
    assert "\n" not in line
    assert "“maybe”" in line  # readable, not escaped
    assert PairedRecord.from_json(line) == RECORD


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "found list"),
        ('{"id": "a"}', r"found \['id'\]"),
        (RECORD.to_json().replace('"length_no_context": 3', '"length_no_context": "3"'), "'paris'.*wrong type"),
        (RECORD.to_json()[:-10], "delimiter|Unterminated|Expecting"),
    ],
)
def test_broken_json_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        PairedRecord.from_json(line)


def test_summary_dictionary_is_plain_json_and_comes_back_equal():
    summary = summarise(make_records(3, 2, 1, 0))
    values = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert values["harm"] is None
    assert RemovabilitySummary.from_dict(values) == summary
    del values["help"]
    with pytest.raises(ValueError, match=r"misses \['help'\].*unknown fields \['hlep'\]"):
        RemovabilitySummary.from_dict(values | {"hlep": 0.5})


def test_paired_rates_of_unequal_lists_are_refused():
    with pytest.raises(ValueError, match=r"has 2 items .* has 1"):
        paired_rates([True, False], [True])


def test_paired_rates_of_nothing_are_refused():
    with pytest.raises(ValueError, match="No items"):
        paired_rates([], [])


@pytest.mark.parametrize("scores", [[0.7, 0.2], ["True", "False"], [[True], [False]], [True, None]])
def test_paired_rates_of_scores_are_refused(scores):
    with pytest.raises(ValueError, match="correct_with_context must be a flat list of True and False"):
        paired_rates([True, False], scores)


def test_paired_rates_take_zeros_and_ones():
    assert paired_rates([1, 0, 1], [0, 0, 1]) == paired_rates([True, False, True], [False, False, True])


VERDICT_PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=120)


@settings(deadline=None)
@given(VERDICT_PAIRS)
def test_rates_equal_a_recount_from_the_definitions(pairs):
    rates = paired_rates([x for x, _ in pairs], [c for _, c in pairs])
    x_right = [c for x, c in pairs if x]
    x_wrong = [c for x, c in pairs if not x]
    assert rates.accuracy_no_context == len(x_right) / len(pairs)
    assert rates.accuracy_with_context == sum(c for _, c in pairs) / len(pairs)
    assert rates.both_correct == sum(x and c for x, c in pairs) / len(pairs)
    assert rates.neither == sum(not x and not c for x, c in pairs) / len(pairs)
    assert rates.harm == (x_right.count(False) / len(x_right) if len(x_right) >= 20 else None)
    assert rates.help == (x_wrong.count(True) / len(x_wrong) if len(x_wrong) >= 20 else None)


@settings(deadline=None)
@given(VERDICT_PAIRS)
def test_rates_are_consistent_with_one_another(pairs):
    rates = paired_rates([x for x, _ in pairs], [c for _, c in pairs])
    num_items = rates.num_items
    assert rates.num_correct_no_context + rates.num_wrong_no_context == num_items
    assert rates.both_correct == pytest.approx(rates.accuracy_no_context - rates.num_harmed / num_items)
    assert rates.both_correct == pytest.approx(rates.accuracy_with_context - rates.num_helped / num_items)
    cells = rates.both_correct + rates.neither + (rates.num_harmed + rates.num_helped) / num_items
    assert cells == pytest.approx(1.0)


def test_imports_neither_torch_nor_lightning():
    program = (
        "import sys, callbacks.removability_metrics, callbacks.removability_files\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout.strip() == "[]"
