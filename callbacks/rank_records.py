"""Records of all ranks together."""

from __future__ import annotations

import lightning.pytorch as L
import torch

from callbacks.paired_records import PairedRecord


def gather_records(trainer: L.Trainer, records: list[PairedRecord]) -> list[PairedRecord]:
    """All ranks' records, sorted by id; ranks hold disjoint items, so nothing is padded or counted twice."""
    if trainer.world_size > 1:
        parts: list[list[PairedRecord]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(parts, records)
        records = [record for part in parts for record in part]
    return sorted(records, key=lambda record: record.id)
