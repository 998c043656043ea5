"""The report's page: every item of the evaluations, both completions side by side, in one HTML file without a network.

`cli/page/` holds the markup, the style and the scripts; here they are joined and the data is put in:

* the catalogue, plain JSON: runs, evaluations with one letter per item for its verdict, and what the reader must know
* the items (id, group, question, answer), once for all runs and steps that share them
* the completions and numbers of each evaluation

Items and evaluations are base64 of gzip of JSON: small, unpacked by the browser when they are looked at, and of an
alphabet in which no completion can end the script element that holds it. A Content-Security-Policy allows the page
its own scripts and style by their hashes and nothing else: no network, no script or picture that a completion names.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from callbacks.paired_records import GradedSample, PairedRecord
from callbacks.removability_files import ORIGINAL, read_records
from callbacks.removability_metrics import ALL
from cli.report_runs import Run

PAGE_FOLDER = Path(__file__).parent / "page"
SCRIPTS = (
    "diff.js",
    "catalogue.js",
    "address.js",
    "list.js",
    "detail.js",
    "hits.js",
    "state.js",
    "controls.js",
    "keys.js",
    "main.js",
)
"""In the order of use: each may use what stands before it."""

RECORDS_FILE = re.compile(r"(?:(?P<split>\w+)-)?step=(?P<step>\d+)(?:\.(?P<context>.+))?\.jsonl(?:\.gz)?")
"""``step=000040.jsonl`` of a fit, ``test-step=000040.jsonl`` of `test`; with a control ``step=000040.NAME.jsonl``; each
may be compressed (`replicate`)."""

NO_RECORD = "."
VERDICTS = {(True, False): "h", (False, True): "p", (True, True): "b", (False, False): "n"}
"""(Right without, right with) -> harm, help, both, neither, as `catalogue.js` knows them."""

ItemKey = tuple[str, str, str, str]
"""Id, group, question and answer: what two records must share to be of the same item."""


@dataclass(frozen=True, slots=True)
class RecordsFile:
    """A file of records and what its name says."""

    path: Path
    step: int
    split: str | None
    """The split of `validate` or `test`; None: an evaluation of the fit."""
    context: str | None
    """The control that stood in the context's place; None: the context itself."""

    @property
    def name(self) -> str:
        """The evaluation in words, as the page's selector has it."""
        control = self.context and f"control {self.context}"
        return ", ".join(part for part in (f"step {self.step}", self.split, control) if part)


