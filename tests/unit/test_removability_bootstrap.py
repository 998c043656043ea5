"""The paired bootstrap against a loop over resampled records, scipy's, hand-worked cases and simulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap

from callbacks.removability_bootstrap import METRICS, bootstrap, paired_bootstrap
from callbacks.removability_metrics import summarise
from tests.unit.made_runs import draw_records, make_record, make_records, second_answer


def two_evaluations(seed: int = 0, num_items: int = 200):
    """Evaluations of two methods that find the same items hard; the second does less harm."""
    rng = np.random.default_rng(seed)
    shared = rng.random((num_items, 2))
    first = draw_records(rng, num_items, 0.65, 0.25, 0.3, shared)
    return first, draw_records(rng, num_items, 0.6, 0.08, 0.3, shared)


def summary_value(records, name):
    summary = summarise(records)
    if name == "accuracy_change":
        return summary.accuracy_with_context - summary.accuracy_no_context
    if name == "harm_above_noise":
        return None if summary.self_flip is None else summary.harm - summary.self_flip
    return getattr(summary, name)


def test_values_are_differences_of_the_summaries():
    first, second = two_evaluations()
    first = [replace(r, further_no_context=second_answer(i % 5 > 0)) for i, r in enumerate(first)]
    second = [replace(r, further_no_context=second_answer(i % 9 > 0)) for i, r in enumerate(second)]
    estimates = paired_bootstrap([(first, second)], num_resamples=20)
    assert set(estimates) == set(METRICS)
    for name, estimate in estimates.items():
        expected = summary_value(second, name) - summary_value(first, name)
        assert estimate.value == pytest.approx(expected, abs=1e-12), name


def test_every_metric_equals_a_loop_over_resampled_records():
    # The draws are redone here and the records copied, then summarised by the code that summarises evaluations.
    first, second = two_evaluations(num_items=90)
    num_resamples = 60
    estimates = paired_bootstrap([(first, second)], num_resamples=num_resamples, seed=5)
    counts = np.random.default_rng(5).multinomial(90, np.full(90, 1 / 90), size=num_resamples)

    def resampled(records, row):
        copies = [replace(r, id=f"{r.id}/{n}") for r, count in zip(records, row, strict=True) for n in range(count)]
        return summarise(copies)

    pairs = [(resampled(first, row), resampled(second, row)) for row in counts]
    for name in set(METRICS) - {"accuracy_change", "self_flip", "harm_above_noise"}:
        draws = [getattr(b, name) - getattr(a, name) for a, b in pairs]
        interval = estimates[name].interval
        expected = np.quantile(draws, (0.025, 0.975))
        assert (interval.low, interval.high) == (pytest.approx(expected[0]), pytest.approx(expected[1])), name
        tail = min(sum(d <= 1e-12 for d in draws), sum(d >= -1e-12 for d in draws)) + 1
        assert estimates[name].p_value == pytest.approx(min(1.0, 2 * tail / (num_resamples + 1))), name


def test_the_difference_of_harm_agrees_with_scipy():
    first, second = two_evaluations()
    x1, c1, x2, c2 = (
        np.array([getattr(r, f"correct_{view}") for r in records], dtype=float)
        for records in (first, second)
        for view in ("no_context", "with_context")
    )

    def difference(index):
        index = index.astype(int)
        harm1 = (x1[index] * (1 - c1[index])).sum(axis=-1) / x1[index].sum(axis=-1)
        return (x2[index] * (1 - c2[index])).sum(axis=-1) / x2[index].sum(axis=-1) - harm1

    result = scipy_bootstrap(
        (np.arange(200.0),),
        lambda index, axis: difference(np.moveaxis(index, axis, -1)),
        method="percentile",
        n_resamples=10_000,
        batch=1000,
        random_state=np.random.default_rng(1),
    )
    ours = paired_bootstrap([(first, second)])["harm"].interval
    scipys = result.confidence_interval
    width = scipys.high - scipys.low
    # Two independent sets of 10,000 draws: an end moves by about 1 % of the width.
    assert ours.low == pytest.approx(scipys.low, abs=0.05 * width)
    assert ours.high == pytest.approx(scipys.high, abs=0.05 * width)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_a_difference_turns_its_sign_when_the_evaluations_are_swapped(seed):
    first, second = two_evaluations(seed, num_items=80)
    forward = paired_bootstrap([(first, second)], num_resamples=200)
    backward = paired_bootstrap([(second, first)], num_resamples=200)
    for name in METRICS:
        there, back = forward[name], backward[name]
        assert (there.value is None) == (back.value is None)
        if there.interval is None:
            assert back.interval is None
            continue
        assert there.value == pytest.approx(-back.value)
        assert there.interval.low == pytest.approx(-back.interval.high)
        assert there.interval.high == pytest.approx(-back.interval.low)
        assert there.p_value == back.p_value


def test_items_are_joined_by_id_not_by_place():
    first, second = two_evaluations(num_items=60)
    shuffled = [second[i] for i in np.random.default_rng(0).permutation(60)]
    assert paired_bootstrap([(first, shuffled)], 100) == paired_bootstrap([(first, second)], 100)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    first, second = two_evaluations(num_items=60)
    once = paired_bootstrap([(first, second)], 200, seed=1)["harm"]
    assert paired_bootstrap([(first, second)], 200, seed=1)["harm"] == once
    assert paired_bootstrap([(first, second)], 200, seed=2)["harm"] != once


def test_shared_difficulty_makes_the_paired_interval_narrower():
    # Two methods that are right on the same items: their accuracies differ by little whatever the items are.
    first = make_records(80, 0, 0, 70)
    second = [make_record(i, i < 85, i < 85) for i in range(150)]
    estimate = paired_bootstrap([(first, second)])["accuracy_no_context"]
    paired_error = (5 / 150 * (1 - 5 / 150) / 150) ** 0.5
    assert estimate.value == pytest.approx(5 / 150)
    assert (estimate.interval.high - estimate.interval.low) / (2 * 1.96) == pytest.approx(paired_error, rel=0.1)
    unpaired_error = (2 * 0.55 * 0.45 / 150) ** 0.5
    assert unpaired_error > 3 * paired_error


def test_equal_evaluations_have_no_difference_and_no_interval_to_estimate():
    first, _ = two_evaluations()
    estimate = paired_bootstrap([(first, first)], 100)["harm"]
    assert (estimate.value, estimate.interval, estimate.p_value, estimate.num_undefined) == (0.0, None, None, 0)


def test_harm_withheld_in_one_evaluation_withholds_the_difference():
    few = make_records(15, 4, 20, 61)
    estimates = paired_bootstrap([(few, make_records(60, 10, 10, 20))], 100)
    assert estimates["harm"].value is None
    assert estimates["harm"].interval is None
    assert estimates["accuracy_no_context"].value == pytest.approx(0.51)


def test_nobody_right_leaves_harm_undefined_and_counted():
    nobody = make_records(0, 0, 30, 30)
    estimate = paired_bootstrap([(nobody, make_records(30, 10, 10, 10))], 100)["harm"]
    assert (estimate.value, estimate.interval, estimate.p_value) == (None, None, None)
    assert estimate.num_undefined == estimate.num_resamples == 100


def test_a_metric_undefined_in_many_resamples_has_a_value_and_no_interval():
    # KL was measured on one item of 40: 36 % of the resamples miss it.
    records = [make_record(i, True, True, **({} if i == 0 else {"kl": None, "num_kl_tokens": 0})) for i in range(40)]
    estimate = bootstrap(records, 1000)["mean_kl"]
    assert estimate.value == pytest.approx(0.1)
    assert estimate.interval is None
    assert estimate.num_undefined / 1000 == pytest.approx((1 - 1 / 40) ** 40, abs=0.06)


def test_harm_above_the_noise_floor_is_paired_on_the_same_items():
    # 10 of 50 lost with the context; 8 of the same items are also lost in a second draw: 2 are the context's own.
    records = [make_record(i, True, i >= 10, further_no_context=second_answer(i >= 8)) for i in range(50)]
    estimate = bootstrap(records)["harm_above_noise"]
    assert estimate.value == pytest.approx(2 / 50)
    assert estimate.interval.low >= 0.0
    assert estimate.interval.high < 0.12


def test_seeds_are_averaged_with_the_items_drawn_jointly():
    pairs = [two_evaluations(seed) for seed in (0, 1, 2)]
    single = [paired_bootstrap([pair])["harm"] for pair in pairs]
    joint = paired_bootstrap(pairs)["harm"]
    assert joint.value == pytest.approx(np.mean([estimate.value for estimate in single]))
    widths = [estimate.interval.high - estimate.interval.low for estimate in single]
    assert joint.interval.high - joint.interval.low < min(widths)


def test_different_items_are_refused_with_an_example():
    first, second = two_evaluations(num_items=30)
    with pytest.raises(ValueError, match=r"different items: 2 are in one only, 'item0029' for example"):
        paired_bootstrap([(first, [*second[:-1], replace(second[-1], id="other")])], 10)
    with pytest.raises(ValueError, match="different items"):
        paired_bootstrap([(first, second[:-1])], 10)
    with pytest.raises(ValueError, match="ids repeat"):
        paired_bootstrap([(first, [*second, second[0]])], 10)
    with pytest.raises(ValueError, match="No evaluations"):
        paired_bootstrap([])
    with pytest.raises(ValueError, match="No records"):
        paired_bootstrap([([], [])])


@pytest.mark.parametrize(("num_items", "harms"), [(100, (0.25, 0.12)), (200, (0.12, 0.05))])
def test_the_interval_of_a_difference_of_harm_covers_in_simulation(num_items, harms):
    rng = np.random.default_rng(num_items)
    num_runs, covered, rejected = 300, 0, 0
    for run in range(num_runs):
        shared = rng.random((num_items, 2))
        first = draw_records(rng, num_items, 0.65, harms[0], 0.3, shared)
        second = draw_records(rng, num_items, 0.6, harms[1], 0.3, shared)
        estimate = paired_bootstrap([(first, second)], num_resamples=400, seed=run)["harm"]
        covered += harms[1] - harms[0] in estimate.interval
        null = draw_records(rng, num_items, 0.6, harms[0], 0.3, shared)
        rejected += paired_bootstrap([(first, null)], num_resamples=400, seed=run)["harm"].p_value < 0.05
    # 4 standard errors of a rate in 300 runs, and a point and a half for what the percentile method is known to lack
    slack = 4 * (0.95 * 0.05 / num_runs) ** 0.5 + 0.015
    assert covered / num_runs == pytest.approx(0.95, abs=slack)
    assert rejected / num_runs < 0.05 + slack


def test_a_planted_difference_is_recovered():
    rng = np.random.default_rng(9)
    first = draw_records(rng, 500, 0.7, 0.05, 0.2)
    # Break 20 points more of what the first method gets right in both views.
    second = [
        make_record(
            i, r.correct_no_context, r.correct_with_context and not (r.correct_no_context and rng.random() < 0.2)
        )
        for i, r in enumerate(first)
    ]
    estimate = paired_bootstrap([(first, second)])["harm"]
    assert 0.2 * (1 - 0.05) in estimate.interval
    assert 0.0 not in estimate.interval
    assert estimate.p_value == pytest.approx(2 / 10_001)
