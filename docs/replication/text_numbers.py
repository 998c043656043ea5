"""Numbers in README.md beside this file that `python -m cli report` does not print, from the kept runs.

python docs/replication/text_numbers.py

Each line is one number or cell as the text has it; a test looks for all of them there.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from statistics import mean

from callbacks.paired_records import PairedRecord
from callbacks.removability_bootstrap import paired_bootstrap
from callbacks.removability_files import read_records, read_summaries
from callbacks.removability_metrics import ALL, RemovabilitySummary
from callbacks.removability_seeds import aggregate_seeds, seed_difference

RUNS = Path(__file__).parent / "runs"
TUNING = Path(__file__).parent / "tuning"
SEEDS = (3, 4, 5)
TASKS = tuple(f"{task}/demonstrations" for task in ("geography", "language", "past_tense"))
CONTEXTS = ("geography/guidelines", "geography/facts")
OTHER_METHODS = (
    "dual_opd",
    "symmetric",
    "ema_anchor",
    "teacher_no_context_anchor",
    "off_policy_cd",
    "sft",
    "context_dropout",
)


def summaries(setting: str, method: str, step: int) -> dict[int, RemovabilitySummary]:
    """One evaluation of each seed, over all items."""
    files = {seed: RUNS / setting / method / f"seed={seed}/removability/summary.jsonl" for seed in SEEDS}
    return {
        seed: next(line.summaries[ALL] for line in read_summaries(path) if line.step == step)
        for seed, path in files.items()
    }


def records(setting: str, method: str, step: int) -> dict[int, list[PairedRecord]]:
    """The items behind `summaries`."""
    name = f"removability/step={step:06d}.jsonl.gz"
    return {seed: read_records(RUNS / setting / method / f"seed={seed}" / name) for seed in SEEDS}


def rates(found: Collection[RemovabilitySummary]) -> str:
    """Without / with / right in both as means of the seeds, and harm over their pooled items, all in %."""
    names = "accuracy_no_context", "accuracy_with_context", "both_correct"
    means = (100 * (aggregate_seeds([getattr(summary, name) for summary in found]).mean or 0) for name in names)
    harm = 100 * sum(summary.num_harmed for summary in found) / sum(summary.num_correct_no_context for summary in found)
    return " / ".join(f"{value:.1f}" for value in means) + f", {harm:.1f} %"


def with_counts(found: Collection[RemovabilitySummary]) -> str:
    """`rates`, with the items harmed of those right without the context, all seeds together."""
    num_right = sum(summary.num_correct_no_context for summary in found)
    return f"{rates(found)} ({sum(summary.num_harmed for summary in found)}/{num_right})"


def difference(setting: str, first: tuple[str, int], second: tuple[str, int], metric: str) -> tuple[str, str]:
    """Second - first in points: with its interval over the seeds, as the text has it, and with that over the items."""
    baseline, method = (
        {seed: getattr(summary, metric) for seed, summary in summaries(setting, *which).items()}
        for which in (first, second)
    )
    over_seeds = seed_difference(baseline, method)
    assert over_seeds is not None
    assert over_seeds.interval is not None
    before, after = records(setting, *first), records(setting, *second)
    over_items = paired_bootstrap([(before[seed], after[seed]) for seed in SEEDS])[metric]
    assert over_items.interval is not None
    texts = [
        f"{100 * over_seeds.mean:+.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        for interval in (over_seeds.interval, over_items.interval)
    ]
    return texts[0], texts[1]


def divergence_from_teacher(method: str, first: int, last: int) -> str:
    """Mean KL(q_x || f) on the rollouts of steps `first` to `last` of geography, nats a token."""
    values = []
    for seed in SEEDS:
        with (RUNS / f"geography/demonstrations/{method}/seed={seed}/metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/opd"] and first <= int(row["step"]) <= last]
        values.append(mean(float(row["train/opd"]) for row in rows))
    return f"{mean(values):.3f}"


def lost(setting: str, method: str, step: int, which: Callable[[PairedRecord], bool]) -> int:
    """Answers right without the context and wrong with it that are as asked."""
    return sum(
        record.correct_no_context and not record.correct_with_context and which(record)
        for of_seed in records(setting, method, step).values()
        for record in of_seed
    )


def text_numbers() -> Iterator[tuple[str, str]]:
    """What each number is, and the number as the text has it."""
    for setting in (*TASKS, *CONTEXTS):
        methods = ("opd", "nca") if setting in CONTEXTS else ("opd", "nca", "nca_warmup", "adaptive_anchor")
        for method in methods:
            yield f"{setting} {method}, step 40", with_counts(summaries(setting, method, 40).values())
        for method in ("opd", "nca"):
            yield f"{setting} {method}, step 20", with_counts(summaries(setting, method, 20).values())
    geography, guidelines, facts = TASKS[0], *CONTEXTS
    for method in OTHER_METHODS:
        for step in (20, 40):
            yield f"{geography} {method}, step {step}", rates(summaries(geography, method, step).values())
        harms = (summary.harm for summary in summaries(geography, method, 40).values())
        yield f"{geography} {method}, harm of each seed", ", ".join(f"{100 * (harm or 0):.1f}" for harm in harms)
    for setting, first, second, metric in (
        (geography, ("nca", 20), ("symmetric", 20), "both_correct"),
        (geography, ("opd", 20), ("symmetric", 20), "both_correct"),
        (geography, ("nca", 40), ("symmetric", 40), "both_correct"),
        (facts, ("opd", 20), ("nca", 20), "harm"),
    ):
        over_seeds, over_items = difference(setting, first, second, metric)
        yield f"{setting} {metric}, {second} - {first}; over items {over_items}", over_seeds
    for steps in ((11, 20), (31, 40)):
        for method in ("symmetric", "opd", "nca"):
            yield f"KL(q_x || f) of {method}, steps {steps}", divergence_from_teacher(method, *steps)
    listed = lost(guidelines, "opd", 40, lambda record: record.reason_with_context == "several_answers")
    yield "guidelines, opd: lost answers that name a second continent", f"{listed} name a second continent"
    cut = lost(guidelines, "opd", 40, lambda record: not record.finished_with_context)
    yield "guidelines, opd: lost answers that are cut off", f"{cut} are cut off"
    begun = lost(guidelines, "opd", 40, _begins_right)
    yield "guidelines, opd: of those with a second continent", f"{begun} of the {listed} begin with the right one"
    several = {method: _naming_several(guidelines, method) for method in ("opd", "nca")}
    yield "guidelines, step 40: answers that name several", f"student in {several['opd']} of 480"
    yield "guidelines, step 40: answers that name several, nca", f"NCA's in {several['nca']}"
    none_named = lost(geography, "ema_anchor", 20, lambda record: record.parsed_with_context is None)
    yield "ema_anchor, step 20: lost answers without a continent", f"{none_named} of the 44 lost answers"
    for method in ("opd", "nca", "nca_warmup", "adaptive_anchor"):
        cells = (tuning_cell(rate, method) for rate in ("2e-5", "5e-5"))
        yield f"tuning of {method}", " | ".join(cells)


def tuning_cell(learning_rate: str, method: str) -> str:
    """One run of the tuning at step 40."""
    path = TUNING / f"lr={learning_rate}" / method / "seed=0/removability/summary.jsonl"
    return with_counts([line.summaries[ALL] for line in read_summaries(path) if line.step == 40])


def _naming_several(setting: str, method: str) -> int:
    of_seeds = records(setting, method, 40).values()
    return sum(record.reason_with_context == "several_answers" for of_seed in of_seeds for record in of_seed)


def _begins_right(record: PairedRecord) -> bool:
    several = record.reason_with_context == "several_answers"
    return several and record.completion_with_context.startswith(f"The continent of {record.answer}")


if __name__ == "__main__":
    for what, number in text_numbers():
        print(f"{what}: {number}")
