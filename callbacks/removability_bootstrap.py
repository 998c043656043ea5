"""Differences between evaluations of the same items: a paired bootstrap (Efron 1979; Efron and Tibshirani 1993).

Items are drawn with replacement, the same draw for every evaluation that is compared: what makes an item hard is hard
for all of them, and must not count as noise between them. Every metric is recomputed on every resample, so that harm
keeps its own denominator: which items are right without the context differs between two methods.

All metrics are functions of sums over items. A resample is a vector of counts, so one matrix product resamples every
metric of every evaluation at once; `scipy.stats.bootstrap` gives the same intervals (a test holds it) for one statistic
at a time, and none where a single resample is undefined. Pure numpy.

The intervals are percentile intervals, the p-values invert them: 2 min(P(d* <= 0), P(d* >= 0)), each with one added to
numerator and denominator, so that no p-value is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callbacks.classification_metrics import MAX_CLASSES
from callbacks.paired_records import PairedRecord
from callbacks.removability_metrics import MIN_HARM_ITEMS
from callbacks.removability_statistics import LEVEL, Interval

NUM_RESAMPLES = 10_000
"""For a normal distribution an end of the 95 % interval then has a standard error of 1.4 % of the half-width."""

MAX_UNDEFINED_SHARE = 0.01
"""Of the resamples. With more of them undefined (nobody right in the draw), what is left is no sample of anything."""

MAX_CELLS = 2_000_000
"""Counts held at once (resamples x items), 16 MB."""

METRICS = (
    "accuracy_no_context",
    "accuracy_with_context",
    "accuracy_change",
    "both_correct",
    "neither",
    "harm",
    "help",
    "self_flip",
    "harm_above_noise",
    "mean_length_no_context",
    "mean_length_with_context",
    "length_inflation",
    "clipped_ratio_no_context",
    "clipped_ratio_with_context",
    "mean_kl",
    "macro_f1_no_context",
    "macro_f1_with_context",
)
"""Fields of `RemovabilitySummary`, and two differences within an evaluation: `accuracy_change` is accuracy with the
context minus without it, `harm_above_noise` is harm - self_flip (the same items lost to the context and to a second
draw)."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapEstimate:
    """A metric, or the difference of one, with its interval over items."""

    value: float | None
    """None: withheld or not defined in an evaluation that enters, as in `RemovabilitySummary`."""
    interval: Interval | None
    """95 % percentile interval. None without a value, where no resample differs from another (then there is nothing to
    estimate a width from), and where more than `MAX_UNDEFINED_SHARE` of the resamples are undefined."""
    p_value: float | None
    """Two-sided, of "the value is 0"; None where `interval` is."""
    num_items: int
    num_resamples: int
    num_undefined: int
    """Resamples on which the metric is not defined; they are left out."""


def bootstrap(
    records: Sequence[PairedRecord], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, BootstrapEstimate]:
    """Estimate every metric of one evaluation, by the names of `METRICS`.

    For rates the Wilson interval is the better one; this is for lengths, KL, macro-F1 and `harm_above_noise`.

    Raises:
        ValueError: as `paired_bootstrap`.
    """
    (evaluation,) = _aligned([records])
    values, resampled = _resample([evaluation], num_resamples, seed)
    return {name: _estimate(values[0][name], resampled[0][name], len(records)) for name in METRICS}


def paired_bootstrap(
    pairs: Sequence[tuple[Sequence[PairedRecord], Sequence[PairedRecord]]],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, BootstrapEstimate]:
    """Estimate the difference second - first of every metric, by the names of `METRICS`.

    Args:
        pairs: evaluations to compare, joined by the records' ids. Several pairs, one per training seed: the estimate is
            the mean of their differences, with the items drawn jointly and the seeds held fixed.
        num_resamples: draws of the items.
        seed: of the draws. The same seed gives the same numbers.

    Raises:
        ValueError: if there is no pair or no record, ids repeat within an evaluation, or two evaluations hold different
            items.
    """
    if not pairs:
        raise ValueError("No evaluations to compare; give at least one pair.")
    flat = _aligned([evaluation for pair in pairs for evaluation in pair])
    values, resampled = _resample(flat, num_resamples, seed)
    estimates = {}
    for name in METRICS:
        value = np.mean([values[i + 1][name] - values[i][name] for i in range(0, len(flat), 2)])
        draws = np.mean([resampled[i + 1][name] - resampled[i][name] for i in range(0, len(flat), 2)], axis=0)
        estimates[name] = _estimate(float(value), draws, len(flat[0]))
    return estimates


