"""Back-off at decoding time: answer without the context where the model is sure, with it where it is not (ours).

Nothing is trained. Where a context is there, the answer to x under the threshold T is

    y_x   if  mean_t log q_x(y_x,t) >= T      y_x: decoded without the context; nats per token, at temperature 1
    y_c   otherwise                           y_c: decoded with the context

and without a context it is y_x. T = -inf never backs off, so both views give the same answers; T = +inf always does,
and leaves the model as it is. Not for games, whose turns would each have to be decided before the next is played.

Neither torch nor lightning is imported: a paired evaluation that kept the log-probabilities holds both answers, and no
model is needed to tell which of them back-off would have given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from callbacks.paired_records import PairedRecord


def keeps_no_context(record: PairedRecord, threshold: float) -> bool:
    """Whether the no-context answer stands.

    Args:
        record: an item with `log_probability_no_context`, decoded greedily.
        threshold: T, in nats per token.

    Raises:
        ValueError: if the threshold is NaN, the record lacks the log-probability, or it holds further answers: only the
            first one's is known, and taken into both views it would share their luck.
    """
    if math.isnan(threshold):
        raise ValueError("threshold=nan; give nats per token, -inf (never back off) or inf (always).")
    if record.log_probability_no_context is None:
        raise ValueError(f"Record {record.id!r} has no log_probability_no_context; back-off decides by it.")
    if record.further_no_context or record.further_with_context:
        raise ValueError(f"Record {record.id!r} was sampled; back-off is for greedy decoding (temperature 0).")
    return record.log_probability_no_context >= threshold


def back_off(record: PairedRecord, threshold: float) -> PairedRecord:
    """The record of the item under back-off; its `kl` is None, for q_c no longer answers alone.

    Raises:
        ValueError: see `keeps_no_context`.
    """
    record_without_kl = replace(record, kl=None, num_kl_tokens=0)
    if not keeps_no_context(record, threshold):
        return record_without_kl
    return replace(
        record_without_kl,
        completion_with_context=record.completion_no_context,
        parsed_with_context=record.parsed_no_context,
        reason_with_context=record.reason_no_context,
        length_with_context=record.length_no_context,
        finished_with_context=record.finished_no_context,
    )


def candidate_thresholds(records: Sequence[PairedRecord]) -> list[float]:
    """Thresholds to choose from, ascending: -inf, the deciles of the log-probabilities to three decimals, and inf."""
    known = [r.log_probability_no_context for r in records if r.log_probability_no_context is not None]
    deciles = {round(float(np.quantile(known, tenth / 10)), 3) for tenth in range(1, 10)} if known else set()
    return [-math.inf, *sorted(deciles), math.inf]