@dataclass(slots=True)
class PageData:
    """What is put into the page, while it is collected."""

    runs: list[dict[str, str]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[int, str]] = field(default_factory=list)
    """Per evaluation: item -> letter of `VERDICTS`."""
    blocks: list[str] = field(default_factory=list)
    """Per evaluation: `packed` completions and numbers."""
    items: dict[ItemKey, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What is missing or does not compare."""
    remarks: list[str] = field(default_factory=list)
    """What was left out on purpose."""


def write_page(runs: Sequence[Run], path: Path, all_steps: bool = False) -> None:
    """Write the page. A run without records, or with a broken file of them, is left out and named on the page.

    Args:
        runs: the runs of the report.
        path: the HTML file; its folder must exist.
        all_steps: embed every evaluation; False: per run the first and the last one of each split and context.

    Raises:
        OSError: if the page cannot be written.
    """
    data = PageData()
    for run in runs:
        _add_run(data, run, all_steps)
    data.problems += _differences(data)
    path.write_text(_render(data), encoding="utf-8")


def records_files(run: Path) -> list[RecordsFile]:
    """List a run's files of records: evaluations of the fit first, then by split, context and step."""
    files = []
    for path in (run / "removability").glob("*.jsonl*"):
        if match := RECORDS_FILE.fullmatch(path.name):
            files.append(RecordsFile(path, int(match["step"]), match["split"], match["context"]))
    return sorted(files, key=lambda file: (*_series(file), file.step))


def packed(value: Any) -> str:
    """Return base64 of gzip of JSON; equal values give equal text."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: halves of surrogate pairs have no UTF-8
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def _series(file: RecordsFile) -> tuple[str, str]:
    return file.split or "", file.context or ""


def _add_run(data: PageData, run: Run, all_steps: bool) -> None:
    number = len(data.runs)
    data.runs.append({"label": run.label, "method": run.method})
    files = records_files(run.folder)
    if not files:
        data.problems.append(f"{run.label} has no files of records in {run.folder / 'removability'}: no items to show.")
    left_out = []
    for _, group in groupby(files, _series):
        steps = list(group)
        kept = steps if all_steps else [steps[0], *steps[1:][-1:]]
        left_out += [file.name for file in steps if file not in kept]
        for file in kept:
            _add_evaluation(data, run, number, file)
    if left_out:
        data.remarks.append(f"{run.label}: {'; '.join(left_out)} left out; --all-steps puts every evaluation in.")


def _add_evaluation(data: PageData, run: Run, run_number: int, file: RecordsFile) -> None:
    try:
        records = read_records(file.path)
    except (OSError, ValueError) as error:  # the tables and the other evaluations are worth having without it
        problem = f"{run.label}, {file.name} is not shown. {error}"
        warnings.warn(problem, stacklevel=4)
        data.problems.append(problem)
        return
    if not records:
        data.problems.append(f"{run.label}, {file.name} is not shown: {file.path} holds no items.")
        return
    counts = _summarised_counts(run, file)
    if counts and len(records) not in counts:
        expected = " or ".join(map(str, sorted(counts)))
        data.problems.append(f"{run.label}, {file.name}: {len(records)} items, but summary.jsonl counts {expected}.")
    numbers = [_item_number(data, record) for record in records]
    letters = [VERDICTS[record.correct_no_context, record.correct_with_context] for record in records]
    data.verdicts.append(dict(zip(numbers, letters, strict=True)))
    data.blocks.append(packed([_row(record, number) for record, number in zip(records, numbers, strict=True)]))
    data.evaluations.append({"run": run_number, "step": file.step, "split": file.split, "context": file.context})


def _summarised_counts(run: Run, file: RecordsFile) -> set[int]:
    """Return the numbers of items that summary.jsonl has for the evaluation in `file`; several after a repetition."""
    return {
        line.summaries[ALL].num_items
        for line in (*run.lines, *run.repeated)
        if line.step == file.step and line.context == (file.context or ORIGINAL) and file.split in (None, line.split)
    }


def _item_number(data: PageData, record: PairedRecord) -> int:
    key = (record.id, record.group, record.question, record.answer)
    return data.items.setdefault(key, len(data.items))


def _row(record: PairedRecord, item: int) -> dict[str, Any]:
    """One item's answers, the graded pair first in both lists."""
    without = _first_sample(record, "no_context"), *record.further_no_context
    with_ = _first_sample(record, "with_context"), *record.further_with_context
    return {
        "item": item,
        "without": [asdict(sample) for sample in without],
        "with": [asdict(sample) for sample in with_],
        "kl": record.kl,
        "kl_tokens": record.num_kl_tokens,
    }


def _first_sample(record: PairedRecord, view: str) -> GradedSample:
    names = ("completion", "parsed", "reason", "length", "finished")
    return GradedSample(*(getattr(record, f"{name}_{view}") for name in names))


def _differences(data: PageData) -> list[str]:
    """Say where the evaluations on the page do not hold the same items."""
    problems = []
    by_split: dict[str | None, list[set[int]]] = {}  # a test's items are others than the fit's, as they should be
    for evaluation, verdicts in zip(data.evaluations, data.verdicts, strict=True):
        by_split.setdefault(evaluation["split"], []).append(set(verdicts))
    for split, items in by_split.items():
        num_items, num_everywhere = len(set.union(*items)), len(set.intersection(*items))
        if num_everywhere < num_items:
            name = f"evaluations on {split}" if split else "fits' evaluations"
            counts = f"of {num_items} items, {num_everywhere} are in all of them"
            problems.append(f"The {name} are NOT of the same items: {counts}.")
    num_shared_ids = len(data.items) - len({id_ for id_, *_ in data.items})
    if num_shared_ids:
        problems.append(
            f"{num_shared_ids} items have the id of another one with another question, answer or group; they are "
            "different items here."
        )
    return problems


def _render(data: PageData) -> str:
    style = _source("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_source, SCRIPTS)) + "\n})();\n"
    catalogue = {
        "runs": data.runs,
        "evaluations": [
            evaluation | {"verdicts": "".join(verdicts.get(item, NO_RECORD) for item in range(len(data.items)))}
            for evaluation, verdicts in zip(data.evaluations, data.verdicts, strict=True)
        ],
        "problems": data.problems,
        "remarks": data.remarks,
    }
    blocks = {"items": packed(list(data.items)), **{f"evaluation-{n}": text for n, text in enumerate(data.blocks)}}
    parts = {
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        "style": style,
        "script": script,
        # "<" would let a label end the element
        "catalogue": json.dumps(catalogue).replace("<", "\\u003c"),
        "blocks": "\n".join(f'<script type="text/plain" id="{id_}">{text}</script>' for id_, text in blocks.items()),
    }
    # In one pass: a part may hold what looks like the mark of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], _source("page.html"))


def _source(name: str) -> str:
    return (PAGE_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
