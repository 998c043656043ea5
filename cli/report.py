"""``python -m cli report RUN... --output DIR``: compare the removability of runs in a figure and tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.report_figure import draw_removability
from cli.report_page import write_page
from cli.report_runs import read_runs
from cli.report_tables import print_tables, to_csv, to_markdown


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """The files of a report."""

    png: Path
    svg: Path
    markdown: Path
    """Tables with the last step apart, over all items and per group; shows the PNG."""
    csv: Path
    """Every number: one row per run, evaluation and group."""
    page: Path
    """Every item with both completions, to browse; needs no network."""


def report(runs: Sequence[Path], output: Path, all_steps: bool = False) -> ReportPaths:
    """Compare runs and print the tables. A run may still be going on; the report shows its evaluations so far.

    Args:
        runs: run folders, in the order of the legend. Each needs removability/summary.jsonl; config.yaml is optional
            and names the method.
        output: folder of the report; it is created, an earlier report in it is overwritten.
        all_steps: the page holds the items of every evaluation; False: of each run's first and last one.

    Raises:
        FileNotFoundError: if a run folder or its summary.jsonl is missing.
        ValueError: if no run is given or one twice, or a summary.jsonl is empty or broken.
        OSError: if the report cannot be written.
    """
    histories = read_runs(runs)
    output.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(*(output / f"removability.{suffix}" for suffix in ("png", "svg", "md", "csv", "html")))
    draw_removability(histories, [paths.png, paths.svg])
    paths.markdown.write_text(to_markdown(histories, figure=paths.png.name), encoding="utf-8")
    paths.csv.write_text(to_csv(histories), encoding="utf-8")
    write_page(histories, paths.page, all_steps)
    print_tables(histories)
    return paths


def report_cli(args: Sequence[str]) -> int:
    """Run the command with the words after ``report``.

    Returns:
        0. Errors that a user can mend end the process with a message and status 2, as argparse's own do.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cli report", description="Compare the removability of runs in a figure and tables."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder (trainer.default_root_dir)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("report"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--all-steps",
        action="store_true",
        help="put the items of every evaluation into the page, not the first and last",
    )
    options = parser.parse_args(args)
    try:
        paths = report(options.runs, options.output, options.all_steps)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"Written: {paths.png}, {paths.svg}, {paths.markdown}, {paths.csv}, {paths.page}")
    return 0
