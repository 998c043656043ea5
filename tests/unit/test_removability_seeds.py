"""Aggregates over seeds against hand-worked numbers and scipy's paired t-test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from callbacks.removability_seeds import aggregate_seeds, seed_difference


def test_mean_and_spread_worked_by_hand():
    seeds = aggregate_seeds([0.70, 0.74, 0.78])
    assert (seeds.mean, seeds.spread) == (pytest.approx(0.74), pytest.approx(0.04))  # divisor n - 1
    assert (seeds.num_seeds, seeds.num_withheld) == (3, 0)


def test_withheld_seeds_are_left_out_and_counted():
    seeds = aggregate_seeds([None, 0.5])
    assert (seeds.mean, seeds.spread, seeds.num_seeds, seeds.num_withheld) == (0.5, None, 1, 1)
    nothing = aggregate_seeds([None, None])
    assert (nothing.mean, nothing.spread, nothing.num_withheld) == (None, None, 2)


def test_differences_are_paired_by_seed():
    baseline = {3: 0.096, 4: 0.110, 5: 0.111, 6: 0.5}
    method = {5: 0.068, 3: 0.036, 4: 0.060, 7: 0.9, 8: None}
    difference = seed_difference(baseline, method)
    assert difference.seeds == (3, 4, 5)
    assert difference.mean == pytest.approx((-0.060 - 0.050 - 0.043) / 3)
    expected = ttest_rel([0.036, 0.060, 0.068], [0.096, 0.110, 0.111])
    assert difference.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (difference.interval.low, difference.interval.high) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )


def test_one_seed_has_a_difference_and_no_interval():
    difference = seed_difference({1: 0.1}, {1: 0.3, 2: 0.4})
    assert (difference.mean, difference.spread, difference.interval, difference.p_value) == (
        pytest.approx(0.2),
        None,
        None,
        None,
    )


def test_equal_differences_give_no_interval():
    assert seed_difference({1: 0.1, 2: 0.2}, {1: 0.3, 2: 0.4}).interval is None


def test_no_seed_in_common_is_no_difference():
    assert seed_difference({1: 0.1}, {2: 0.3}) is None
    assert seed_difference({1: None}, {1: 0.3}) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_a_difference_contains_its_mean_and_turns_its_sign(pairs):
    baseline, method = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    there, back = seed_difference(baseline, method), seed_difference(method, baseline)
    assert there.mean == pytest.approx(-back.mean)
    if there.interval is not None:
        assert there.mean in there.interval
        assert there.interval.low == pytest.approx(-back.interval.high)
        assert there.p_value == pytest.approx(back.p_value)


def test_the_t_interval_covers_with_three_seeds():
    rng = np.random.default_rng(0)
    num_runs, covered = 1000, 0
    for _ in range(num_runs):
        seeds = rng.normal(0.6, 0.05, 3)  # what a seed does to both methods
        method = dict(enumerate(seeds - 0.04 + rng.normal(0, 0.02, 3)))
        covered += -0.04 in seed_difference(dict(enumerate(seeds)), method).interval
    assert covered / num_runs == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / num_runs) ** 0.5)
