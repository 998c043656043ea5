"""What the figures draw: of each setting the longest series of evaluations, of each method one curve over steps.

A run that is not part of its setting's longest series gets a panel of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from callbacks.removability_metrics import ALL, RemovabilitySummary
from callbacks.removability_seeds import aggregate_seeds
from callbacks.removability_statistics import rate_intervals
from cli.report_config import UNKNOWN, UNTRAINED
from cli.report_methods import Comparison, MethodResult
from cli.report_runs import Run, lines_by_step


@dataclass(frozen=True, slots=True)
class Curve:
    """A method over steps."""

    label: str
    method: MethodResult
    number: int
    """Colour and marker: the same for a method in every setting."""
    steps: tuple[int, ...]
    """Steps at which every run of the method was evaluated."""
    summaries: tuple[tuple[RemovabilitySummary, ...], ...]
    """Per step, one per run."""

    def points(self, metric: str, scale: float = 1.0) -> list[float]:
        """Mean over runs at every step; NaN where withheld in any, so that a line breaks there and bridges nothing."""
        return [_mean([getattr(summary, metric) for summary in at_step], scale) for at_step in self.summaries]

    def band(self, metric: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
        """Lower and upper ends at every step: Wilson's interval of one run, mean -+ spread of several.

        NaN where there is neither (a single run's lengths).
        """
        ends = [_ends([*at_step], metric) for at_step in self.summaries]
        return [scale * low for low, _ in ends], [scale * high for _, high in ends]


def drawn_settings(comparisons: Sequence[Comparison]) -> list[tuple[Comparison, list[Curve]]]:
    """What the figures draw, with its curves, a panel each.

    Of each setting the comparison with the most evaluations, then any other that holds a run which those before it
    lack: a run that was evaluated on another number of items than the rest.
    """
    panels: list[Comparison] = []
    for setting in dict.fromkeys(comparison.setting for comparison in comparisons):
        drawn: set[str] = set()
        of_setting = [comparison for comparison in comparisons if comparison.setting == setting]
        for comparison in sorted(of_setting, key=_num_evaluations, reverse=True):  # of equal ones the first stays first
            labels = {run.label for run in comparison.runs}
            panels += [comparison] * (not labels <= drawn)
            drawn |= labels
    one_setting = len({panel.setting for panel in panels}) == 1
    numbers: dict[str, int] = {}
    curves: list[tuple[Comparison, list[Curve]]] = []
    for panel in panels:
        # In one setting a run is known by its folder; over several a method is one entry of the legend.
        named = [(_label(method) if one_setting else method.name, method) for method in panel.methods]
        own = [_curve(panel, method, label, numbers.setdefault(label, len(numbers))) for label, method in named]
        curves.append((panel, own))
    return curves


def curve_labels(settings: Sequence[tuple[Comparison, Sequence[Curve]]]) -> list[str]:
    """Legend entries, in the order of `Curve.number`."""
    labels = {curve.number: curve.label for _, curves in settings for curve in curves}
    return [labels[number] for number in sorted(labels)]


def _num_evaluations(comparison: Comparison) -> int:
    return sum(
        len(lines_by_step(run, comparison.split, comparison.num_items))
        for method in comparison.methods
        for run in method.runs
    )


def _curve(comparison: Comparison, method: MethodResult, label: str, number: int) -> Curve:
    lines = [lines_by_step(run, comparison.split, comparison.num_items) for run in method.runs]
    steps = tuple(sorted(set.intersection(*(set(by_step) for by_step in lines))))
    summaries = tuple(tuple(by_step[step].summaries[ALL] for by_step in lines) for step in steps)
    return Curve(label, method, number, steps, summaries)


def _label(method: MethodResult) -> str:
    if len(method.runs) == 1:
        return _run_label(method.runs[0])
    return f"{method.name} ({len(method.runs)} seeds)"


def _run_label(run: Run) -> str:
    """The folder's name, with what it does not say of the method."""
    detail = "" if run.method == UNKNOWN else run.method
    name = UNTRAINED if run.config.untrained else run.config.baseline or run.consistency
    if name is not None and name in run.label:
        detail = detail.removeprefix(name).strip(" ,+")
    return f"{run.label} ({detail})" if detail else run.label


def _mean(values: Sequence[float | None], scale: float) -> float:
    known = [value for value in values if value is not None]
    return scale * math.fsum(known) / len(known) if len(known) == len(values) else math.nan


def _ends(summaries: Sequence[RemovabilitySummary], metric: str) -> tuple[float, float]:
    if len(summaries) == 1:
        interval = rate_intervals(summaries[0]).get(metric)
        return (math.nan, math.nan) if interval is None else (interval.low, interval.high)
    seeds = aggregate_seeds([getattr(summary, metric) for summary in summaries])
    if seeds.mean is None or seeds.spread is None or seeds.num_withheld:
        return math.nan, math.nan
    return seeds.mean - seeds.spread, seeds.mean + seeds.spread
