"""The report's figures over steps: accuracy and harm (as Figure 1 of arXiv:2606.11627), and lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from callbacks.removability_metrics import MIN_HARM_ITEMS
from cli.report_curves import Curve, curve_labels
from cli.report_methods import Comparison
from cli.report_style import BAND, GREY, STYLE, figure_of_settings, look

Settings = Sequence[tuple[Comparison, Sequence[Curve]]]

MOST_ACCURACY_BANDS = 2
"""Curves. With more, two bands each cover one another; the tables have every interval."""


def draw_removability(settings: Settings) -> Figure:
    """Two panels per setting, one colour and marker per method.

    Left: accuracy without (solid) and with (dashed) the context. Right: harm; withheld points are missing. Bands:
    95 % Wilson interval of one run, standard deviation between several seeds.
    """
    with matplotlib.rc_context(STYLE):
        figure, parts = figure_of_settings(settings, curve_labels(settings))
        for part, (_, curves) in zip(parts, settings, strict=True):
            accuracy, harm = part.subplots(1, 2, sharex=True)
            for curve in curves:
                _draw_views(accuracy, curve, "accuracy", 100.0, banded=len(curves) <= MOST_ACCURACY_BANDS)
                _draw_harm(harm, curve)
            accuracy.set(title="Accuracy", ylabel="accuracy (%)")
            _finish_steps(accuracy)
            _finish_views(accuracy)
            _finish_harm(harm, curves)
    return figure


def draw_lengths(settings: Settings) -> Figure:
    """One panel per setting: mean tokens of a completion without (solid) and with (dashed) the context."""
    with matplotlib.rc_context(STYLE):
        figure, parts = figure_of_settings(settings, curve_labels(settings), panel_height=2.9)
        for part, (_, curves) in zip(parts, settings, strict=True):
            axes = part.subplots()
            for curve in curves:
                _draw_views(axes, curve, "mean_length", 1.0, banded=len(curve.method.runs) > 1)
            axes.set(title="Length of the completions", ylabel="mean tokens")
            axes.set_ylim(bottom=0)
            _finish_steps(axes)
            _finish_views(axes)
    return figure


def _draw_views(axes: Axes, curve: Curve, metric: str, scale: float, banded: bool) -> None:
    colour, marker = look(curve.number)
    for view, line, face in (("no_context", "-", colour), ("with_context", "--", "white")):
        name = f"{metric}_{view}"
        axes.plot(curve.steps, curve.points(name, scale), color=colour, marker=marker, linestyle=line, mfc=face)
        if banded:
            axes.fill_between(curve.steps, *curve.band(name, scale), color=colour, **BAND)


def _draw_harm(axes: Axes, curve: Curve) -> None:
    colour, marker = look(curve.number)
    # clip_on: whole markers at harm 0
    axes.plot(curve.steps, curve.points("harm", 100), color=colour, marker=marker, linestyle="-", clip_on=False)
    low, high = curve.band("harm", 100)
    axes.fill_between(curve.steps, low, high, color=colour, **BAND)
    # A point between two withheld ones has no band beside it.
    axes.vlines(curve.steps, low, high, color=colour, alpha=0.3, linewidth=1.0)


def _finish_steps(axes: Axes) -> None:
    axes.set_xlabel("optimizer steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))


def _finish_views(axes: Axes) -> None:
    handles = [
        Line2D([], [], color=GREY, linestyle="-", marker="o", label="without context"),
        Line2D([], [], color=GREY, linestyle="--", marker="o", mfc="white", label="with context"),
    ]
    axes.legend(handles=handles, loc="best")


def _finish_harm(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.set(title="Harm: P(wrong with | right without)", ylabel="harm (%)")
    _finish_steps(axes)
    # From 0, and never so close that one flipped item looks like an effect.
    harms = [summary.harm for curve in curves for at_step in curve.summaries for summary in at_step]
    tops = [112 * harm for harm in harms if harm is not None]
    tops += [1.12 * top for curve in curves for top in curve.band("harm", 100)[1] if not math.isnan(top)]
    axes.set_ylim(0, min(100.0, max([5.0, *tops])))
    axes.text(
        *(0.02, 0.97, _said_in_panel(curves, harms)),
        transform=axes.transAxes,
        ha="left",
        va="top",
        color=GREY,
        fontsize=7,
    )


def _said_in_panel(curves: Sequence[Curve], harms: Sequence[float | None]) -> str:
    single = any(len(curve.method.runs) == 1 for curve in curves)
    several = any(len(curve.method.runs) > 1 for curve in curves)
    words = ["95 % Wilson interval"] * single + ["± standard deviation of the seeds"] * several
    lines = [f"bands: {'; '.join(words)}"]
    if num_withheld := sum(harm is None for harm in harms):
        lines.append(
            f"{num_withheld} of {len(harms)} points withheld (fewer than {MIN_HARM_ITEMS} items right without)"
        )
    return "\n".join(lines)
