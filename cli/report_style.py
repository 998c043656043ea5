"""How the report's figures look: colours, markers, the legend below the panels, and the files they are saved to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from cli.report_curves import Curve
from cli.report_methods import Comparison

# Okabe and Ito, "Color Universal Design" (2008): distinguishable with every common colour blindness. Their yellow is
# left out, it is too pale for lines on white. Behind their seven, for studies of more methods, four of Paul Tol's
# "muted" scheme and a grey. Twelve colours and five markers: 60 curves before a pair repeats.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
    "#882255", "#999933", "#44AA99", "#332288", "#888888",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v")
GREY = "0.35"
BAND: dict[str, Any] = {"alpha": 0.13, "linewidth": 0.0}

WIDTH = 8.6
"""Inches: two panels side by side on a page."""
PANEL_HEIGHT = 3.5
LEGEND_ROW_HEIGHT = 0.2
LEGEND_ROW_CHARACTERS = 110
"""Characters of the legend that fit into `WIDTH`, of which each entry's line and gap take 8."""
FORMATS = ("png", "svg", "pdf")

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
    "pdf.fonttype": 42,  # TrueType: publishers refuse matplotlib's default, Type 3
}


def look(number: int) -> tuple[str, str]:
    """Colour and marker of the curve with this number."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def figure_of_settings(
    settings: Sequence[tuple[Comparison, Sequence[Curve]]], labels: Sequence[str], panel_height: float = PANEL_HEIGHT
) -> tuple[Figure, list[Figure | SubFigure]]:
    """Return a figure with a legend of `labels` at its foot, and the part of it that belongs to each setting.

    Args:
        settings: the panels, from top to bottom; with more than one, each has its setting and items on top.
        labels: legend entries, in the order of `look`.
        panel_height: inches of a setting.
    """
    num_columns = max(1, min(len(labels), LEGEND_ROW_CHARACTERS // (max(map(len, labels)) + 8)))
    legend_height = LEGEND_ROW_HEIGHT * math.ceil(len(labels) / num_columns)
    # Figure, not pyplot: no window system and no global state, so it also works inside a training process.
    figure = Figure(figsize=(WIDTH, panel_height * len(settings) + legend_height), layout="constrained")
    parts: list[Figure | SubFigure] = [figure]
    if len(settings) > 1:
        parts = list(figure.subfigures(len(settings), 1, squeeze=False)[:, 0])
        for part, (comparison, _) in zip(parts, settings, strict=True):
            title = f"{comparison.setting}, {comparison.split}, {comparison.num_items} items"
            part.suptitle(literally(title), x=0.01, ha="left", fontsize=10)
    handles = [
        Line2D([], [], color=look(number)[0], marker=look(number)[1], label=literally(label))
        for number, label in enumerate(labels)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=num_columns)
    return figure, parts


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save `figure` in every one of `FORMATS`; return the paths. Without a date the same numbers give the same file."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in FORMATS]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: the engine would do so again for every format
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context(STYLE):
        for path, suffix in zip(paths, FORMATS, strict=True):
            figure.savefig(path, dpi=200, metadata=dates.get(suffix))
    return paths


def literally(text: str) -> str:
    """Keep matplotlib from setting what stands between dollar signs as mathematics, and from skipping `_` labels."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
