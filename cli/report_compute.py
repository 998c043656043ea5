"""The methods at equal compute: what each had reached when it had cost as much as the baseline's whole run.

Cost is the measured time of the optimizer steps, rollouts included (``throughput/step_s`` of metrics.csv); evaluations
cost every method the same and don't count. Of each run the last evaluation is taken whose steps had cost no more than
the budget: the median, over the baseline's runs, of what their steps up to their last compared evaluation cost. A
method of cheaper steps is shown at its own last one. Times compare methods only where their runs had the machine alike.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from callbacks.removability_files import SummaryLine
from cli.report_cells import over_seeds, rate_cell
from cli.report_methods import Comparison, MethodResult, values_of
from cli.report_runs import Run, lines_by_step
from cli.report_table import Table

COLUMN = "throughput/step_s"
NOTE = (
    "At equal compute: of each run the last evaluation whose optimizer steps, rollouts included, had taken no longer "
    "than the baseline's whole run (share: of that time, in %). It compares methods only if their runs had the machine "
    "alike."
)


def compute_table(comparison: Comparison) -> Table | None:
    """One row per method; None where the baseline is missing or nothing is compared, or times are not known."""
    baseline = next((method for method in comparison.methods if method.is_baseline and method.step > 0), None)
    if baseline is None or len(comparison.methods) < 2:
        return None
    totals = [sum(seconds) for seconds in _step_seconds(baseline, baseline.step)]
    budget = statistics.median(totals) if totals else 0.0
    if budget <= 0.0:
        return None
    own_step = statistics.median(second for seconds in _step_seconds(baseline, baseline.step) for second in seconds)
    rows = []
    for method in comparison.methods:
        reached = [(run, line, cost) for run in method.runs for line, cost in _reached(run, comparison, budget)]
        if not reached:
            continue
        runs, lines, costs = zip(*reached, strict=True)
        variant = MethodResult(method.name, runs, max(line.step for line in lines), lines)
        seconds = [second for run in runs for second in step_seconds(run.folder).values()]
        rates = (rate_cell(variant, name) for name in ("accuracy_no_context", "accuracy_with_context", "both_correct"))
        rows.append(
            [
                *(method.name, str(len(runs)), f"{statistics.median(seconds) / own_step:.2f}"),
                "/".join(str(step) for step in sorted({line.step for line in lines})),
                f"{100 * statistics.fmean(costs) / budget:.0f}",
                *(*rates, rate_cell(variant, "harm", counted=True)),
                over_seeds(values_of(variant, "mean_kl"), scale=1.0, decimals=4),
            ]
        )
    header = ["method", "seeds", "cost of a step", "step", "share", "without", "with", "both", "harm (n/N)", "KL"]
    return Table("At equal compute", header, rows, frozenset({"method"}), (NOTE,)) if len(rows) > 1 else None


def step_seconds(folder: Path) -> dict[int, float]:
    """Seconds of each optimizer step of a run, by the number of steps done; empty where metrics.csv has none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        return {int(row["step"]): float(row[COLUMN]) for row in csv.DictReader(lines) if row.get(COLUMN)}


def _step_seconds(method: MethodResult, last: int) -> Iterator[list[float]]:
    """Of each run that has a time for every step up to the last one."""
    for run in method.runs:
        seconds = step_seconds(run.folder)
        if all(step in seconds for step in range(1, last + 1)):
            yield [seconds[step] for step in range(1, last + 1)]


def _reached(run: Run, comparison: Comparison, budget: float) -> Iterator[tuple[SummaryLine, float]]:
    """The last evaluation within the budget and what its steps cost, if the run has one after its first step."""
    seconds = step_seconds(run.folder)
    costs = dict(enumerate(accumulate(seconds[step] for step in sorted(seconds)), start=1))
    if sorted(seconds) != list(costs):
        return  # steps are missing
    lines = lines_by_step(run, *comparison.series)
    within = [step for step in lines if step and costs.get(step, float("inf")) <= budget * (1 + 1e-9)]
    if within:
        yield lines[max(within)], costs[max(within)]
