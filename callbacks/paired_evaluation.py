"""From items to graded pairs: the evaluation itself, without a trainer, files or loggers.

Every item is answered without and with its context; then, for each control, with that in the context's place. The
no-context answers are the same for all of them, so a row of the context matrix differs from another in one thing. They
are also scored once: a control costs its own answers and one pass over its own view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from callbacks.paired_records import GradedSample, PairedRecord
from callbacks.removability_files import ORIGINAL
from datamodules.controls import Context, Control, ControlKind, Slot, make_control
from datamodules.example import Example, Grade
from lightning_modules.comparison import Answer, ComparesViews, ComparisonSpec, ViewComparison

Grader = Callable[[Example, str], Grade]
"""Grades a completion of an example: `ContextDataModule.grade`."""


@dataclass(frozen=True)
class ControlSpec:
    """A context to put in place of the real one; see `datamodules.controls` for what each kind is."""

    kind: ControlKind
    """``irrelevant``, ``wrong``, ``paraphrase``, ``reordered``, ``truncated``, ``system_slot`` or ``user_slot``."""
    file: str | None = None
    """Name or path of the context, for ``wrong`` and ``paraphrase``; None: the shipped one, or made from the turns."""
    fraction: float = 0.5
    """Share of the context that ``truncated`` keeps."""
    seed: int = 0
    """Order of ``reordered``."""

    def make(self, context: Context) -> Control:
        """Make the control of one context.

        Raises:
            ValueError: if it can't be made of this context.
            FileNotFoundError: if `file` is missing.
        """
        return make_control(self.kind, context, file=self.file, fraction=self.fraction, seed=self.seed)


@dataclass(frozen=True)
class PairedEvaluation:
    """How items are evaluated."""

    with_kl: bool = True
    """Also score each no-context answer in both views: mean per-token KL(q_x || q_c), and log q_x of its own tokens."""
    num_samples: int = 1
    """Answers per item and view, where decoding samples. Above 1: mean accuracy and pass@k beside the paired rates."""

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: if `num_samples` is not positive.
        """
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; it must be at least 1.")

    def run(
        self,
        module: ComparesViews,
        grade: Grader,
        batches: Sequence[Sequence[Example]],
        controls: Sequence[ControlSpec] = (),
    ) -> Iterator[dict[str, list[PairedRecord]]]:
        """Evaluate batch after batch.

        Yields:
            The records of a batch by what stood in the context's place: "original", then the controls by kind.

        Raises:
            ValueError: if `num_samples` is above 1 and decoding is greedy, or a control can't be made.
        """
        num_no_context, num_with_context = self._num_answers(module)
        made = _ControlMaker(controls)
        for batch in batches:
            spec = ComparisonSpec(self.with_kl, num_no_context, num_with_context, keep_states=bool(controls))
            comparisons = module.compare_views(batch, spec)
            records = {ORIGINAL: [paired_record(grade, comparison) for comparison in comparisons]}
            for control in controls:
                changed, slot = made.examples(batch, control)
                spec = ComparisonSpec(self.with_kl, num_no_context, num_with_context, slot, comparisons)
                records[control.kind] = [
                    paired_record(grade, comparison) for comparison in module.compare_views(changed, spec)
                ]
            yield records

    def _num_answers(self, module: ComparesViews) -> tuple[int, int]:
        """Answers without and with the context: where decoding samples, at least two without, for the noise floor."""
        if module.evaluation.temperature > 0.0:
            return max(2, self.num_samples), self.num_samples
        if self.num_samples > 1:
            raise ValueError(
                f"num_samples is {self.num_samples}, but decoding is greedy and would give the same answer each time; "
                "set evaluation.temperature, or num_samples to 1."
            )
        return 1, 1


def comparing(pl_module: object, user: str) -> ComparesViews:
    """Return the module if it can be evaluated.

    Raises:
        ValueError: naming `user`, the callback that needs it.
    """
    if not isinstance(pl_module, ComparesViews):
        raise ValueError(f"{user} needs a module with compare_views (see ComparesViews); got {type(pl_module)}.")
    return pl_module


class _ControlMaker:
    """Makes every control once for each context that occurs."""

    def __init__(self, controls: Sequence[ControlSpec]) -> None:
        kinds = [control.kind for control in controls]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"controls are {kinds}; name each kind once.")
        self._made: dict[tuple[ControlSpec, str], Control] = {}

    def examples(self, batch: Sequence[Example], spec: ControlSpec) -> tuple[list[Example], Slot | None]:
        """The items with the control in their context's place, and where it goes; items without a context stay."""
        slot: Slot | None = None
        changed = []
        for example in batch:
            context = example.privileged_context
            if context is None:
                changed.append(example)
                continue
            key = (spec, repr(context))
            if key not in self._made:
                self._made[key] = spec.make(context)
            slot = self._made[key].slot
            changed.append(replace(example, privileged_context=self._made[key].context))
        return changed, slot


def paired_record(grade: Grader, comparison: ViewComparison) -> PairedRecord:
    """Grade both views' answers to one example."""
    example = comparison.example
    no_context = _graded(grade, example, Answer(comparison.no_context, comparison.grade_no_context))
    with_context = _graded(grade, example, Answer(comparison.with_context, comparison.grade_with_context))
    return PairedRecord(
        id=example.id,
        group=example.group,
        answer=example.answer,
        completion_no_context=no_context.completion,
        completion_with_context=with_context.completion,
        parsed_no_context=no_context.parsed,
        parsed_with_context=with_context.parsed,
        reason_no_context=no_context.reason,
        reason_with_context=with_context.reason,
        length_no_context=no_context.length,
        length_with_context=with_context.length,
        finished_no_context=no_context.finished,
        finished_with_context=with_context.finished,
        kl=comparison.kl,
        num_kl_tokens=0 if comparison.kl is None else no_context.length,
        question=example.prompt[-1]["content"],
        further_no_context=tuple(_graded(grade, example, answer) for answer in comparison.further_no_context),
        further_with_context=tuple(_graded(grade, example, answer) for answer in comparison.further_with_context),
        # Of a game it would decide nothing: every turn is an answer of its own.
        log_probability_no_context=None if comparison.grade_no_context else comparison.log_probability,
    )


def _graded(grade: Grader, example: Example, answer: Answer) -> GradedSample:
    completion = answer.completion
    # A game brings its own verdict: its transcript is no answer to grade.
    verdict = answer.grade or grade(example, completion.text)
    return GradedSample(completion.text, verdict.parsed, verdict.reason, len(completion.token_ids), completion.finished)
