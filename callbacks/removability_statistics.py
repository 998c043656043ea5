"""How sure are the paired metrics? Intervals, McNemar's test and the regime of one evaluation.

* every rate has a Wilson score interval (Wilson 1927) from its own counts;
* the flips (right without, wrong with; and the other way) are tested by McNemar's exact test (McNemar 1947);
* the test decides the regime: A the context perturbs, B it still helps, C no difference was shown;
* many tests are corrected by Holm's step-down method (Holm 1979).

`describe_pairs` is for models trained elsewhere: two lists of booleans in, everything out. Differences between two
evaluations: `callbacks.removability_bootstrap`; over seeds: `callbacks.removability_seeds`. docs/evaluation.md says
why each was chosen. scipy and statsmodels (extra ``statistics``) are imported where they are called, so that this
module and `removability_metrics` import without them; neither torch nor lightning is needed.

Departures from the paper: it prints no intervals and gives no thresholds for its regimes; these rules are ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from callbacks.removability_metrics import PairedRates, RemovabilitySummary, paired_rates

LEVEL = 0.95
"""Confidence level of every interval."""

ALPHA = 0.05
"""Significance level of every test."""

Regime = Literal["A", "B", "C"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        """Whether `value` lies inside or on an end."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """What one paired evaluation says, and how surely."""

    rates: PairedRates
    intervals: Mapping[str, Interval | None]
    """By the rate's name: its 95 % Wilson interval; None where the rate is withheld."""
    mcnemar_p: float
    """Two-sided exact p-value of "the context breaks as many items as it mends"."""
    regime: Regime


def describe_pairs(correct_no_context: Sequence[bool], correct_with_context: Sequence[bool]) -> PairStatistics:
    """Compute everything that two graded views of the same items say.

    Args:
        correct_no_context: per item, whether the answer without the context is right.
        correct_with_context: the same items in the same order, answered with the context.

    Returns:
        Rates, their intervals, McNemar's p-value and the regime.

    Raises:
        ImportError: without scipy or statsmodels.
        ValueError: as `removability_metrics.paired_rates`.

    Example:
        >>> result = describe_pairs([True] * 60 + [False] * 40, [True] * 48 + [False] * 12 + [True] * 2 + [False] * 38)
        >>> result.rates.harm, result.rates.num_harmed, result.rates.num_helped
        (0.2, 12, 2)
        >>> harm = result.intervals["harm"]
        >>> round(harm.low, 3), round(harm.high, 3)
        (0.118, 0.318)
        >>> round(result.mcnemar_p, 4), result.regime
        (0.0129, 'A')
    """
    rates = paired_rates(correct_no_context, correct_with_context)
    return PairStatistics(
        rates=rates,
        intervals=rate_intervals(rates),
        mcnemar_p=mcnemar_p(rates.num_harmed, rates.num_helped),
        regime=regime(rates.num_harmed, rates.num_helped),
    )


def rate_counts(rates: PairedRates) -> dict[str, tuple[int, int]]:
    """Counts behind every rate: its name, items that count, items that could have.

    `self_flip` is among them where a second answer was drawn.
    """
    num_right, num_wrong = rates.num_correct_no_context, rates.num_wrong_no_context
    counts = {
        "accuracy_no_context": (num_right, rates.num_items),
        "accuracy_with_context": (num_right - rates.num_harmed + rates.num_helped, rates.num_items),
        "both_correct": (num_right - rates.num_harmed, rates.num_items),
        "neither": (num_wrong - rates.num_helped, rates.num_items),
        "harm": (rates.num_harmed, num_right),
        "help": (rates.num_helped, num_wrong),
    }
    if isinstance(rates, RemovabilitySummary) and rates.num_samples_no_context > 1:
        counts["self_flip"] = (rates.num_self_flipped, num_right)
    return counts


def rate_intervals(rates: PairedRates, level: float = LEVEL) -> dict[str, Interval | None]:
    """Wilson interval of every rate, by its name; None where the rate itself is withheld.

    Raises:
        ImportError: without statsmodels.
    """
    return {
        name: None if getattr(rates, name) is None else wilson_interval(num_events, num_trials, level)
        for name, (num_events, num_trials) in rate_counts(rates).items()
    }


def wilson_interval(num_events: int, num_trials: int, level: float = LEVEL) -> Interval:
    """Wilson score interval of a rate.

    Unlike estimate +- 1.96 standard errors it stays within [0, 1], has a width at 0 events, and covers close to its
    level for small samples (Brown, Cai and DasGupta 2001).

    Raises:
        ImportError: without statsmodels.
        ValueError: unless 0 <= num_events <= num_trials and num_trials > 0.
    """
    if not 0 <= num_events <= num_trials or num_trials == 0:
        raise ValueError(
            f"{num_events} of {num_trials} is no rate; give counts with 0 <= events <= trials, trials > 0."
        )
    proportion = statistics_module("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(num_events, num_trials, alpha=1 - level, method="wilson")
    # Exact where rounding would leave an end a hair inside.
    return Interval(0.0 if num_events == 0 else float(low), 1.0 if num_events == num_trials else float(high))


def mcnemar_p(num_harmed: int, num_helped: int) -> float:
    """Two-sided p-value of McNemar's exact test: were the flips a fair coin's?

    Only items on which the views disagree enter. At most five of them can never be significant at 5 %.

    Args:
        num_harmed: items right without the context and wrong with it; or any first kind of disagreement.
        num_helped: items the other way round.

    Raises:
        ImportError: without scipy.
        ValueError: if a count is negative.
    """
    if min(num_harmed, num_helped) < 0:
        raise ValueError(f"num_harmed={num_harmed} and num_helped={num_helped}; counts of items are at least 0.")
    if num_harmed + num_helped == 0:
        return 1.0
    return float(statistics_module("scipy.stats").binomtest(num_harmed, num_harmed + num_helped, 0.5).pvalue)


def regime(num_harmed: int, num_helped: int, alpha: float = ALPHA) -> Regime:
    """Regime of an evaluation, decided by McNemar's exact test.

    Returns:
        "A", the context perturbs: significant, and more items harmed than helped. "B", the context still helps:
        significant, and more helped. "C": not significant. C on few items is weak: it says that no difference was
        shown, not that there is none; look at harm's interval.

    Raises:
        ImportError: without scipy.
        ValueError: if a count is negative.
    """
    if mcnemar_p(num_harmed, num_helped) >= alpha:
        return "C"
    return "A" if num_harmed > num_helped else "B"


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down method, in the order given.

    The chance of even one false "significant" among them stays below the level, whatever their dependence.

    Raises:
        ImportError: without statsmodels.
    """
    if not p_values:
        return []
    adjusted = statistics_module("statsmodels.stats.multitest").multipletests(list(p_values), method="holm")[1]
    return [float(p_value) for p_value in adjusted]


def statistics_module(name: str) -> Any:
    """Import a module of scipy or statsmodels.

    Raises:
        ImportError: if it is not installed; the message says which extra brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{package} is missing, which intervals and tests need: pip install 'context-returns[statistics]'."
        ) from error
