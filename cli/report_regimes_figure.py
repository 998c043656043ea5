"""The regime plane: what the context does to accuracy, and what it breaks (after arXiv:2606.11627)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from callbacks.removability_metrics import RemovabilitySummary
from callbacks.removability_statistics import rate_intervals, regime
from cli.report_curves import Curve, curve_labels
from cli.report_methods import Comparison
from cli.report_style import GREY, STYLE, figure_of_settings, look

MOST_PATHS = 4
"""Methods in a panel. With more of them the paths to the last step cover one another."""


def draw_regimes(settings: Sequence[tuple[Comparison, Sequence[Curve]]]) -> Figure:
    """One panel per setting: accuracy with minus without the context, against harm; one marker per method.

    The marker is the last step, its bar 95 % Wilson interval of a single run's harm; of several seeds, mean and
    standard deviations of both. The thin path leads there from the first step. Letters: regimes by McNemar's test.
    """
    with matplotlib.rc_context(STYLE):
        figure, parts = figure_of_settings(settings, curve_labels(settings), panel_height=3.9)
        for part, (_, curves) in zip(parts, settings, strict=True):
            axes = part.subplots()
            withheld = [curve.label for curve in curves if not _draw_curve(axes, curve, len(curves) <= MOST_PATHS)]
            _finish(axes, curves, withheld)
    return figure


def _draw_curve(axes: Axes, curve: Curve, with_path: bool) -> bool:
    """Draw a method; False where its harm at the last step is withheld."""
    colour, marker = look(curve.number)
    harms = curve.points("harm", 100)
    changes = [_mean_change(at_step) for at_step in curve.summaries]
    if with_path:
        axes.plot(changes, harms, color=colour, linewidth=0.8, alpha=0.5, marker=".", markersize=3, zorder=2)
    if not curve.steps or math.isnan(harms[-1]):
        return False
    last = curve.summaries[-1]
    change, harm = changes[-1], harms[-1]
    low, high = (end[-1] for end in curve.band("harm", 100))
    bars = None if math.isnan(low) else [[max(0.0, harm - low)], [max(0.0, high - harm)]]
    spread = None if len(last) == 1 else _spread([_change(summary) for summary in last])
    axes.errorbar(
        *([change], [harm]),
        yerr=bars,
        xerr=spread,
        color=colour,
        marker=marker,
        markersize=8,
        markeredgecolor="white",
        elinewidth=1.1,
        capsize=2.5,
        zorder=3,
    )
    letters = "".join(sorted({regime(summary.num_harmed, summary.num_helped) for summary in last}))
    axes.annotate(letters, (change, harm), xytext=(7, 5), textcoords="offset points", color=colour, weight="bold")
    return True


def _finish(axes: Axes, curves: Sequence[Curve], withheld: Sequence[str]) -> None:
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    axes.set(
        title="Regimes: A context perturbs, B context still helps, C no difference shown",
        xlabel="accuracy with the context - without it (points)",
        ylabel="harm (%)",
    )
    changes = [abs(_change(summary)) for curve in curves for at_step in curve.summaries for summary in at_step]
    widest = 1.15 * max([*changes, 5.0])
    axes.set_xlim(-widest, widest)
    tops = [0.05]
    for curve in curves:
        for summary in curve.summaries[-1] if curve.summaries else ():
            interval = rate_intervals(summary)["harm"]
            tops += [] if interval is None else [interval.high]
    shown = [harm for curve in curves for harm in curve.points("harm") if not math.isnan(harm)]
    axes.set_ylim(0, min(103.0, 115 * max(tops + shown)))
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    corner: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "color": GREY, "fontsize": 8}
    axes.text(0.01, 0.985, "worse with the context", ha="left", **corner)
    axes.text(0.99, 0.985, "better with the context", ha="right", **corner)
    if withheld:
        axes.text(0.99, 0.92, f"harm withheld at the last step: {', '.join(withheld)}", ha="right", **corner)


def _change(summary: RemovabilitySummary) -> float:
    return 100 * (summary.accuracy_with_context - summary.accuracy_no_context)


def _mean_change(summaries: Sequence[RemovabilitySummary]) -> float:
    return math.fsum(_change(summary) for summary in summaries) / len(summaries)


def _spread(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
