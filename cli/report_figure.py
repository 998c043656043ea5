"""The report's figure: accuracy in both views, and harm, over optimizer steps (as Figure 1 of arXiv:2606.11627)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from callbacks.removability_metrics import ALL, MIN_HARM_ITEMS
from cli.report_runs import Run

# Okabe and Ito, "Color Universal Design" (2008): distinguishable with every common colour blindness. Their yellow is
# left out, it is too pale for lines on white. Seven colours and five markers: 35 runs before a pair repeats.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
GREY = "0.35"

WIDTH = 8.6
"""Inches: two panels side by side on a page."""
PANEL_HEIGHT = 3.5
LEGEND_ROW_HEIGHT = 0.2
LEGEND_ROW_CHARACTERS = 110
"""Characters of the legend that fit into `WIDTH`, of which each entry's line and gap take 8."""

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.fonttype": "path",  # glyphs travel with the file: it looks the same where the font is not installed
    "svg.hashsalt": "removability",  # the same numbers give the same file
}


def draw_removability(runs: Sequence[Run], paths: Sequence[Path]) -> None:
    """Draw two panels, one colour and marker per run, and save them.

    Left: accuracy without (solid) and with (dashed) the context. Right: harm; withheld points are missing.

    Args:
        runs: the runs, at least one; of each, the evaluations of `Run.drawn_series` are drawn.
        paths: files to write; the suffix is the format.
    """
    # Figure, not pyplot: no window system and no global state, so it also works inside a training process.
    with matplotlib.rc_context(STYLE):
        labels = [_legend_label(run) for run in runs]
        num_columns = max(1, min(len(runs), LEGEND_ROW_CHARACTERS // (max(map(len, labels)) + 8)))
        legend_height = LEGEND_ROW_HEIGHT * math.ceil(len(runs) / num_columns)
        figure = Figure(figsize=(WIDTH, PANEL_HEIGHT + legend_height), layout="constrained")
        accuracy, harm = figure.subplots(1, 2, sharex=True)
        for number, run in enumerate(runs):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            _draw_run(accuracy, harm, run, colour, marker)
        _finish_accuracy(accuracy)
        _finish_harm(harm, runs)
        figure.legend(
            handles=[
                Line2D([], [], color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], label=label)
                for number, label in enumerate(labels)
            ],
            loc="outside lower center",
            ncols=num_columns,
        )
        for path in paths:
            # Without a date the same numbers give the same file.
            figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_run(accuracy: Axes, harm: Axes, run: Run, colour: str, marker: str) -> None:
    summaries = [line.summaries[ALL] for line in run.drawn_lines]
    steps = [line.step for line in run.drawn_lines]
    without = [100 * summary.accuracy_no_context for summary in summaries]
    with_ = [100 * summary.accuracy_with_context for summary in summaries]
    # NaN breaks the line: a withheld point is neither drawn nor bridged.
    harms = [math.nan if summary.harm is None else 100 * summary.harm for summary in summaries]
    accuracy.plot(steps, without, color=colour, marker=marker, linestyle="-")
    accuracy.plot(steps, with_, color=colour, marker=marker, linestyle="--", mfc="white")
    harm.plot(steps, harms, color=colour, marker=marker, linestyle="-", clip_on=False)  # whole markers at harm 0


def _finish_accuracy(axes: Axes) -> None:
    axes.set(title="Accuracy", xlabel="optimizer steps", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    handles = [
        Line2D([], [], color=GREY, linestyle="-", marker="o", label="without context"),
        Line2D([], [], color=GREY, linestyle="--", marker="o", mfc="white", label="with context"),
    ]
    axes.legend(handles=handles, loc="best")


def _finish_harm(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set(title="Harm: P(wrong with | right without)", xlabel="optimizer steps", ylabel="harm (%)")
    summaries = [line.summaries[ALL] for run in runs for line in run.drawn_lines]
    num_withheld = sum(summary.harm is None for summary in summaries)
    shown = [summary.harm for summary in summaries if summary.harm is not None]
    # From 0, and never so close that one flipped item looks like an effect.
    axes.set_ylim(0, min(100.0, max(5.0, 115 * max(shown, default=0.0))))
    if num_withheld:
        axes.text(
            0.98,
            0.97,
            f"{num_withheld} of {len(summaries)} points withheld\n(fewer than {MIN_HARM_ITEMS} items right without)",
            transform=axes.transAxes,
            ha="right",
            va="top",
            color=GREY,
            fontsize=8,
        )


def _legend_label(run: Run) -> str:
    """The folder's name, with what it does not say of the method."""
    detail = "" if run.consistency is None else run.method
    if run.consistency is not None and run.consistency in run.label:
        detail = detail.removeprefix(run.consistency).strip()
    label = f"{run.label} ({detail})" if detail else run.label
    # Literally: matplotlib would set what stands between dollar signs as mathematics and skip a leading underscore.
    return (" " if label.startswith("_") else "") + label.replace("$", r"\$")
