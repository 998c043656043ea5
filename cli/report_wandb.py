"""``python -m cli report RUN... --wandb PROJECT``: the report's tables and figures as one run on Weights & Biases.

The run has the job type ``report`` and holds

* ``<setting>/<table>``: each setting's tables as they are printed
* ``probes/Deafness and forgetting``, where runs have probes
* ``numbers/evaluations`` and ``numbers/statistics``: the CSV files as tables, to sort, filter and plot
* ``figures/<name>``: the figures
* ``notes``: what a reader must know before comparing the runs
* an artifact of type ``report`` with every file, the page of all items among them

W&B's own variables hold: ``WANDB_MODE=offline`` needs no server, and ``wandb sync`` uploads such a run later.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cli.report_methods import Comparison
from cli.report_notes import comparison_notes
from cli.report_numbers import NumberTable, evaluation_numbers, statistic_numbers
from cli.report_probes import probe_table
from cli.report_runs import Run
from cli.report_tables import setting_title, tables_of

JOB_TYPE = "report"
SECTION_LENGTH = 80
"""Most characters. W&B files a table as an artifact named run-ID-SECTION-TABLE, and refuses names above 128."""


def log_report(
    project: str,
    runs: Sequence[Run],
    comparisons: Sequence[Comparison],
    images: Sequence[tuple[str, Path]],
    files: Sequence[Path],
) -> None:
    """Log a report that is written.

    Args:
        project: of W&B; its run is named after the report's folder.
        runs: the runs of the report.
        comparisons: what `compare` made of them.
        images: caption and path of every figure, as PNG.
        files: every file of the report, all in one folder.

    Raises:
        ImportError: without wandb.
        OSError: if W&B does not start or take them; the message says what to do.
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("--wandb needs wandb: pip install 'context-returns[train]', or wandb alone.") from error
    folder = files[0].parent
    artifact = wandb.Artifact(f"{JOB_TYPE}-{folder.resolve().name}", type=JOB_TYPE)
    for file in files:
        artifact.add_file(str(file))
    try:
        with wandb.init(
            project=project,
            job_type=JOB_TYPE,
            name=folder.resolve().name,
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config={"runs": {run.label: run.method for run in runs}},
            reinit="create_new",
        ) as run:
            run.log(_values(wandb, runs, comparisons, images))
            run.log_artifact(artifact)
    except wandb.Error as error:
        raise OSError(
            f"{folder} holds the report, but W&B did not take it: {error} Log in (wandb login), or set "
            "WANDB_MODE=offline and upload it later with wandb sync."
        ) from error


def section_name(title: str) -> str:
    """A setting's title without slashes, which would open sections of their own; shortened in its middle if long."""
    name = title.replace(" / ", ", ").replace("/", "_")
    if len(name) <= SECTION_LENGTH:
        return name
    mark = f"...{sha256(name.encode()).hexdigest()[:6]}..."  # two settings may differ in what is left out
    half = (SECTION_LENGTH - len(mark)) // 2
    return name[:half] + mark + name[-half:]


def _values(
    wandb: Any, runs: Sequence[Run], comparisons: Sequence[Comparison], images: Sequence[tuple[str, Path]]
) -> dict[str, Any]:
    """Everything that is logged, by its name."""
    values: dict[str, Any] = {}
    for comparison in comparisons:
        section = section_name(setting_title(comparison))
        for table in tables_of(comparison):
            values[f"{section}/{table.title}"] = wandb.Table(list(table.header), [list(row) for row in table.rows])
    if (probes := probe_table(comparisons)) is not None:
        values[f"probes/{probes.title}"] = wandb.Table(list(probes.header), [list(row) for row in probes.rows])
    numbers: dict[str, NumberTable] = {
        "evaluations": evaluation_numbers(runs),
        "statistics": statistic_numbers(comparisons),
    }
    for name, (header, rows) in numbers.items():
        cells = [[row.get(column) for column in header] for row in rows]
        # The regime is a letter among numbers, and "all" a seed.
        values[f"numbers/{name}"] = wandb.Table(list(header), cells, allow_mixed_types=True)
    values |= {f"figures/{path.stem}": wandb.Image(str(path), caption=caption) for caption, path in images}
    notes = [["all runs", note] for note in comparison_notes(runs, comparisons)]
    notes += [[setting_title(comparison), note] for comparison in comparisons for note in comparison.notes]
    return values | {"notes": wandb.Table(["setting", "note"], notes)}
