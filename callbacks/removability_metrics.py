"""Can the context be taken away, and put back? Paired metrics of one evaluation (arXiv:2606.11627).

Every item is answered twice by the same weights: without the context (x) and with it (c, x). Both answers are graded.

* harm = P(c wrong | x right): the context breaks an answer that was right without it
* help = P(c right | x wrong): the context still brings something
* both_correct = P(x right and c right)
* length_inflation = (mean tokens with - mean tokens without) / mean tokens without
* self_flip = P(x wrong again drawn | x right): with sampled decoding, what harm would be if the context did nothing

Rates are fractions in [0, 1]. A value that is not defined, or that rests on too few items, is None: never 0, never NaN.

`paired_rates` is for models trained elsewhere: two lists of booleans are all it needs. Pure numpy: neither torch nor
lightning is imported. Reading and writing: `callbacks.removability_files`.

Departures from the paper: it gives no formula for length_inflation (this one is ours) and no smallest sample for harm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from callbacks.classification_metrics import macro_f1
from callbacks.paired_records import PairedRecord

MIN_HARM_ITEMS = 20
"""Items. A conditional rate on fewer is withheld: at 19 items one flip moves it by more than 5 points."""

ALL = "all"
"""The name under which `summarise_groups` reports every item together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRates:
    """What two lists of right and wrong say. Rates are fractions, `num_` fields count items."""

    num_items: int
    accuracy_no_context: float
    """P(x right)."""
    accuracy_with_context: float
    """P(c right)."""
    both_correct: float
    """P(x right and c right)."""
    neither: float
    """P(x wrong and c wrong)."""
    harm: float | None
    """P(c wrong | x right); None below `MIN_HARM_ITEMS` items with x right."""
    num_correct_no_context: int
    """Items with x right: harm's denominator."""
    num_harmed: int
    """Items with x right and c wrong."""
    help: float | None
    """P(c right | x wrong); None below `MIN_HARM_ITEMS` items with x wrong."""
    num_wrong_no_context: int
    """Items with x wrong: help's denominator."""
    num_helped: int
    """Items with x wrong and c right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovabilitySummary(PairedRates):
    """`PairedRates` with lengths (tokens) and the divergence between the two views (nats)."""

    mean_length_no_context: float
    mean_length_with_context: float
    length_inflation: float | None
    """(with - without) / without, of the mean lengths; None where the mean without is 0."""
    clipped_ratio_no_context: float
    """Fraction of completions cut at the token limit."""
    clipped_ratio_with_context: float
    mean_kl: float | None
    """Mean over all measured tokens of KL(q_x || q_c), in nats; None where no record carries one."""
    num_kl_tokens: int
    macro_f1_no_context: float | None = None
    """Mean F1 of the classes, `classification_metrics.macro_f1`; None where the answers are no classes."""
    macro_f1_with_context: float | None = None
    num_harmed_wrong: int | None = None
    """Of the harmed items, those whose with-context completion gave a wrong answer; None: not counted."""
    num_harmed_unparsed: int | None = None
    """Those whose with-context completion ended without one answer that could be read."""
    num_harmed_cut_off: int | None = None
    """Those whose with-context completion was cut at the token limit, whatever was read out of it."""
    num_samples_no_context: int = 1
    """Answers drawn per item in this view; the paired rates are of the first of each view."""
    num_samples_with_context: int = 1
    self_flip: float | None = None
    """P(second no-context answer wrong | first right): harm's noise floor. None without a second, or as harm is."""
    num_self_flipped: int = 0
    """Items whose first no-context answer is right and whose second is wrong; of `num_correct_no_context`."""
    mean_accuracy_no_context: float | None = None
    """Mean over items of the share of right samples; None where one was drawn."""
    mean_accuracy_with_context: float | None = None
    pass_at_k_no_context: Mapping[str, float] | None = None
    """By k = 1, 2, 4, ... up to the samples drawn: `pass_at_k`, averaged over items; None where one was drawn."""
    pass_at_k_with_context: Mapping[str, float] | None = None
    mean_kl_to_base: float | None = None
    """Mean over all measured tokens of KL(q_x || the untrained model's q_x), in nats; None where none was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values by field name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a summary from `to_dict`.

        A field with a default may be missing: the file was written before there was such a field.

        Raises:
            ValueError: if a field is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if not required <= values.keys() <= known:
            missing, unknown = sorted(required - values.keys()), sorted(values.keys() - known)
            raise ValueError(f"A removability summary misses {missing} and has unknown fields {unknown}.")
        return cls(**values)


def paired_rates(correct_no_context: Sequence[bool], correct_with_context: Sequence[bool]) -> PairedRates:
    """Compute accuracies, harm and help from two graded views of the same items.

    Args:
        correct_no_context: per item, whether the answer without the context is right.
        correct_with_context: the same items in the same order, answered with the context.

    Returns:
        The rates. Harm and help are None below `MIN_HARM_ITEMS` items in their denominators.

    Raises:
        ValueError: if the lists are empty, differ in length, or hold anything but True, False, 1 and 0.

    Example:
        >>> rates = paired_rates([True] * 30 + [False] * 10, [True] * 27 + [False] * 13)
        >>> rates.harm, rates.num_harmed, rates.num_correct_no_context, rates.help
        (0.1, 3, 30, None)
    """
    if len(correct_no_context) != len(correct_with_context):
        raise ValueError(
            f"correct_no_context has {len(correct_no_context)} items and correct_with_context has "
            f"{len(correct_with_context)}; both must list the same items in the same order."
        )
    if len(correct_no_context) == 0:
        raise ValueError("No items: rates need at least one pair of graded answers.")
    x_right = _verdicts("correct_no_context", correct_no_context)
    c_right = _verdicts("correct_with_context", correct_with_context)
    num_items, num_right = x_right.size, int(x_right.sum())
    num_harmed, num_helped = int((x_right & ~c_right).sum()), int((~x_right & c_right).sum())
    return PairedRates(
        num_items=num_items,
        accuracy_no_context=num_right / num_items,
        accuracy_with_context=int(c_right.sum()) / num_items,
        both_correct=(num_right - num_harmed) / num_items,
        neither=(num_items - num_right - num_helped) / num_items,
        harm=_rate_or_withheld(num_harmed, num_right),
        num_correct_no_context=num_right,
        num_harmed=num_harmed,
        help=_rate_or_withheld(num_helped, num_items - num_right),
        num_wrong_no_context=num_items - num_right,
        num_helped=num_helped,
    )


def summarise(records: Sequence[PairedRecord]) -> RemovabilitySummary:
    """Summarise one evaluation.

    Args:
        records: one record per item, in any order.

    Raises:
        ValueError: if there are no records, or two share an id.
    """
    if not records:
        raise ValueError("No records: an evaluation needs at least one item; check the split and its limit.")
    id_, count = Counter(record.id for record in records).most_common(1)[0]
    if count > 1:
        raise ValueError(f"Record id {id_!r} occurs {count} times; each item is evaluated once, so ids must be unique.")
    rates = paired_rates(
        [record.correct_no_context for record in records], [record.correct_with_context for record in records]
    )
    without = float(np.mean([record.length_no_context for record in records]))
    with_ = float(np.mean([record.length_with_context for record in records]))
    # Weighted by tokens, as the loss is: the mean over items would let one-token answers outvote long ones.
    num_kl_tokens = sum(record.num_kl_tokens for record in records)
    kl_sum = math.fsum(record.kl * record.num_kl_tokens for record in records if record.kl is not None)
    to_base = [(r.kl_to_base, r.length_no_context) for r in records if r.kl_to_base is not None]
    answers = [record.answer for record in records]
    harmed = Counter(_harm_reason(record) for record in records if record.correct_no_context)
    return RemovabilitySummary(
        **asdict(rates),
        mean_length_no_context=without,
        mean_length_with_context=with_,
        length_inflation=(with_ - without) / without if without > 0 else None,
        clipped_ratio_no_context=float(np.mean([not record.finished_no_context for record in records])),
        clipped_ratio_with_context=float(np.mean([not record.finished_with_context for record in records])),
        mean_kl=kl_sum / num_kl_tokens if num_kl_tokens > 0 else None,
        num_kl_tokens=num_kl_tokens,
        macro_f1_no_context=macro_f1(answers, [record.parsed_no_context for record in records]),
        macro_f1_with_context=macro_f1(answers, [record.parsed_with_context for record in records]),
        num_harmed_wrong=harmed["wrong"],
        num_harmed_unparsed=harmed["unparsed"],
        num_harmed_cut_off=harmed["cut off"],
        **_sampled(records, rates.num_correct_no_context),
        mean_kl_to_base=math.fsum(k * n for k, n in to_base) / sum(n for _, n in to_base) if to_base else None,
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate P(at least one of k answers is right) from more answers, without bias (arXiv:2107.03374, eq. 1).

    Raises:
        ValueError: unless 1 <= k <= num_samples and 0 <= num_correct <= num_samples.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} right among {num_samples} samples is not defined.")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def _harm_reason(record: PairedRecord) -> Literal["wrong", "unparsed", "cut off"] | None:
    """What went wrong with the context; None where nothing did."""
    if record.correct_with_context:
        return None
    if not record.finished_with_context:
        return "cut off"
    unparsed = record.reason_with_context in ("no_answer", "several_answers", "not_a_choice")
    return "unparsed" if unparsed else "wrong"


def _sampled(records: Sequence[PairedRecord], num_right: int) -> dict[str, Any]:
    """The fields of a summary that need more than one answer per item."""
    fields_: dict[str, Any] = {}
    for view in ("no_context", "with_context"):
        counts = {1 + len(getattr(record, f"further_{view}")) for record in records}
        if len(counts) > 1:
            raise ValueError(f"The records hold {sorted(counts)} {view} samples; every item needs as many.")
        fields_[f"num_samples_{view}"] = num_samples = counts.pop()
        if num_samples == 1:
            continue
        num_correct = [
            int(getattr(record, f"correct_{view}")) + sum(s.correct for s in getattr(record, f"further_{view}"))
            for record in records
        ]
        fields_[f"mean_accuracy_{view}"] = float(np.mean(num_correct)) / num_samples
        ks = [2**power for power in range(num_samples.bit_length())]
        fields_[f"pass_at_k_{view}"] = {
            str(k): math.fsum(pass_at_k(num_samples, correct, k) for correct in num_correct) / len(records) for k in ks
        }
    if fields_["num_samples_no_context"] > 1:
        flipped = sum(record.correct_no_context and not record.further_no_context[0].correct for record in records)
        fields_ |= {"num_self_flipped": flipped, "self_flip": _rate_or_withheld(flipped, num_right)}
    return fields_


def summarise_groups(records: Sequence[PairedRecord]) -> dict[str, RemovabilitySummary]:
    """Summarise all items under "all", then each non-empty group under its name, in alphabetical order.

    Raises:
        ValueError: as `summarise`; or if a group is itself called "all".
    """
    summaries = {ALL: summarise(records)}
    groups = sorted({record.group for record in records} - {""})
    if ALL in groups:
        raise ValueError(f"A group is called {ALL!r}, the name of the summary over every item; rename Example.group.")
    for group in groups:
        summaries[group] = summarise([record for record in records if record.group == group])
    return summaries


def _verdicts(name: str, values: Sequence[bool]) -> NDArray[np.bool_]:
    """Return the verdicts as an array; graded scores such as 0.7 would silently count as right."""
    verdicts = np.asarray(values)
    if verdicts.ndim != 1 or not np.isin(verdicts, (False, True)).all():
        raise ValueError(f"{name} must be a flat list of True and False; round graded scores to a verdict first.")
    return verdicts.astype(bool)


def _rate_or_withheld(num_events: int, num_trials: int) -> float | None:
    """Return num_events / num_trials, or None where too few trials would make it noise."""
    return num_events / num_trials if num_trials >= MIN_HARM_ITEMS else None
