"""The regime plane: what the context does to accuracy, and what it breaks (after arXiv:2606.11627)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from callbacks.removability_metrics import RemovabilitySummary
from callbacks.removability_seeds import aggregate_seeds
from callbacks.removability_statistics import rate_intervals
from cli.report_cells import regime_counts
from cli.report_curves import Curve, curve_labels
from cli.report_methods import Comparison
from cli.report_style import GREY, STYLE, figure_of_settings, literally, look

MOST_PATHS = 4
"""Methods in a panel. With more of them the paths to the last step cover one another."""


TRIANGLE_CENTRES = {"^": -2.0, "v": 2.0}
"""Points from the middle of a marker's box to where a letter sits well in it."""


def draw_regimes(settings: Sequence[tuple[Comparison, Sequence[Curve]]]) -> Figure:
    """One panel per setting: accuracy with minus without the context, against harm; one marker per method.

    The marker is the last step, in it the regime by McNemar's test; where seeds differ in it, beside the marker how
    many are in which. Its bar is the 95 % Wilson interval of a single run's harm; of several seeds, the standard
    deviations of both. The thin path leads there from the first step, which is the open circle.
    """
    with matplotlib.rc_context(STYLE):
        figure, parts = figure_of_settings(settings, curve_labels(settings), panel_height=3.9)
        for part, (_, curves) in zip(parts, settings, strict=True):
            axes = part.subplots()
            with_paths = len(curves) <= MOST_PATHS
            for curve in curves:
                if with_paths:
                    _draw_path(axes, curve)
                _draw_last_step(axes, curve)
            _finish(axes, curves, with_paths)
    return figure


def _draw_path(axes: Axes, curve: Curve) -> None:
    colour, _ = look(curve.number)
    changes, harms = [_mean_change(at_step) for at_step in curve.summaries], curve.points("harm", 100)
    axes.plot(changes, harms, color=colour, linewidth=0.8, alpha=0.45, marker=".", markersize=3, zorder=2)
    axes.plot(changes[:1], harms[:1], color=colour, marker="o", markersize=5, mfc="white", alpha=0.7, zorder=2)


def _draw_last_step(axes: Axes, curve: Curve) -> None:
    harm = curve.points("harm", 100)[-1] if curve.steps else math.nan
    if math.isnan(harm):
        return
    colour, marker = look(curve.number)
    last = curve.summaries[-1]
    change = _mean_change(last)
    low, high = (end[-1] for end in curve.band("harm", 100))
    bars = None if math.isnan(low) else [[max(0.0, harm - low)], [max(0.0, high - harm)]]
    spread = _spread(last)
    axes.errorbar(
        *([change], [harm]),
        yerr=bars,
        xerr=spread,
        color=colour,
        marker=marker,
        markersize=12,
        markeredgecolor="white",
        elinewidth=1.1,
        capsize=2.5,
        zorder=3,
    )
    _label_regimes(axes, last, (change, harm), colour, TRIANGLE_CENTRES.get(marker, 0.0))


def _label_regimes(
    axes: Axes, last: Sequence[RemovabilitySummary], place: tuple[float, float], colour: str, lift: float
) -> None:
    """The letter in the marker where all runs are in one regime; else beside it how many are in which."""
    counts = regime_counts(last)
    style: dict[str, Any] = {"textcoords": "offset points", "weight": "bold", "va": "center", "zorder": 4}
    if len(counts) == 1:
        (letter,) = counts
        axes.annotate(letter, place, xytext=(0, lift), color="white", fontsize=7.5, ha="center", **style)
        return
    words = ", ".join(f"{letter} x {count}" for letter, count in counts.items())
    text = axes.annotate(words, place, xytext=(9, 9), color=colour, fontsize=7.5, ha="left", **style)
    text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # readable across bars and lines


def _finish(axes: Axes, curves: Sequence[Curve], with_paths: bool) -> None:
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    axes.set(
        title="Regimes: A context perturbs, B context still helps, C no difference shown",
        xlabel="accuracy with the context - without it (points; below 0: worse with it)",
        ylabel="harm (%)",
    )
    drawn = [at_step for curve in curves for at_step in (curve.summaries if with_paths else curve.summaries[-1:])]
    changes = [_change(summary) for at_step in drawn for summary in at_step if summary.harm is not None]
    for curve in curves:  # the ends of the bars, which reach beyond two seeds
        spread = _spread(curve.summaries[-1]) if curve.steps and not math.isnan(curve.points("harm")[-1]) else None
        if spread is not None:
            mean = _mean_change(curve.summaries[-1])
            changes += [mean - spread, mean + spread]
    low, high = min([*changes, -2.0]), max([*changes, 2.0])
    axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    lasts = [summary for curve in curves for at_step in curve.summaries[-1:] for summary in at_step]
    ends = [interval.high for summary in lasts if (interval := rate_intervals(summary)["harm"]) is not None]
    shown = [summary.harm for at_step in drawn for summary in at_step if summary.harm is not None]
    axes.set_ylim(0, min(103.0, 115 * max([0.05, *ends, *shown])))
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    withheld = [curve.label for curve in curves if not curve.steps or math.isnan(curve.points("harm")[-1])]
    words = ["thin: the way from the first step (open circle)"] if with_paths else []
    words += [f'no marker, harm withheld: "{label}"' for label in withheld]
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    axes.text(0.99, 0.985, literally("\n".join(words)), color=GREY, fontsize=7, **place)


def _change(summary: RemovabilitySummary) -> float:
    return 100 * (summary.accuracy_with_context - summary.accuracy_no_context)


def _spread(summaries: Sequence[RemovabilitySummary]) -> float | None:
    """Standard deviation of the change between seeds; None with one."""
    return None if len(summaries) == 1 else aggregate_seeds([_change(summary) for summary in summaries]).spread


def _mean_change(summaries: Sequence[RemovabilitySummary]) -> float:
    return math.fsum(_change(summary) for summary in summaries) / len(summaries)
