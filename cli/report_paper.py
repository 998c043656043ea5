"""Numbers that the papers printed for a setting, kept apart from ours: paper_numbers.csv holds all of them.

Standing: "stated" in the text or a table, "read off" a figure, "OPCD": printed by the base's paper, arXiv:2602.12275.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from cli.report_table import NOT_SHOWN, Table

NUMBERS = Path(__file__).with_name("paper_numbers.csv")
AVERAGE = "average"
"""`words` of the rows that are no setting's but an average over all of them."""

HEADER = ("source", "standing", "method", "step", "metric", "value (%)")


def paper_table(setting: str) -> Table | None:
    """The papers' numbers for `setting`, which has to hold all `words` of a row; None where they printed none."""
    name = setting.lower()
    with open(NUMBERS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = [row for row in rows if all(word in name for word in row["words"].split())]
    if not own:
        return None
    shown = own + [row for row in rows if row["words"] == AVERAGE]
    return Table(
        title=f"Printed by the papers, not measured here: {setting}",
        header=HEADER,
        rows=[_cells(row) for row in shown],
        text_columns=frozenset(HEADER) - {"step", "value (%)"},
        notes=("Other items, other decoding and one seed: beside ours for orientation, never in one table with them.",),
    )


def _cells(row: dict[str, str]) -> Sequence[str]:
    columns = ("source", "standing", "method", "step", "metric", "value")
    return [row[column] or NOT_SHOWN for column in columns]
