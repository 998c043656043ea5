"""What a report compares: methods, one or more runs of each, in a setting, with their differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from callbacks.removability_bootstrap import BootstrapEstimate
from callbacks.removability_files import SummaryLine
from callbacks.removability_metrics import ALL, RemovabilitySummary
from callbacks.removability_seeds import SeedDifference
from callbacks.removability_statistics import Interval
from cli.report_runs import Run, Series, series

BASELINE = "none"
"""`RunConfig.method` of on-policy distillation alone."""


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """One metric of a method minus the baseline's."""

    value: float
    """Mean over the seeds that both have."""
    seeds: SeedDifference
    items: BootstrapEstimate | None
    """Over items, the seeds held fixed; None where the evaluations' items can't be joined."""
    adjusted_p: float | None = None
    """`p_value` after Holm's correction for the tests of its table."""

    @property
    def interval(self) -> Interval | None:
        """Over seeds where there are several, else over items."""
        if len(self.seeds.seeds) > 1:
            return self.seeds.interval
        return None if self.items is None else self.items.interval

    @property
    def p_value(self) -> float | None:
        """The larger of what seeds and items say: a difference must hold for other seeds AND for other items."""
        known = [self.seeds.p_value] if len(self.seeds.seeds) > 1 else []
        known += [] if self.items is None else [self.items.p_value]
        p_values = [p_value for p_value in known if p_value is not None]
        return max(p_values) if p_values and len(p_values) == len(known) else None


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One method in one setting: its runs' evaluations at one step."""

    name: str
    runs: tuple[Run, ...]
    """One per seed."""
    step: int
    """The latest that most of the method's runs have; runs without it are left out."""
    lines: tuple[SummaryLine, ...]
    """The evaluation of each run at `step`, in the order of `runs`."""
    above_noise: BootstrapEstimate | None = None
    """harm - self_flip over items, of a single run whose records hold a second answer."""
    difference_step: int | None = None
    """The latest step that all compared runs share; None: not compared."""
    differences: Mapping[str, MetricDifference] = field(default_factory=dict)
    """By metric, what is `COMPARED` and known in both; empty for the baseline itself."""

    @property
    def summaries(self) -> list[RemovabilitySummary]:
        """Summaries over all items, one per run."""
        return [line.summaries[ALL] for line in self.lines]

    @property
    def seeds(self) -> list[int | None]:
        """Seed of each run; None: not known."""
        return [run.config.seed for run in self.runs]

    @property
    def is_baseline(self) -> bool:
        """On-policy distillation alone."""
        return self.runs[0].method == BASELINE

    @property
    def is_untrained(self) -> bool:
        """The student as it came, under back-off or not; of one step, which is compared with the baseline's last."""
        return self.runs[0].config.untrained


@dataclass(frozen=True, slots=True)
class Comparison:
    """All methods of one setting on one set of items."""

    setting: str
    split: str
    num_items: int
    methods: tuple[MethodResult, ...]
    notes: tuple[str, ...]
    """What a reader must know, in sentences."""

    @property
    def series(self) -> Series:
        """Split and number of items."""
        return self.split, self.num_items

    @property
    def runs(self) -> list[Run]:
        """Every run of every method."""
        return [run for method in self.methods for run in method.runs]


def values_of(method: MethodResult, metric: str) -> list[float | None]:
    """One value per run of the method."""
    return [getattr(summary, metric) for summary in method.summaries]


def control_lines(comparison: Comparison, method: MethodResult) -> dict[str, list[tuple[Run, SummaryLine]]]:
    """Evaluations of a method with controls, by the control's name: of each run the last one up to the method's step.

    Controls on as many items as no evaluation with the context itself are shown with every one of their split.
    """
    found: dict[str, list[tuple[Run, SummaryLine]]] = {}
    for run in method.runs:
        own = {series(line) for line in run.lines}
        last = {
            line.context: line
            for line in run.control_lines
            if line.split == comparison.split
            and (series(line) not in own or series(line)[1] == comparison.num_items)
            and line.step <= method.step
        }
        for context, line in last.items():
            found.setdefault(context, []).append((run, line))
    return found
