"""The report's numbers for machines: every run's evaluations, and every statistic of the tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields

from callbacks.removability_files import SummaryLine
from callbacks.removability_metrics import ALL, RemovabilitySummary
from callbacks.removability_seeds import aggregate_seeds
from callbacks.removability_statistics import Interval, mcnemar_p, rate_counts, rate_intervals, regime
from cli.report_methods import Comparison, MethodResult, MetricDifference, control_lines
from cli.report_runs import Run

# Keyed by text, not numbers: they stay in the files of the run.
NO_NUMBER = ("pass_at_k_no_context", "pass_at_k_with_context")
METRICS = tuple(field.name for field in fields(RemovabilitySummary) if field.name not in NO_NUMBER)

STATISTICS_HEADER = (
    "setting",
    "split",
    "num_items",
    "method",
    "step",
    "context",
    "seed",  # a run's own; "all": over seeds; empty: not known
    "metric",
    "value",  # rates are fractions; empty: withheld or not defined
    "low",
    "high",
    "interval",  # of low and high: "wilson" and "items" (bootstrap) of one run or over fixed seeds, "seeds" (t)
    "spread",  # standard deviation between seeds
    "num_events",
    "num_trials",
    "p_value",
    "p_holm",
    "num_undefined_resamples",
)

Row = dict[str, object]
NumberTable = tuple[Sequence[str], list[Row]]
"""Header, and of each row the values by column; a column that a row lacks is empty."""


def evaluation_numbers(runs: Sequence[Run]) -> NumberTable:
    """Every evaluation: one row per run, evaluation and group. Rates are fractions; None is withheld."""
    header = ("run", "method", "consistency", "consistency_coef", "split", "step", "group", "elapsed_s", *METRICS)
    rows: list[Row] = [
        {
            "run": run.label,
            "method": run.method,
            "consistency": run.consistency,
            "consistency_coef": run.consistency_coef,
            "split": line.split,
            "step": line.step,
            "group": group,
            "elapsed_s": line.elapsed_s,
            "seed": run.config.seed,
            "context": line.context,
        }
        | {name: getattr(summary, name) for name in METRICS}
        for run in runs
        for line in (*run.lines, *run.control_lines)
        for group, summary in line.summaries.items()
    ]
    return (*header, "seed", "context"), rows


def statistic_numbers(comparisons: Sequence[Comparison]) -> NumberTable:
    """Every number of the settings' tables, one row per number, under `STATISTICS_HEADER`."""
    methods = [(comparison, method) for comparison in comparisons for method in comparison.methods]
    return STATISTICS_HEADER, [row for pair in methods for row in _method_rows(*pair)]


def as_csv(table: NumberTable) -> str:
    """Return the table as CSV; None is an empty cell."""
    header, rows = table
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _method_rows(comparison: Comparison, method: MethodResult) -> Iterator[Row]:
    place: Row = {
        "setting": comparison.setting,
        "split": comparison.split,
        "num_items": comparison.num_items,
        "method": method.name,
    }
    lines = list(zip(method.runs, method.lines, strict=True))
    for run, line in lines + [pair for pairs in control_lines(comparison, method).values() for pair in pairs]:
        for row in _evaluation_rows(line):
            yield place | {"seed": run.config.seed} | row
    for row in _aggregate_rows(method):
        yield place | {"step": method.step, "context": method.lines[0].context, "seed": "all"} | row
    for name, difference in method.differences.items():
        for row in _difference_rows(name, difference):
            yield place | {"step": method.difference_step, "context": method.lines[0].context, "seed": "all"} | row


def _evaluation_rows(line: SummaryLine) -> Iterator[Row]:
    summary = line.summaries[ALL]
    place: Row = {"step": line.step, "context": line.context}
    counts, intervals = rate_counts(summary), rate_intervals(summary)
    for name in METRICS:
        row = place | {"metric": name, "value": getattr(summary, name)} | _ends(intervals.get(name), "wilson")
        if name in counts:
            row["num_events"], row["num_trials"] = counts[name]
        yield row
    flips = (summary.num_harmed, summary.num_helped)
    yield place | {"metric": "regime", "value": regime(*flips), "p_value": mcnemar_p(*flips)}


def _aggregate_rows(method: MethodResult) -> Iterator[Row]:
    if method.above_noise is not None:
        noise = method.above_noise
        yield {
            "metric": "harm_above_noise",
            "value": noise.value,
            "p_value": noise.p_value,
            "num_undefined_resamples": noise.num_undefined,
        } | _ends(noise.interval, "items")
    if len(method.runs) > 1:
        for name in METRICS:
            seeds = aggregate_seeds([getattr(summary, name) for summary in method.summaries])
            yield {"metric": name, "value": seeds.mean, "spread": seeds.spread}


def _difference_rows(name: str, difference: MetricDifference) -> Iterator[Row]:
    """Over items and, where there are several seeds, over seeds; `p_holm` is that of both together."""
    place: Row = {"metric": f"{name} - baseline", "value": difference.value, "p_holm": difference.adjusted_p}
    items, seeds = difference.items, difference.seeds
    if items is not None:
        ends = _ends(items.interval, "items")
        yield place | {"p_value": items.p_value, "num_undefined_resamples": items.num_undefined} | ends
    if items is None or len(seeds.seeds) > 1:
        yield place | {"p_value": seeds.p_value, "spread": seeds.spread} | _ends(seeds.interval, "seeds")


def _ends(interval: Interval | None, kind: str) -> Row:
    return {} if interval is None else {"low": interval.low, "high": interval.high, "interval": kind}
