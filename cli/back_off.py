"""``python -m cli back_off RUN --threshold T --output DIR``: a run as if it had backed off to the context.

The rule is `callbacks.back_off`. Nothing is decoded: every evaluation of RUN that kept the log-probabilities of its
no-context answers is written again, with the answer that back-off would have given in the with-context view, and
`python -m cli report` takes DIR as one more run. Without --threshold a table over thresholds is printed to choose from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from callbacks.back_off import back_off, candidate_thresholds, keeps_no_context
from callbacks.durable_files import replace as replace_file
from callbacks.paired_records import PairedRecord
from callbacks.removability_files import ORIGINAL, SummaryLine, append_summary, write_records
from callbacks.removability_metrics import summarise, summarise_groups
from cli.report_cells import counted_rate, percent
from cli.report_runs import Run, find_records, read_run

COLUMNS = ("evaluation", "threshold", "items", "kept", "without", "with", "both", "harm")
"""``kept``: items whose no-context answer stands, in %."""


def back_off_cli(args: Sequence[str]) -> int:
    """Run the command with the words after ``back_off``.

    Returns:
        0. Errors that a user can mend end the process with a message and status 2, as argparse's own do.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cli back_off",
        description="Rebuild a run as if it had kept the answer given without the context wherever the model was sure "
        "of it. Without --threshold: print what thresholds would give.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder of a fit or of evaluate; not of games")
    parser.add_argument(
        "--threshold",
        metavar="T",
        type=float,
        help="least mean log-probability of a token (nats) at which the no-context answer stands; --threshold=-inf: "
        "always, inf: never",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--split", choices=("val", "test"), default="val", help="split of the table to choose from (default: val)"
    )
    options = parser.parse_args(args)
    if (options.threshold is None) != (options.output is None):
        parser.error("give --threshold and --output, or neither to see a table over thresholds.")
    try:
        if options.output is None:
            print_thresholds(options.run, options.split)
        else:
            write_backed_off(options.run, options.threshold, options.output)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def print_thresholds(folder: Path, split: str) -> None:
    """Print what thresholds give in the last evaluation of a split, a line each; nothing is written.

    Raises:
        FileNotFoundError: if the folder is no run that was evaluated.
        ValueError: if no evaluation of the split holds log-probabilities, or it was sampled.
    """
    run = read_run(folder, folder.name)
    lines = [line for line in run.lines if line.split == split]
    line, _, records = _scored(run, lines, f"{split} evaluation")[-1]
    _print_rows([_row(line, threshold, records) for threshold in candidate_thresholds(records)])


def write_backed_off(folder: Path, threshold: float, output: Path) -> None:
    """Write the run under back-off, and print its evaluations.

    Args:
        folder: the run.
        threshold: T, in nats per token.
        output: new run folder.

    Raises:
        FileExistsError: if there is something at `output`.
        FileNotFoundError: if `folder` is no run that was evaluated.
        ValueError: if no evaluation holds log-probabilities, or one was sampled, the threshold is NaN, or the run is
            itself one under back-off.
    """
    if output.exists():
        raise FileExistsError(f"--output {output} exists; name a folder that does not.")
    run = read_run(folder, folder.name)
    config = _config_with(run, threshold)
    evaluations = sorted((*run.lines, *run.control_lines), key=lambda line: line.step)
    scored = _scored(run, evaluations, "evaluation")
    rows = [_row(line, threshold, records) for line, _, records in scored]  # refuses before anything is written
    place = output / "removability"
    for line, name, records in scored:
        backed_off = [back_off(record, threshold) for record in records]
        write_records(place / name, backed_off)
        summaries = summarise_groups(backed_off)
        append_summary(place / "summary.jsonl", line.step, line.split, summaries, line.elapsed_s, line.context)
    replace_file(output / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
    _print_rows(rows)
    print(f"Written: {output}. Compare it: python -m cli report {folder} {output}")


def _scored(run: Run, lines: Sequence[SummaryLine], what: str) -> list[tuple[SummaryLine, str, list[PairedRecord]]]:
    """The evaluations that kept every log-probability, with file name and items; says which are left out and why.

    Raises:
        ValueError: if there is none.
    """
    scored = []
    for line in lines:
        try:
            path, records = find_records(run, line)
        except ValueError as error:  # overwritten by a later evaluation, or broken
            print(f"Left out: {_name(line)}. {error}.")
            continue
        if all(record.log_probability_no_context is not None for record in records):
            scored.append((line, path.name.removesuffix(".gz"), records))
        else:
            print(f"Left out: {_name(line)} has items without log_probability_no_context.")
    if not scored:
        raise ValueError(
            f"No {what} of {run.folder} holds the log-probability of every no-context answer. They are kept where "
            "with_kl is true, and not of games; evaluate again, for instance by python -m cli evaluate."
        )
    return scored


def _config_with(run: Run, threshold: float) -> dict[str, Any]:
    """The run's config.yaml with the section by which a report knows back-off."""
    path = run.folder / "config.yaml"
    config: Any = {}
    if path.exists():
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is broken; restore the file. {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no YAML mapping; restore the file.")
    if "back_off" in config:
        raise ValueError(f"{run.folder} is already under back-off (see {path}); start from the run it was made of.")
    return config | {"back_off": {"threshold": threshold, "run": str(run.folder)}}


def _name(line: SummaryLine) -> str:
    return f"{line.split}, step {line.step}" + ("" if line.context == ORIGINAL else f", {line.context}")


def _row(line: SummaryLine, threshold: float, records: Sequence[PairedRecord]) -> tuple[str, ...]:
    summary = summarise([back_off(record, threshold) for record in records])
    kept = sum(keeps_no_context(record, threshold) for record in records) / len(records)
    rates = (kept, summary.accuracy_no_context, summary.accuracy_with_context, summary.both_correct)
    return (_name(line), f"{threshold:g}", str(len(records)), *map(percent, rates), counted_rate(summary, "harm"))


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
