"""Intervals and tests against published tables, scipy, statsmodels, exact enumeration and simulation."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar

from callbacks import removability_seeds, removability_statistics
from callbacks.removability_metrics import paired_rates, summarise
from callbacks.removability_statistics import (
    describe_pairs,
    holm,
    mcnemar_p,
    rate_counts,
    rate_intervals,
    regime,
    wilson_interval,
)
from datamodules.grading import grade_choice_mention
from tests.unit.made_runs import CONTINENTS, draw_records, make_record, make_records, second_answer

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("num_events", "num_trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_examples(num_events, num_trials, low, high):
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3.
    interval = wilson_interval(num_events, num_trials)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@settings(deadline=None, max_examples=60)
@given(COUNTS)
def test_wilson_equals_scipy_contains_the_rate_and_mirrors(counts):
    num_events, num_trials = counts
    interval = wilson_interval(num_events, num_trials)
    expected = binomtest(num_events, num_trials).proportion_ci(method="wilson")
    assert interval.low == pytest.approx(expected.low, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, abs=1e-12)
    assert num_events / num_trials in interval
    other = wilson_interval(num_trials - num_events, num_trials)
    assert (other.low, other.high) == (pytest.approx(1 - interval.high), pytest.approx(1 - interval.low))


@pytest.mark.parametrize("counts", [(0, 0), (-1, 5), (6, 5)])
def test_a_rate_of_nothing_has_no_interval(counts):
    with pytest.raises(ValueError, match="is no rate"):
        wilson_interval(*counts)


@pytest.mark.parametrize("num_trials", [20, 60, 240, 500])
def test_wilson_covers_near_its_level_by_enumeration(num_trials):
    events = np.arange(num_trials + 1)
    intervals = [wilson_interval(int(count), num_trials) for count in events]
    rates = np.linspace(0.02, 0.98, 193)
    inside = np.array([[rate in interval for interval in intervals] for rate in rates])
    coverage = (binom.pmf(events[None, :], num_trials, rates[:, None]) * inside).sum(axis=1)
    assert coverage.mean() == pytest.approx(0.95, abs=0.006)
    assert coverage.min() > 0.89  # discrete data: no interval has 95 % everywhere (Brown et al. 2001, figure 5)


@pytest.mark.parametrize(("num_items", "harm"), [(60, 0.25), (240, 0.08), (500, 0.02)])
def test_the_interval_of_harm_covers_in_simulation(num_items, harm):
    rng = np.random.default_rng(num_items)
    num_runs, covered, shown = 1500, 0, 0
    for _ in range(num_runs):
        x = rng.random(num_items) < 0.6
        interval = rate_intervals(paired_rates(x, np.where(x, rng.random(num_items) >= harm, False)))["harm"]
        shown += interval is not None
        covered += interval is not None and harm in interval
    # 4 standard errors of a rate of 95 % in 1,500 runs, and a point for the denominator's own discreteness
    assert covered / shown == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / num_runs) ** 0.5 + 0.01)
    assert shown == num_runs


def test_harm_planted_in_completions_is_recovered_within_its_interval():
    rng = np.random.default_rng(4)
    choices = dict.fromkeys(CONTINENTS, ())
    planted, records = 0.15, []
    for number in range(400):
        record = make_record(number, right_without=number % 4 != 0, right_with=True)
        if record.correct_no_context and rng.random() < planted:
            record = make_record(number, True, True, completion_with_context=CONTINENTS[(number + 1) % 3] + "!")
        grade = grade_choice_mention(record.completion_with_context, record.answer, choices)
        records.append(
            make_record(
                number,
                record.correct_no_context,
                grade.correct,
                completion_with_context=record.completion_with_context,
                reason_with_context=grade.reason,
            )
        )
    summary = summarise(records)
    interval = rate_intervals(summary)["harm"]
    assert planted in interval
    assert interval.high - interval.low < 0.1  # it is no interval that contains everything
    assert regime(summary.num_harmed, summary.num_helped) == "B"  # every fourth item is helped, more than are harmed


@pytest.mark.parametrize(
    ("num_harmed", "num_helped", "p_value"),
    [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (12, 2, 0.012939453125), (3, 3, 1.0), (1, 8, 0.0390625)],
)
def test_mcnemar_worked_by_hand(num_harmed, num_helped, p_value):
    assert mcnemar_p(num_harmed, num_helped) == pytest.approx(p_value, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 90), st.integers(0, 90))
def test_mcnemar_equals_statsmodels_and_does_not_mind_a_swap(num_harmed, num_helped):
    table = [[7, num_harmed], [num_helped, 3]]
    assert mcnemar_p(num_harmed, num_helped) == pytest.approx(min(1.0, mcnemar(table, exact=True).pvalue), rel=1e-9)
    assert mcnemar_p(num_helped, num_harmed) == pytest.approx(mcnemar_p(num_harmed, num_helped), rel=1e-12)
    swapped = {"A": "B", "B": "A", "C": "C"}
    assert regime(num_helped, num_harmed) == swapped[regime(num_harmed, num_helped)]


@pytest.mark.parametrize(
    ("num_harmed", "num_helped", "expected"),
    [(6, 0, "A"), (0, 6, "B"), (5, 0, "C"), (0, 0, "C"), (60, 55, "C"), (60, 30, "A"), (30, 60, "B")],
)
def test_regimes_worked_by_hand(num_harmed, num_helped, expected):
    assert regime(num_harmed, num_helped) == expected


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="num_harmed=-1"):
        mcnemar_p(-1, 3)


def test_holm_worked_by_hand():
    # Sorted 0.01 x 3, 0.03 x 2, 0.04 x 1, never below the one before: 0.03, 0.06, 0.06.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_description_of_two_lists_equals_its_parts():
    x, c = [True] * 60 + [False] * 40, [True] * 48 + [False] * 12 + [True] * 2 + [False] * 38
    described = describe_pairs(x, c)
    assert described.rates == paired_rates(x, c)
    assert described.intervals["accuracy_with_context"] == wilson_interval(50, 100)
    assert described.intervals["both_correct"] == wilson_interval(48, 100)
    assert described.intervals["neither"] == wilson_interval(38, 100)
    assert described.intervals["help"] == wilson_interval(2, 40)
    assert (described.mcnemar_p, described.regime) == (mcnemar_p(12, 2), "A")


def test_withheld_rates_have_no_interval():
    described = describe_pairs([True] * 19 + [False] * 30, [False] * 49)
    assert described.intervals["harm"] is None
    assert described.intervals["help"] == wilson_interval(0, 30)
    assert describe_pairs([False] * 30, [True] * 30).intervals["harm"] is None  # nobody right: undefined


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=90))
def test_every_interval_contains_its_rate_and_its_counts_give_it(pairs):
    described = describe_pairs([x for x, _ in pairs], [c for _, c in pairs])
    counts = rate_counts(described.rates)
    assert set(described.intervals) == set(counts)
    for name, interval in described.intervals.items():
        value = getattr(described.rates, name)
        if value is None:
            assert interval is None
        else:
            assert value == pytest.approx(counts[name][0] / counts[name][1])
            assert value in interval


def test_the_noise_floor_has_an_interval_where_a_second_answer_was_drawn():
    records = [make_record(i, True, i >= 9, further_no_context=second_answer(i >= 4)) for i in range(40)]
    assert rate_intervals(summarise(records))["self_flip"] == wilson_interval(4, 40)
    assert "self_flip" not in rate_intervals(summarise(make_records(30, 5, 5, 10)))


def test_counts_equal_a_recount_from_the_lines_of_a_file():
    records = draw_records(np.random.default_rng(3), 150, 0.6, 0.2, 0.3)
    import json

    lines = [json.loads(record.to_json()) for record in records]
    x = [line["reason_no_context"] == "correct" for line in lines]
    c = [line["reason_with_context"] == "correct" for line in lines]
    recount = {
        "accuracy_no_context": (sum(x), 150),
        "accuracy_with_context": (sum(c), 150),
        "both_correct": (sum(a and b for a, b in zip(x, c, strict=True)), 150),
        "neither": (sum(not a and not b for a, b in zip(x, c, strict=True)), 150),
        "harm": (sum(a and not b for a, b in zip(x, c, strict=True)), sum(x)),
        "help": (sum(b and not a for a, b in zip(x, c, strict=True)), 150 - sum(x)),
    }
    assert rate_counts(summarise(records)) == recount


@pytest.mark.parametrize("module", [removability_statistics, removability_seeds])
def test_the_examples_in_the_documentation_are_true(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"scipy is missing.*pip install 'context-returns\[statistics\]'"):
        mcnemar_p(1, 2)
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(ImportError, match="statsmodels is missing"):
        holm([0.5])


def test_the_modules_import_without_scipy_torch_and_lightning():
    modules = "callbacks.removability_statistics, callbacks.removability_bootstrap, callbacks.removability_seeds"
    program = (
        f"import sys, {modules}\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'scipy', 'statsmodels', 'pandas'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout.strip() == "[]"
