"""``python -m cli evaluate --config CONFIG --model MODEL --output RUN``: the removability of a model trained anywhere.

The items, the views and, unless ``--model`` names another one, the model are those of a fit's config (``data``,
``model.views``, ``model.student``; nothing else is read of it, except how to decode). The same evaluation as during a
fit is made once. Written are the files of a run, so that ``python -m cli report RUN`` takes it:

    RUN/config.yaml                        what was evaluated
    RUN/removability/<split>-step=*.jsonl  one line per item, one file per context; summary.jsonl
    RUN/probes/...                         following of new contexts, and forgetting (unless switched off)

A killed evaluation continues where it was: finished batches lie in RUN/unfinished/ until their part is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.progress import track

from callbacks.durable_files import append
from callbacks.durable_files import replace as replace_file
from callbacks.paired_evaluation import ControlSpec, PairedEvaluation
from callbacks.paired_records import PairedRecord
from callbacks.probes import GENERAL, ProbeRunner
from callbacks.removability_files import ORIGINAL, append_summary, read_records, write_records
from callbacks.removability_metrics import ALL, RemovabilitySummary, summarise_groups
from cli.config_sections import (
    data_module_of,
    data_section_of,
    device_of,
    evaluation_spec_of,
    run_command,
    section_of,
    student_spec_of,
    view_spec_of,
)
from cli.report_cells import counted_rate, percent
from cli.report_table import NOT_SHOWN
from datamodules.base import ContextDataModule
from datamodules.contexts import check_asks_nothing_evaluated, load_context
from datamodules.example import Example
from datamodules.probe_sets import general_probes
from lightning_modules.evaluated_model import EvaluatedModel
from lightning_modules.models import ModelSpec
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.views import ViewSpec


def evaluate_cli(args: Sequence[str]) -> int:
    """Run the command with the words after ``evaluate``; returns the exit status."""
    return run_command(evaluate_parser(), args, evaluate)


def evaluate_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(prog="python -m cli evaluate", description="Measure the removability of any model.")
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML of a fit, with data; model.views, model.student"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", type=ModelSpec | None, default=None, help="the model; default: model.student")
    parser.add_argument("--base", type=ModelSpec | None, default=None, help="the untrained model, for KL to it")
    parser.add_argument("--context", default=None, help="context of every item: a shipped name, or a file")
    parser.add_argument("--split", type=Literal["val", "test"], default="test", help="items to evaluate")
    parser.add_argument("--max_items", type=int | None, default=None, help="the first so many items; null: all")
    parser.add_argument("--step", type=int, default=0, help="optimizer steps behind the model, for the report")
    parser.add_argument(
        "--controls", type=list[ControlSpec], default=[], help="what else to put in the context's place"
    )
    parser.add_argument("--following", type=bool, default=True, help="also give new contexts: is the model deaf?")
    parser.add_argument("--general", type=bool, default=True, help="also ask common knowledge: what was forgotten?")
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where the models run")
    parser.add_argument("--batch_size", type=int, default=32, help="items answered together")
    parser.add_argument("--seed", type=int, default=0, help="of sampled answers")
    parser.add_argument(
        "--decoding", type=SamplingSpec | None, default=None, help="default: model.evaluation of the config, or greedy"
    )
    parser.add_class_arguments(PairedEvaluation, "evaluation")
    return parser


def evaluate(options: Namespace) -> dict[str, dict[str, RemovabilitySummary]]:
    """Evaluate, write the files and print what came out.

    Returns:
        The summaries by group, by what stood in the context's place.

    Raises:
        FileExistsError: if the output holds a finished evaluation, or one of other settings.
        ValueError: if an option or the config does not fit.
    """
    _check_counts(options)
    data = data_module_of(options.config)
    views = view_spec_of(options.config)
    spec = options.model or _untrained_student(options)
    decoding = options.decoding or evaluation_spec_of(options.config)
    examples = _examples(data, options)
    settings = _settings(options, spec, views, decoding, examples)
    output = _Output(options.output, settings, _config(options, settings))
    module = EvaluatedModel.load(
        spec,
        views,
        decoding,
        base=options.base,
        open_game=data.environment,
        device=device_of(options.device),
        batch_size=options.batch_size,
        completed_steps=options.step,
        seed=options.seed,
    )
    summaries = _pairs(options, module, data, examples, output)
    slot: Literal["system", "user"] = "user" if views.context_slot == "user" else "system"
    runner = ProbeRunner(
        options.following, {GENERAL: general_probes()} if options.general else {}, slot, options.batch_size
    )
    for name in runner.sets():
        started = time.monotonic()
        records = [record for batch in runner.run(module, name) for record in batch]
        output.write(output.folder / "probes", f"{name}-step={options.step:06d}", name, records, started, ORIGINAL)
    output.finish()
    print_matrix(summaries)
    return summaries


MATRIX_COLUMNS = ("context", "items", "without", "with", "both", "harm", "help", "inflation", "KL (nats)")


def print_matrix(summaries: Mapping[str, Mapping[str, RemovabilitySummary]]) -> None:
    """Print what every context does to the answers, a line each; rates in %, withheld and undefined ones as such."""
    lines = [MATRIX_COLUMNS, *(_matrix_row(context, by_group[ALL]) for context, by_group in summaries.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]))


def _matrix_row(context: str, row: RemovabilitySummary) -> tuple[str, ...]:
    return (
        context,
        str(row.num_items),
        *(percent(rate) for rate in (row.accuracy_no_context, row.accuracy_with_context, row.both_correct)),
        *(counted_rate(row, name) for name in ("harm", "help")),
        percent(row.length_inflation, sign="+"),
        NOT_SHOWN if row.mean_kl is None else f"{row.mean_kl:.4f}",
    )


def _pairs(
    options: Namespace, module: EvaluatedModel, data: ContextDataModule, examples: list[Example], output: _Output
) -> dict[str, dict[str, RemovabilitySummary]]:
    """Evaluate what an earlier, killed call has not, and write the complete records."""
    started = time.monotonic()
    contexts = [ORIGINAL, *(control.kind for control in options.controls)]
    records = {context: output.unfinished(context) for context in contexts}
    done = set.intersection(*({record.id for record in records[context]} for context in contexts))
    left = [example for example in examples if example.id not in done]
    chunks = [left[i : i + options.batch_size] for i in range(0, len(left), options.batch_size)]
    evaluation: PairedEvaluation = options.evaluation
    batches = evaluation.run(module, data.grade, chunks, options.controls)
    for batch in track(batches, "removability", len(chunks), transient=True):
        for context, fresh in batch.items():
            output.keep(context, fresh)
            records[context] += fresh
    summaries = {}
    for context in contexts:
        unique = list({record.id: record for record in records[context]}.values())
        suffix = "" if context == ORIGINAL else f".{context}"
        name = f"{options.split}-step={options.step:06d}{suffix}"
        folder = output.folder / "removability"
        summaries[context] = output.write(folder, name, options.split, unique, started, context)
    return summaries


class _Output:
    """The folder that is written."""

    def __init__(self, folder: Path, settings: dict[str, Any], config: dict[str, Any]) -> None:
        self.folder, self._unfinished = folder, folder / "unfinished"
        self._step = int(settings["step"])
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        path = folder / "evaluation.json"
        if not path.exists() and any((folder / name).exists() for name in ("config.yaml", "removability", "probes")):
            raise FileExistsError(f"{folder} holds a run that is no evaluation; choose another --output.")
        holds_results = path.exists() and (not self._unfinished.exists() or any(self._unfinished.iterdir()))
        if holds_results and path.read_text(encoding="utf-8") != text:
            raise FileExistsError(f"{folder} holds an evaluation with other settings (see {path}); choose another.")
        if holds_results and not self._unfinished.exists():
            raise FileExistsError(f"{folder} holds this evaluation, finished. Choose another --output, or delete it.")
        self._unfinished.mkdir(parents=True, exist_ok=True)
        for name in ("removability", "probes"):  # of a killed call: written anew from the batches that were kept
            shutil.rmtree(folder / name, ignore_errors=True)
        replace_file(path, text.encode())
        replace_file(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())

    def unfinished(self, context: str) -> list[PairedRecord]:
        """The records of an earlier, killed call."""
        path = self._unfinished / f"{context}.jsonl"
        return read_records(path) if path.exists() else []

    def keep(self, context: str, records: Sequence[PairedRecord]) -> None:
        """Keep the records of a batch, in case the process is killed."""
        lines = "".join(record.to_json() + "\n" for record in records)
        append(self._unfinished / f"{context}.jsonl", lines.encode(), sync=True)

    def write(
        self, folder: Path, name: str, split: str, records: list[PairedRecord], started: float, context: str
    ) -> dict[str, RemovabilitySummary]:
        """Write the complete records and their summary."""
        records = sorted(records, key=lambda record: record.id)
        summaries = summarise_groups(records)
        write_records(folder / f"{name}.jsonl", records)
        append_summary(folder / "summary.jsonl", self._step, split, summaries, time.monotonic() - started, context)
        return summaries

    def finish(self) -> None:
        """Remove what was only kept for a killed process."""
        shutil.rmtree(self._unfinished)


def _untrained_student(options: Namespace) -> ModelSpec:
    """The config's student. One to train with adapters is, untrained, its base."""
    return replace(student_spec_of(options.config), lora=None)


