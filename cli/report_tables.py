"""The report's tables: every setting's methods, their differences, controls, and every run's evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from callbacks.removability_files import ORIGINAL, SummaryLine
from callbacks.removability_metrics import ALL, RemovabilitySummary
from cli.report_cells import (
    DIFFERENCE_LEGEND,
    LEGEND,
    STATISTICS_LEGEND,
    counted_rate,
    difference_cell,
    noise_cell,
    over_seeds,
    pass_cell,
    percent,
    rate_cell,
    reasons_cell,
    regime_cell,
)
from cli.report_compute import compute_table
from cli.report_mechanism import mechanism_table
from cli.report_methods import Comparison, MethodResult, control_lines, values_of
from cli.report_notes import comparison_notes
from cli.report_paper import all_settings_tables, paper_table
from cli.report_probes import probe_table
from cli.report_runs import Run
from cli.report_seeds import seed_table
from cli.report_table import NOT_SHOWN, Table, latex_table, markdown_list, markdown_table, rich_table

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
TEXT_COLUMNS = frozenset({"run", "method", "folder", "group", "split", "regime", "context"})

VIEWS = ("no_context", "with_context")

LENGTH_LEGEND = (
    "KL: mean per token of KL(q_x || q_c) over the no-context completions, in nats. length: mean tokens of a "
    "completion. inflation: (with - without) / without, in %."
)
NOISE_LEGEND = (
    "noise floor: wrong at a second draw without the context among the items right at the first, in %; what harm would "
    "be if the context did nothing. harm - noise: in points, over items by a paired bootstrap."
)
SAMPLE_LEGEND = (
    "mean: mean share of right answers among those drawn per item, in %. pass@k: probability that at least one of k "
    "answers is right, without bias, in %. Every other rate is of the first answer."
)
REASON_LEGEND = "harmed by: of the harmed items, how many ended in a wrong answer / without a readable one / cut off."

# Terminals that are not there (a log file, a pipe) are taken to be wide enough for every column.
UNBOUNDED_WIDTH = 250
MOST_PRINTED_EVALUATIONS = 24
"""Rows. A longer table of every evaluation is in the files only."""


def setting_table(comparison: Comparison) -> Table:
    """One row per method: every metric at its last step, with intervals or the spread between seeds."""
    header = ["method", "seeds", "step", "without", "with", "both", "harm (n/N)", "noise floor (n/N)", "harm - noise"]
    header += ["harmed by", "help (n/N)", "inflation", "KL", "F1 without", "F1 with"]
    header += ["mean without", "mean with", "pass@k without", "pass@k with", "regime"]
    rows = []
    for method in comparison.methods:
        views = [rate_cell(method, name) for name in ("accuracy_no_context", "accuracy_with_context", "both_correct")]
        harms = [rate_cell(method, "harm", counted=True), rate_cell(method, "self_flip", counted=True)]
        f1, mean = (
            [over_seeds(values_of(method, f"{metric}_{view}")) for view in VIEWS]
            for metric in ("macro_f1", "mean_accuracy")
        )
        rows.append(
            [
                *(method.name, str(len(method.runs)), str(method.step), *views, *harms),
                *(noise_cell(method), reasons_cell(method.summaries), rate_cell(method, "help", counted=True)),
                over_seeds(values_of(method, "length_inflation"), sign="+"),
                over_seeds(values_of(method, "mean_kl"), scale=1.0, decimals=4),
                *(*f1, *mean, *(pass_cell(method.summaries, view) for view in VIEWS), regime_cell(method.summaries)),
            ]
        )
    return Table("Methods", header, rows, TEXT_COLUMNS, comparison.notes).without_empty_columns()


def difference_table(comparison: Comparison) -> Table | None:
    """One row per method that is compared with the baseline; None where none is."""
    compared = [method for method in comparison.methods if method.differences]
    if not compared:
        return None
    names = ("accuracy_no_context", "accuracy_with_context", "both_correct", "harm", "help", "length_inflation")
    header = ["method", "seeds", "step", *(f"Δ {name}" for name in ("without", "with", "both", "harm", "help"))]
    rows = [
        [
            method.name,
            str(max(len(difference.seeds.seeds) for difference in method.differences.values())),
            str(method.difference_step),
            *(difference_cell(method.differences.get(name)) for name in names),
            difference_cell(method.differences.get("mean_kl"), scale=1.0, decimals=4),
        ]
        for method in compared
    ]
    header += ["Δ inflation", "Δ KL"]
    return Table("Differences to distillation alone", header, rows, TEXT_COLUMNS)


def control_table(comparison: Comparison) -> Table | None:
    """One row per method and context that stood in the context's place; None where no run has a control."""
    header = ["method", "context", "seeds", "step", "items", "with", "harm (n/N)", "help (n/N)", "KL", "length with"]
    rows = []
    for method in comparison.methods:
        found = control_lines(comparison, method)
        if not found:
            continue
        itself = list(zip(method.runs, method.lines, strict=True))
        for context, evaluated in {ORIGINAL: itself, **found}.items():
            its_runs, lines = zip(*evaluated, strict=True)
            variant = MethodResult(method.name, its_runs, lines[0].step, lines)
            steps = "/".join(str(step) for step in sorted({line.step for line in lines}))
            rows.append(
                [
                    *(method.name, context, str(len(lines)), steps, _items(lines)),
                    rate_cell(variant, "accuracy_with_context"),
                    *(rate_cell(variant, name, counted=True) for name in ("harm", "help")),
                    over_seeds(values_of(variant, "mean_kl"), scale=1.0, decimals=4),
                    over_seeds(values_of(variant, "mean_length_with_context"), scale=1.0),
                ]
            )
    return Table("Other contexts in its place", header, rows, TEXT_COLUMNS) if rows else None