def _aligned(evaluations: Sequence[Sequence[PairedRecord]]) -> list[list[PairedRecord]]:
    """Sort every evaluation by id, and refuse different items."""
    aligned = [sorted(evaluation, key=lambda record: record.id) for evaluation in evaluations]
    first = [record.id for record in aligned[0]]
    if not first:
        raise ValueError("No records: a bootstrap needs at least one item.")
    for evaluation in aligned:
        ids = [record.id for record in evaluation]
        if len(set(ids)) < len(ids):
            raise ValueError("Record ids repeat within an evaluation; each item is evaluated once.")
        if ids != first:
            odd = sorted(set(ids) ^ set(first))
            raise ValueError(
                f"The evaluations hold different items: {len(odd)} are in one only, {odd[0]!r} for example. "
                "A paired comparison needs the same items."
            )
    return aligned


def _resample(
    evaluations: Sequence[Sequence[PairedRecord]], num_resamples: int, seed: int
) -> tuple[list[dict[str, float]], list[dict[str, Array]]]:
    """Metrics of each evaluation: as it is (NaN where withheld), and on every resample (NaN where undefined)."""
    num_items = len(evaluations[0])
    columns = [_columns(evaluation) for evaluation in evaluations]
    stacked = [np.stack(list(named.values()), axis=1) for named in columns]
    generator = np.random.default_rng(seed)
    sums: list[list[Array]] = [[] for _ in evaluations]
    chunk = max(1, MAX_CELLS // num_items)
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        counts = generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=size).astype(np.float64)
        for parts, matrix in zip(sums, stacked, strict=True):
            parts.append(counts @ matrix)
    values, resampled = [], []
    for named, matrix, parts in zip(columns, stacked, sums, strict=True):
        once = {name: float(array[0]) for name, array in _metrics(named, matrix.sum(axis=0)[None, :]).items()}
        values.append(once | dict.fromkeys(_withheld(dict(zip(named, matrix.sum(axis=0), strict=True))), np.nan))
        resampled.append(_metrics(named, np.concatenate(parts)))
    return values, resampled


def _withheld(sums: Mapping[str, float]) -> list[str]:
    """Names of the metrics that rest on too few items."""
    withheld = ["harm", "self_flip", "harm_above_noise"] if sums["x"] < MIN_HARM_ITEMS else []
    return [*withheld, "help"] if sums["items"] - sums["x"] < MIN_HARM_ITEMS else withheld


def _columns(records: Sequence[PairedRecord]) -> dict[str, Array]:
    """What each item adds to the sums that the metrics are made of; x and c: right without and with the context."""
    x = np.array([record.correct_no_context for record in records], dtype=np.float64)
    c = np.array([record.correct_with_context for record in records], dtype=np.float64)
    columns = {
        "items": np.ones(len(records)),
        "x": x,
        "c": c,
        "both": x * c,
        "length_x": np.array([record.length_no_context for record in records], dtype=np.float64),
        "length_c": np.array([record.length_with_context for record in records], dtype=np.float64),
        "clipped_x": np.array([not record.finished_no_context for record in records], dtype=np.float64),
        "clipped_c": np.array([not record.finished_with_context for record in records], dtype=np.float64),
        "kl": np.array([(record.kl or 0.0) * record.num_kl_tokens for record in records]),
        "kl_tokens": np.array([record.num_kl_tokens for record in records], dtype=np.float64),
    }
    if all(record.further_no_context for record in records):
        second = np.array([record.further_no_context[0].correct for record in records], dtype=np.float64)
        columns["self_flipped"] = x * (1 - second)
    classes = sorted({record.answer for record in records})
    if 2 <= len(classes) <= MAX_CLASSES:
        for name in classes:
            is_class = np.array([record.answer == name for record in records], dtype=np.float64)
            columns[f"class/{name}"] = is_class
            for view in ("no_context", "with_context"):
                parsed = np.array([getattr(record, f"parsed_{view}") == name for record in records], dtype=np.float64)
                columns[f"parsed_{view}/{name}"] = parsed
                columns[f"hit_{view}/{name}"] = parsed * is_class
    return columns