def _config(options: Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """The run's config.yaml: what a report groups runs by, as far as an evaluation knows it."""
    model = {"student": settings["model"], "views": settings["views"], "evaluation": settings["decoding"]}
    # A report compares the config's own student, untrained, with the fits of that config, their teacher included.
    student = section_of(options.config, "model.student")
    untrained = options.step == 0 and (
        options.model is None or (student is not None and options.model == _untrained_student(options))
    )
    if untrained:
        model["teacher"] = section_of(options.config, "model.teacher")
    return {"untrained": untrained, "data": data_section_of(options.config, options.context), "model": model}


def _check_counts(options: Namespace) -> None:
    """Refuse, before anything is loaded, numbers that would spoil what has been computed."""
    for name, low in (("max_items", 1), ("batch_size", 1), ("step", 0), ("seed", 0)):
        if (value := options[name]) is not None and value < low:
            raise ValueError(f"--{name} is {value}; it must be at least {low}.")


def _examples(data: ContextDataModule, options: Namespace) -> list[Example]:
    examples = data.examples(options.split)[: options.max_items]
    if options.context is not None:
        context = load_context(options.context)
        check_asks_nothing_evaluated(context, options.context, examples)
        examples = [replace(example, privileged_context=context) for example in examples]
    if all(example.privileged_context is None for example in examples):
        raise ValueError(
            f"No item of split {options.split!r} has a privileged context, so both views are the same; give --context "
            "FILE, or a context in the config's data."
        )
    return examples


def _settings(
    options: Namespace, spec: ModelSpec, views: ViewSpec, decoding: SamplingSpec, examples: Sequence[Example]
) -> dict[str, Any]:
    """What decides the result, as plain JSON values: not names alone, for what they name may change meanwhile."""
    items = json.dumps([asdict(example) for example in examples], ensure_ascii=False)
    settings = {
        "model": asdict(spec),
        "base": None if options.base is None else asdict(options.base),
        "data": section_of(options.config, "data"),
        "views": asdict(views),
        "decoding": asdict(decoding),
        "evaluation": asdict(options.evaluation),
        "controls": [asdict(control) for control in options.controls],
        "context": options.context,
        "items_sha256": hashlib.sha256(items.encode()).hexdigest(),
        "files": {one.name: _files_of(one.name) for one in (spec, options.base) if one is not None},
        **{name: options[name] for name in ("split", "max_items", "step", "following", "general", "seed")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _files_of(name: str) -> dict[str, list[int]]:
    """Size and time of change of the files of a model's folder; none for a name on the hub or in a package."""
    folder = Path(name)
    if not folder.is_dir():
        return {}
    states = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    return {file: [state.st_size, state.st_mtime_ns] for file, state in states.items()}
