"""Every method's differences to its setting's baseline: over items, over seeds, corrected for their number."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from callbacks.paired_records import PairedRecord
from callbacks.removability_bootstrap import BootstrapEstimate, bootstrap, paired_bootstrap
from callbacks.removability_files import SummaryLine
from callbacks.removability_metrics import ALL
from callbacks.removability_seeds import seed_difference
from callbacks.removability_statistics import holm
from cli.report_config import UNKNOWN, differing_choices
from cli.report_methods import BASELINE, MethodResult, MetricDifference
from cli.report_runs import Run, lines_by_step, records_of, series

COMPARED = (
    "accuracy_no_context",
    "accuracy_with_context",
    "both_correct",
    "harm",
    "help",
    "length_inflation",
    "mean_kl",
)
"""Metrics whose difference to the baseline is estimated."""

TESTED = ("accuracy_no_context", "accuracy_with_context", "both_correct", "harm")
"""Of them those that are tested; the tests of one table are corrected together."""

# They belong to the consistency term itself: no second thing in which a method differs from the baseline.
OF_THE_TERM = ("model.adaptive_tau", "model.anchor_update_rate")


class RecordReader:
    """Reads each evaluation's items once; what can't be read is said once and is None."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._known: dict[tuple[str, int, str, int], list[PairedRecord] | None] = {}

    def __call__(self, run: Run, line: SummaryLine) -> list[PairedRecord] | None:
        """Return the items behind an evaluation."""
        key = (run.label, line.step, *series(line))
        if key not in self._known:
            try:
                with warnings.catch_warnings(record=True) as caught:  # half-written lines
                    warnings.simplefilter("always")
                    self._known[key] = records_of(run, line)
            except (ValueError, OSError) as error:
                self._notes.append(f"{str(error).rstrip('.')}.")
                self._known[key] = None
            self._notes += [str(warning.message) for warning in caught]
        return self._known[key]


def with_differences(
    method: MethodResult, methods: Sequence[MethodResult], read: RecordReader, notes: list[str]
) -> MethodResult:
    """The method with its noise floor and its differences to the baseline."""
    if len(method.runs) == 1 and method.summaries[0].self_flip is not None:
        records = read(method.runs[0], method.lines[0])
        if records is not None:
            method = replace(method, above_noise=bootstrap(records)["harm_above_noise"])
    baseline = _baseline_of(method, methods, notes)
    pairs = [] if baseline is None else _pairs(baseline, method, notes)
    if baseline is None or not pairs:
        return method
    if method.is_untrained:
        found = [(before, _line_of(baseline, before), after, _line_of(method, after)) for before, after in pairs]
        prompting = "" if method.runs[0].config.back_off is not None else ": its column with the context is prompting"
        notes.append(
            f"{method.name} (step {method.step}) is compared with {baseline.name} at step {baseline.step}{prompting}."
        )
        return replace(method, difference_step=method.step, differences=_differences(found, read, notes))
    split, num_items = series(method.lines[0])
    lines = [[lines_by_step(run, split, num_items) for run in pair] for pair in pairs]
    shared = set.intersection(*(set(steps) for pair in lines for steps in pair))
    if not shared:
        notes.append(f"{method.name} and {baseline.name} share no step, so they are not compared.")
        return method
    step = max(shared)
    if step != method.step or step != baseline.step:
        notes.append(
            f"{method.name} (step {method.step}) is compared with {baseline.name} (step {baseline.step}) at step "
            f"{step}, the latest that both have."
        )
    found = [(pair[0], before[step], pair[1], after[step]) for pair, (before, after) in zip(pairs, lines, strict=True)]
    return replace(method, difference_step=step, differences=_differences(found, read, notes))


def _baseline_of(method: MethodResult, methods: Sequence[MethodResult], notes: list[str]) -> MethodResult | None:
    if method.is_baseline or method.runs[0].method == UNKNOWN:
        return None
    baselines = [other for other in methods if other.is_baseline]
    if len(baselines) > 1:
        ending = method.name.removeprefix(method.runs[0].method)
        baselines = [other for other in baselines if other.name == BASELINE + ending]
    if len(baselines) != 1:
        notes.append(f"{method.name} has no {BASELINE!r} run of its kind on these items to be compared with.")
        return None
    configs = [run.config for run in (*method.runs, *baselines[0].runs)]
    if others := [name for name in differing_choices(configs) if name not in OF_THE_TERM]:
        notes.append(f"{method.name} and {baselines[0].name} also differ in {', '.join(others)}.")
    return baselines[0]


def _line_of(method: MethodResult, run: Run) -> SummaryLine:
    return method.lines[method.runs.index(run)]


def _pairs(baseline: MethodResult, method: MethodResult, notes: list[str]) -> list[tuple[Run, Run]]:
    """Runs of equal seed; a single run on both sides is a pair whatever its seed.

    A single untrained run stands beside every seed of the baseline: no seed of training made it.
    """
    if method.is_untrained and len(method.runs) == 1:
        return [(run, method.runs[0]) for run in baseline.runs]
    before = {run.config.seed: run for run in baseline.runs if run.config.seed is not None}
    after = {run.config.seed: run for run in method.runs if run.config.seed is not None}
    shared = sorted(before.keys() & after.keys())
    if not shared and len(baseline.runs) == len(method.runs) == 1:
        return [(baseline.runs[0], method.runs[0])]
    if not shared:
        notes.append(f"{method.name} and {baseline.name} share no seed, so they are not compared.")
    elif len(shared) < max(len(baseline.runs), len(method.runs)):
        listed = ", ".join(map(str, shared))
        notes.append(f"{method.name} and {baseline.name} are compared on the seeds that both have: {listed}.")
    return [(before[seed], after[seed]) for seed in shared]


def _differences(
    found: Sequence[tuple[Run, SummaryLine, Run, SummaryLine]], read: RecordReader, notes: list[str]
) -> dict[str, MetricDifference]:
    records = [(read(baseline, before), read(method, after)) for baseline, before, method, after in found]
    joined = [(before, after) for before, after in records if before is not None and after is not None]
    items: dict[str, BootstrapEstimate] = {}
    if len(joined) == len(records):
        try:
            items = paired_bootstrap(joined)
        except ValueError as error:
            labels = f"{found[0][0].label} and {found[0][2].label}"
            notes.append(f"{labels} are not compared. {error}")
            return {}
    # A single pair may have no seed, or two: any name will do for it.
    seeds = [pair[0].config.seed or 0 for pair in found]
    differences = {}
    for name in COMPARED:
        before = {seed: getattr(pair[1].summaries[ALL], name) for seed, pair in zip(seeds, found, strict=True)}
        after = {seed: getattr(pair[3].summaries[ALL], name) for seed, pair in zip(seeds, found, strict=True)}
        by_seed = seed_difference(before, after)
        if by_seed is not None:
            differences[name] = MetricDifference(by_seed.mean, by_seed, items.get(name))
    return differences


def corrected(methods: Sequence[MethodResult]) -> Iterator[MethodResult]:
    """The methods with p-values adjusted by Holm over all tests of the table."""
    tests = [
        (number, name, p_value)
        for number, method in enumerate(methods)
        for name in TESTED
        if name in method.differences and (p_value := method.differences[name].p_value) is not None
    ]
    adjusted = holm([p_value for _, _, p_value in tests])
    by_test = {(number, name): value for (number, name, _), value in zip(tests, adjusted, strict=True)}
    for number, method in enumerate(methods):
        yield replace(
            method,
            differences={
                name: replace(difference, adjusted_p=by_test.get((number, name)))
                for name, difference in method.differences.items()
            },
        )
