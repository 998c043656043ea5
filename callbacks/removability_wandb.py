"""The items of a paired evaluation as a table on Weights & Biases, flips first."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.loggers import Logger, WandbLogger

from callbacks.paired_records import PairedRecord
from callbacks.removability_files import ORIGINAL

COLUMNS = [
    "step",
    "context",
    "outcome",
    "id",
    "group",
    "question",
    "answer",
    "without context",
    "with context",
    "reason without",
    "reason with",
    "tokens without",
    "tokens with",
    "KL",
]
MAX_ROWS = 1000
"""A table is loaded as a whole by whoever looks at it; RUN/removability/ has every item."""
_ORDER = ("harm", "help", "neither", "both")


def log_items(loggers: Sequence[Logger], records: Sequence[PairedRecord], context: str, step: int) -> None:
    """Log the items to every WandbLogger under ``removability/items`` (``controls/<context>/items`` for a control)."""
    key = "removability/items" if context == ORIGINAL else f"controls/{context}/items"
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, columns=COLUMNS, data=item_rows(records, context, step), step=step)


def item_rows(records: Sequence[PairedRecord], context: str, step: int) -> list[list[object]]:
    """One row per item in the order of `COLUMNS`, harm first, then help; at most `MAX_ROWS`."""
    ordered = sorted(records, key=lambda record: (_ORDER.index(outcome(record)), record.id))
    return [
        [
            step,
            context,
            outcome(record),
            record.id,
            record.group,
            record.question,
            record.answer,
            record.completion_no_context,
            record.completion_with_context,
            record.reason_no_context,
            record.reason_with_context,
            record.length_no_context,
            record.length_with_context,
            record.kl,
        ]
        for record in ordered[:MAX_ROWS]
    ]


def outcome(record: PairedRecord) -> str:
    """What the context did to the item: "harm", "help", "both" (right in both views) or "neither"."""
    if record.correct_no_context:
        return "both" if record.correct_with_context else "harm"
    return "help" if record.correct_with_context else "neither"
