"""What a reader must know before comparing the runs of one report, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.report_config import UNKNOWN
from cli.report_curves import drawn_settings
from cli.report_methods import Comparison
from cli.report_runs import Run, Series, lines_by_step, series


def comparison_notes(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> list[str]:
    """Say where curves do not compare, which evaluations no figure shows, and what was wrong with the runs' files."""
    panels = [comparison for comparison, _ in drawn_settings(comparisons)]
    drawn: dict[str, list[Series]] = {run.label: [] for run in runs}
    for panel in panels:
        for run in panel.runs:
            drawn[run.label].append(panel.series)
    notes = []
    for setting in dict.fromkeys(run.config.setting for run in runs):  # runs of different settings are not compared
        members = [run for run in runs if run.config.setting == setting and drawn[run.label]]
        items = {run.label: _in_words(drawn[run.label]) for run in members}
        if len(set(items.values())) > 1:
            listed = _by_value(items, "{labels} on {value}")
            notes.append(
                f"The runs were NOT evaluated on the same items, so their curves do not compare: {listed}. The figures "
                "have a panel for each."
            )
        trained = [run for run in members if not run.config.untrained]
        ends = {run.label: str(max(lines_by_step(run, *drawn[run.label][0]))) for run in trained}
        if len(set(ends.values())) > 1:
            notes.append(f"The last evaluations are at different steps: {_by_value(ends, '{labels} at {value}')}.")
    for run in runs:
        notes += _of_run(run, drawn[run.label])
    return notes


def _of_run(run: Run, drawn: Sequence[Series]) -> list[str]:
    notes = []
    hidden = [own for line in run.last_lines if (own := series(line)) not in drawn]
    if not drawn:
        notes.append(f"{run.label} is in no figure; the notes of its setting say why. Its evaluations are tabulated.")
    elif hidden:
        notes.append(
            f"{run.label} was evaluated on several item sets; the figures show {_in_words(drawn)}, and only tables "
            f"{_in_words(hidden)}."
        )
    if run.repeated:
        steps = ", ".join(str(step) for step in sorted({line.step for line in run.repeated}))
        notes.append(f"{run.label} was evaluated more than once at step {steps}; the later evaluation counts.")
    notes += run.damage
    if run.method == UNKNOWN:
        notes.append(f"{run.label}: {run.folder / 'config.yaml'} names no model.consistency: method unknown.")
    return notes


def _in_words(item_sets: Sequence[Series]) -> str:
    return " and ".join(f"{split} ({num_items} items)" for split, num_items in item_sets)


def _by_value(values: Mapping[str, str], sentence: str) -> str:
    """List labels by what they share: "a, b on val (200 items); c on val (100 items)"."""
    return "; ".join(
        sentence.format(labels=", ".join(label for label in values if values[label] == value), value=value)
        for value in dict.fromkeys(values.values())
    )