def _metrics(columns: Mapping[str, Array], sums: Array) -> dict[str, Array]:
    """Metrics of every row of `sums` (resamples x columns); NaN where undefined."""
    of = dict(zip(columns, sums.T, strict=True))
    undefined = np.full(len(sums), np.nan)
    accuracy_x, accuracy_c = of["x"] / of["items"], of["c"] / of["items"]
    harm = _ratio(of["x"] - of["both"], of["x"])
    self_flip = _ratio(of["self_flipped"], of["x"]) if "self_flipped" in of else undefined
    return {
        "accuracy_no_context": accuracy_x,
        "accuracy_with_context": accuracy_c,
        "accuracy_change": accuracy_c - accuracy_x,
        "both_correct": of["both"] / of["items"],
        "neither": (of["items"] - of["x"] - of["c"] + of["both"]) / of["items"],
        "harm": harm,
        "help": _ratio(of["c"] - of["both"], of["items"] - of["x"]),
        "self_flip": self_flip,
        "harm_above_noise": harm - self_flip,
        "mean_length_no_context": of["length_x"] / of["items"],
        "mean_length_with_context": of["length_c"] / of["items"],
        "length_inflation": _ratio(of["length_c"] - of["length_x"], of["length_x"]),
        "clipped_ratio_no_context": of["clipped_x"] / of["items"],
        "clipped_ratio_with_context": of["clipped_c"] / of["items"],
        "mean_kl": _ratio(of["kl"], of["kl_tokens"]),
        "macro_f1_no_context": _macro_f1(of, "no_context", undefined),
        "macro_f1_with_context": _macro_f1(of, "with_context", undefined),
    }


def _macro_f1(of: Mapping[str, Array], view: str, undefined: Array) -> Array:
    """Mean F1 of the classes that occur in each resample; NaN where fewer than two do."""
    classes = [name.removeprefix("class/") for name in of if name.startswith("class/")]
    if not classes:
        return undefined
    items = np.stack([of[f"class/{name}"] for name in classes])
    parsed = np.stack([of[f"parsed_{view}/{name}"] for name in classes])
    hits = np.stack([of[f"hit_{view}/{name}"] for name in classes])
    occurs = items > 0
    f1 = np.where(occurs, 2 * hits / np.maximum(items + parsed, 1), 0.0)
    num_classes = occurs.sum(axis=0)
    return np.where(num_classes >= 2, f1.sum(axis=0) / np.maximum(num_classes, 1), np.nan)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _estimate(value: float, draws: Array, num_items: int) -> BootstrapEstimate:
    defined = draws[~np.isnan(draws)]
    num_undefined = len(draws) - len(defined)
    interval, p_value = None, None
    enough = num_undefined <= MAX_UNDEFINED_SHARE * len(draws)
    # Up to rounding: the products are sums in another order from draw to draw.
    if not np.isnan(value) and enough and np.ptp(defined) > 1e-12:
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(defined, (tail, 1 - tail))
        interval = Interval(float(low), float(high))
        below, above = np.sum(defined <= 1e-12), np.sum(defined >= -1e-12)
        p_value = min(1.0, 2 * float(min(below, above) + 1) / (len(defined) + 1))
    return BootstrapEstimate(
        value=None if np.isnan(value) else value,
        interval=interval,
        p_value=p_value,
        num_items=num_items,
        num_resamples=len(draws),
        num_undefined=num_undefined,
    )
