"""The flip matrices: right or wrong without the context against right or wrong with it, one per run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from callbacks.removability_files import SummaryLine
from callbacks.removability_metrics import ALL
from cli.report_curves import Curve
from cli.report_methods import Comparison
from cli.report_runs import Run
from cli.report_style import GREY, STYLE, literally

MOST_COLUMNS = 4
PANEL_WIDTH = 2.15
PANEL_HEIGHT = 2.5
"""Inches: a square with its labels, and two lines of title."""
LINE_HEIGHT = 0.15
"""Inches of every further line."""
TITLE_CHARACTERS = 28

# Okabe and Ito's vermilion for what the context breaks, bluish green for what it mends.
CELLS = (("both right", "#0072B2"), ("harmed", "#D55E00"), ("helped", "#009E73"), ("both wrong", "#555555"))


def draw_flips(settings: Sequence[tuple[Comparison, Sequence[Curve]]]) -> Figure:
    """One matrix per run at its method's step: counts and shares of all items, the deeper the colour the more."""
    panels = [
        (run, line)
        for _, curves in settings
        for curve in curves
        for run, line in zip(curve.method.runs, curve.method.lines, strict=True)
    ]
    num_columns = min(MOST_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    num_lines = max(_wrapped(run.label).count("\n") for run, _ in panels)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        size = (PANEL_WIDTH * num_columns, (PANEL_HEIGHT + LINE_HEIGHT * num_lines) * num_rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for axes, (run, line) in zip(grid, panels, strict=False):
            _draw_matrix(axes, run, line)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
    return figure


def _draw_matrix(axes: Axes, run: Run, line: SummaryLine) -> None:
    summary = line.summaries[ALL]
    right, wrong = summary.num_correct_no_context, summary.num_wrong_no_context
    counts = (right - summary.num_harmed, summary.num_harmed, summary.num_helped, wrong - summary.num_helped)
    for number, ((name, colour), count) in enumerate(zip(CELLS, counts, strict=True)):
        row, column = divmod(number, 2)
        share = count / summary.num_items
        # Mixed with white, so that text stays readable in black and files need no transparency.
        strength = 0.15 + 0.5 * share
        face = tuple(1 - strength * (1 - channel) for channel in to_rgb(colour))
        axes.add_patch(
            matplotlib.patches.Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white", linewidth=2)
        )
        axes.text(column + 0.5, row + 0.42, str(count), ha="center", va="center", fontsize=11)
        axes.text(column + 0.5, row + 0.68, f"{100 * share:.1f} %", ha="center", va="center", fontsize=7)
        axes.text(column + 0.5, row + 0.15, name, ha="center", va="center", fontsize=7, color=GREY)
    axes.set(xlim=(0, 2), ylim=(2, 0), aspect="equal", xticks=[0.5, 1.5], yticks=[0.5, 1.5])
    axes.set_xticklabels(["right", "wrong"], fontsize=8)
    axes.set_yticklabels(["right", "wrong"], fontsize=8, rotation=90, va="center")
    axes.set_xlabel("with context", fontsize=8)
    axes.set_ylabel("without", fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(literally(f"{_wrapped(run.label)}\nstep {line.step}, {line.split}"), fontsize=8)


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, TITLE_CHARACTERS))
