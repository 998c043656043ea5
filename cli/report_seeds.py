"""What another seed changes, beside what the context changes: the noise floor of harm between trainings.

Decoding greedily, a model answers the same question the same way twice, so a second answer shows no noise. Training it
again with another seed does: some of what one run has right without the context the other has wrong, without any
context in play. A harm that is no larger is not more than another seed would have done.

    lost to a seed = sum over ordered pairs of seeds (a, b) of #{items right in a, wrong in b}
                     / sum over the same pairs of #{items right in a},             both without the context
"""

from __future__ import annotations

from itertools import permutations

from callbacks.removability_metrics import MIN_HARM_ITEMS
from cli.report_cells import percent
from cli.report_differences import RecordReader
from cli.report_methods import Comparison, MethodResult
from cli.report_table import NOT_SHOWN, Table

NOTE = (
    "Between seeds: harm over the items of all seeds; lost to a seed: of what one seed's run has right without the "
    "context, how much another seed's has wrong without it, over all ordered pairs. A harm no larger than that is no "
    "more than training again would do. x floor: their ratio."
)


def seed_table(comparison: Comparison) -> Table | None:
    """One row per method of several seeds whose records are of the same items; None where there is none."""
    rows = []
    for method in comparison.methods:
        counts = lost_between_seeds(method)
        if counts is None:
            continue
        lost, kept_or_lost = counts
        harmed = sum(summary.num_harmed for summary in method.summaries)
        right = sum(summary.num_correct_no_context for summary in method.summaries)
        shown = right >= MIN_HARM_ITEMS and kept_or_lost >= MIN_HARM_ITEMS
        rows.append(
            [
                *(method.name, str(len(method.runs)), str(method.step)),
                _rate(harmed, right),
                _rate(lost, kept_or_lost),
                f"{harmed / right / (lost / kept_or_lost):.1f}" if shown and lost else NOT_SHOWN,
            ]
        )
    header = ["method", "seeds", "step", "harm (n/N)", "lost to a seed (n/N)", "x floor"]
    return Table("Between seeds", header, rows, frozenset({"method"}), (NOTE,)) if rows else None


def lost_between_seeds(method: MethodResult) -> tuple[int, int] | None:
    """Items right in one seed's run and wrong in another's, and those right in the one; no context in either.

    Returns:
        Both summed over the ordered pairs of seeds; None with one seed, or without records of the same items.
    """
    read = RecordReader([])  # what can't be read is in the comparison's notes already
    found = [read(run, line) for run, line in zip(method.runs, method.lines, strict=True)]
    right_of = [{record.id: record.correct_no_context for record in records} for records in found if records]
    if len(method.runs) < 2 or len(right_of) < len(found) or any(own.keys() != right_of[0].keys() for own in right_of):
        return None
    lost = right = 0
    for one, other in permutations(right_of, 2):
        ids = [name for name, is_right in one.items() if is_right]
        right += len(ids)
        lost += sum(not other[name] for name in ids)
    return lost, right


def _rate(events: int, trials: int) -> str:
    return f"{percent(events / trials) if trials >= MIN_HARM_ITEMS else NOT_SHOWN} ({events}/{trials})"
