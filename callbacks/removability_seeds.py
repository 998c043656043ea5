"""Runs that differ in their training seed only: mean, spread, and differences between methods paired by seed.

The seed is the unit that a claim about a METHOD repeats: the items are the same in every run, so their number says
nothing of how another training would have ended. The interval of a difference is therefore Student's t interval over
the seeds' own differences. Resampling three seeds would have ten distinct draws and too narrow an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from callbacks.removability_statistics import LEVEL, Interval, statistics_module


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedAggregate:
    """A metric over seeds."""

    mean: float | None
    """None where no seed has a value."""
    spread: float | None
    """Sample standard deviation between seeds (divisor n - 1); None below two values."""
    num_seeds: int
    """Seeds that have a value."""
    num_withheld: int
    """Seeds whose value is withheld or not defined; they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedDifference:
    """A metric of one method minus another's, seed by seed."""

    mean: float
    spread: float | None
    """Sample standard deviation of the seeds' differences; None below two seeds."""
    interval: Interval | None
    """95 % t interval of the mean; None below two seeds, or where all differences are equal."""
    p_value: float | None
    """Two-sided paired t-test; None where `interval` is."""
    seeds: tuple[int, ...]
    """Seeds in which both methods have a value."""


def aggregate_seeds(values: Sequence[float | None]) -> SeedAggregate:
    """Aggregate one metric over runs that differ in their seed.

    Example:
        >>> aggregate_seeds([0.1, 0.3, None])
        SeedAggregate(mean=0.2, spread=0.1414213562373095, num_seeds=2, num_withheld=1)
    """
    known = [value for value in values if value is not None]
    return SeedAggregate(
        mean=float(np.mean(known)) if known else None,
        spread=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        num_seeds=len(known),
        num_withheld=len(values) - len(known),
    )


def seed_difference(
    baseline: Mapping[int, float | None], method: Mapping[int, float | None], level: float = LEVEL
) -> SeedDifference | None:
    """Difference method - baseline of one metric, given by seed; None where no seed has both values.

    Seeds that only one of them has are left out.

    Raises:
        ImportError: without scipy.
    """
    differences = {
        seed: value - other
        for seed, value in sorted(method.items())
        if value is not None and (other := baseline.get(seed)) is not None
    }
    if not differences:
        return None
    values = np.array(list(differences.values()))
    mean, num_seeds = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) if num_seeds > 1 else None
    interval, p_value = None, None
    if spread is not None and spread > 1e-12:  # equal up to rounding: no width to estimate
        student = statistics_module("scipy.stats").t(num_seeds - 1)
        error = spread / num_seeds**0.5
        half_width = float(student.ppf((1 + level) / 2)) * error
        interval = Interval(mean - half_width, mean + half_width)
        p_value = 2 * float(student.sf(abs(mean) / error))
    return SeedDifference(mean=mean, spread=spread, interval=interval, p_value=p_value, seeds=tuple(differences))