def evaluation_table(runs: Sequence[Run]) -> Table:
    """Every evaluation: one row per run, split and step."""
    rows = [
        [run.label, line.split, str(line.step), *_metric_cells(line.summaries[ALL])]
        for run in runs
        for line in run.lines
    ]
    return Table("Every evaluation", ["run", "split", "step", *METRIC_HEADER], rows, TEXT_COLUMNS)


def last_step_table(runs: Sequence[Run]) -> Table:
    """Each run's last evaluation, per split, over all items and per group."""
    rows = [
        [run.label, group, line.split, str(line.step), *_metric_cells(summary)]
        for run in runs
        for line in run.last_lines
        for group, summary in line.summaries.items()
    ]
    return Table("Last step", ["run", "group", "split", "step", *METRIC_HEADER], rows, TEXT_COLUMNS)


def to_markdown(runs: Sequence[Run], comparisons: Sequence[Comparison], figures: Sequence[tuple[str, str]]) -> str:
    """Return the report as Markdown.

    Args:
        runs: the runs, in the order of the legend.
        comparisons: what `compare` made of them.
        figures: caption and path, relative to the Markdown file, of every image to show.
    """
    listed = [[run.label, run.method, _seed(run), str(run.folder)] for run in runs]
    parts = ["# Removability", *(f"![{caption}]({path})" for caption, path in figures), "## Runs"]
    parts.append(markdown_table(Table("Runs", ["run", "method", "seed", "folder"], listed, TEXT_COLUMNS)))
    for comparison in comparisons:
        parts.append(f"## {setting_title(comparison)}")
        for table in tables_of(comparison):
            parts += [f"### {table.title}", markdown_table(table), markdown_list(table.notes)]
    if (probes := probe_table(comparisons)) is not None:
        parts += [f"## {probes.title}", markdown_table(probes), markdown_list(probes.notes)]
    for table in all_settings_tables() if _papers(comparisons) else []:
        parts += [f"## {table.title}", markdown_table(table), markdown_list(table.notes)]
    if mechanism := mechanism_table(runs):
        parts += [f"## {mechanism.title}", markdown_table(mechanism), markdown_list(mechanism.notes)]
    parts += ["## What the columns mean", markdown_list([*LEGEND, *STATISTICS_LEGEND, *_detail_legend(comparisons)])]
    evaluations, last = evaluation_table(runs), last_step_table(runs)
    parts += [f"## {evaluations.title}", markdown_table(evaluations)]
    parts.append(markdown_list(comparison_notes(runs, comparisons)))
    parts += [f"## {last.title}", markdown_table(last)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> str:
    r"""Return the tables of the settings, to be ``\input`` into a document that loads booktabs."""
    tables = [
        replace(table, title=f"{table.title}: {setting_title(comparison)}")
        for comparison in comparisons
        for table in tables_of(comparison)
    ]
    tables += [table for table in (probe_table(comparisons),) if table is not None]
    tables += [last_step_table(runs), *(all_settings_tables() if _papers(comparisons) else [])]
    head = r"% Needs \usepackage{booktabs}. What the columns mean: removability.md."
    return "\n\n".join([head, *(latex_table(table) for table in tables)]) + "\n"


def print_tables(runs: Sequence[Run], comparisons: Sequence[Comparison], console: Console | None = None) -> None:
    """Print each setting's table and, where they are few, every evaluation.

    Args:
        runs: the runs of the report.
        comparisons: what `compare` made of them.
        console: where to print; None: standard output.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=UNBOUNDED_WIDTH)
    for run in runs:
        console.print(f"{run.label}: {run.method}", markup=False, highlight=False, soft_wrap=True)
    evaluations = evaluation_table(runs)
    if len(evaluations.rows) <= MOST_PRINTED_EVALUATIONS:
        console.print(rich_table(evaluations))
    notes = [*comparison_notes(runs, comparisons), *LEGEND, LENGTH_LEGEND]
    for comparison in comparisons:
        console.print(rich_table(short_table(comparison)))
        notes += comparison.notes
    if any(method.differences for comparison in comparisons for method in comparison.methods):
        notes += DIFFERENCE_LEGEND
    for note in (*notes, *STATISTICS_LEGEND):
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)


def short_table(comparison: Comparison) -> Table:
    """A terminal's worth: accuracies, harm, regime, and the two differences that the method is about."""
    header = ["method", "seeds", "step", "without", "with", "harm (n/N)", "regime"]
    names = ("both_correct", "harm") if any(method.differences for method in comparison.methods) else ()
    header += ["Δ both", "Δ harm"][: len(names)]
    rows = []
    for method in comparison.methods:
        views = [over_seeds(values_of(method, name)) for name in ("accuracy_no_context", "accuracy_with_context")]
        rows.append(
            [
                *(method.name, str(len(method.runs)), str(method.step), *views),
                rate_cell(method, "harm", counted=True),
                regime_cell(method.summaries),
                *(difference_cell(method.differences.get(name)) for name in names),
            ]
        )
    return Table(setting_title(comparison), header, rows, TEXT_COLUMNS)


def tables_of(comparison: Comparison) -> list[Table]:
    """Every table of a setting, the notes below the first."""
    others = [make(comparison) for make in (difference_table, seed_table, compute_table, control_table)]
    others.append(paper_table(comparison.setting))
    return [setting_table(comparison), *(table for table in others if table is not None)]


def _papers(comparisons: Sequence[Comparison]) -> bool:
    """Whether a paper printed a number for any of the settings."""
    return any(paper_table(comparison.setting) is not None for comparison in comparisons)


def _detail_legend(comparisons: Sequence[Comparison]) -> list[str]:
    methods = [method for comparison in comparisons for method in comparison.methods]
    legend = [REASON_LEGEND, LENGTH_LEGEND]
    if any(summary.self_flip is not None for method in methods for summary in method.summaries):
        legend.append(NOISE_LEGEND)
    if any(summary.mean_accuracy_no_context is not None for method in methods for summary in method.summaries):
        legend.append(SAMPLE_LEGEND)
    return legend + (list(DIFFERENCE_LEGEND) if any(method.differences for method in methods) else [])


def _items(lines: Sequence[SummaryLine]) -> str:
    return "/".join(str(number) for number in sorted({line.summaries[ALL].num_items for line in lines}))


def _metric_cells(summary: RemovabilitySummary) -> list[str]:
    return [
        str(summary.num_items),
        percent(summary.accuracy_no_context),
        percent(summary.accuracy_with_context),
        percent(summary.both_correct),
        counted_rate(summary, "harm"),
        counted_rate(summary, "help"),
        NOT_SHOWN if summary.mean_kl is None else f"{summary.mean_kl:.4f}",
        f"{summary.mean_length_no_context:.1f}",
        f"{summary.mean_length_with_context:.1f}",
        percent(summary.length_inflation, sign="+"),
    ]


def setting_title(comparison: Comparison) -> str:
    """Setting, split and number of items, in words."""
    return f"{comparison.setting}, {comparison.split}, {comparison.num_items} items"


def _seed(run: Run) -> str:
    return NOT_SHOWN if run.config.seed is None else str(run.config.seed)
