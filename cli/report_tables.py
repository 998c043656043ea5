"""The report's numbers as Markdown, CSV and a table in the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from callbacks.removability_metrics import ALL, MIN_HARM_ITEMS, RemovabilitySummary
from cli.report_runs import Run, comparison_notes

METRIC_HEADER = (
    "items",
    "without",
    "with",
    "both",
    "harm (n/N)",
    "help (n/N)",
    "KL",
    "length without",
    "length with",
    "inflation",
)
TEXT_COLUMNS = ("run", "method", "folder", "group", "split")
"""Aligned to the left; numbers to the right."""

NOT_SHOWN = "-"
"""A value that is withheld or not defined."""

LEGEND = (
    "without, with: accuracy without and with the context, in %. both: right in both views, in %.",
    "harm: wrong with the context among the N items that are right without it, in %. "
    "help: right with the context among the N items that are wrong without it, in %. "
    f"A dash: withheld, N is below {MIN_HARM_ITEMS}.",
    "KL: mean per token of KL(q_x || q_c) over the no-context completions, in nats. length: mean tokens of a "
    "completion. inflation: (with - without) / without, in %.",
)

# Terminals that are not there (a log file, a pipe) are taken to be wide enough for every column.
UNBOUNDED_WIDTH = 250

Cells = list[str]


def evaluation_table(runs: Sequence[Run]) -> tuple[Cells, list[Cells]]:
    """Return header and rows of every evaluation: one row per run, split and step."""
    rows = [
        [run.label, line.split, str(line.step), *_metric_cells(line.summaries[ALL])]
        for run in runs
        for line in run.lines
    ]
    return ["run", "split", "step", *METRIC_HEADER], rows


def last_step_table(runs: Sequence[Run]) -> tuple[Cells, list[Cells]]:
    """Return header and rows of each run's last evaluation, per split, over all items and per group."""
    rows = [
        [run.label, group, line.split, str(line.step), *_metric_cells(summary)]
        for run in runs
        for line in run.last_lines
        for group, summary in line.summaries.items()
    ]
    return ["run", "group", "split", "step", *METRIC_HEADER], rows


def to_markdown(runs: Sequence[Run], figure: str) -> str:
    """Return the report as Markdown that shows the image `figure`, a path relative to the Markdown file."""
    parts = [
        "# Removability",
        f"![Accuracy without and with the context, and harm, over optimizer steps]({figure})",
        "## Runs",
        _markdown_table(["run", "method", "folder"], [[run.label, run.method, str(run.folder)] for run in runs]),
        "## Every evaluation",
        _markdown_table(*evaluation_table(runs)),
        _markdown_list(comparison_notes(runs)),
        _markdown_list(LEGEND),
        "## Last step",
        _markdown_table(*last_step_table(runs)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_csv(runs: Sequence[Run]) -> str:
    """Return every number: one row per run, evaluation and group. Rates are fractions; an empty cell is withheld."""
    metrics = [field.name for field in fields(RemovabilitySummary)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "consistency", "consistency_coef", "split", "step", "group", "elapsed_s", *metrics])
    for run in runs:
        for line in run.lines:
            for group, summary in line.summaries.items():
                values = summary.to_dict()
                place = [run.label, run.consistency, run.consistency_coef, line.split, line.step, group, line.elapsed_s]
                writer.writerow([*place, *(values[name] for name in metrics)])
    return buffer.getvalue()


def print_tables(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print both tables and what to know before comparing the runs.

    Args:
        runs: the runs of the report.
        console: where to print; None: standard output.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=UNBOUNDED_WIDTH)
    for run in runs:
        console.print(f"{run.label}: {run.method}", markup=False, highlight=False, soft_wrap=True)
    header, rows = evaluation_table(runs)
    console.print(_rich_table("Every evaluation", header, rows))
    header, rows = last_step_table(runs)
    console.print(_rich_table("Last step", header, rows))
    for note in (*comparison_notes(runs), *LEGEND):
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)


def _metric_cells(summary: RemovabilitySummary) -> Cells:
    return [
        str(summary.num_items),
        _percent(summary.accuracy_no_context),
        _percent(summary.accuracy_with_context),
        _percent(summary.both_correct),
        f"{_percent(summary.harm)} ({summary.num_harmed}/{summary.num_correct_no_context})",
        f"{_percent(summary.help)} ({summary.num_helped}/{summary.num_wrong_no_context})",
        NOT_SHOWN if summary.mean_kl is None else f"{summary.mean_kl:.4f}",
        f"{summary.mean_length_no_context:.1f}",
        f"{summary.mean_length_with_context:.1f}",
        _percent(summary.length_inflation, sign="+"),
    ]


def _percent(fraction: float | None, sign: str = "") -> str:
    return NOT_SHOWN if fraction is None else f"{100 * fraction:{sign}.1f}"


def _markdown_table(header: Cells, rows: Sequence[Cells]) -> str:
    ruler = ["---" if name in TEXT_COLUMNS else "---:" for name in header]
    lines = [header, ruler, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _rich_table(title: str, header: Cells, rows: Sequence[Cells]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous is not None and previous[0] != row[0]:
            table.add_section()
        table.add_row(*(Text(cell) for cell in row))  # as it is: a folder's name may hold [brackets]
    return table
