"""A datasheet as Markdown, which is also what the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence

from cli.datasheet import Datasheet, GroupSheet, Spread

NOT_COUNTED = "-"
MAX_SHOWN_ANSWERS = 8
"""Answers whose numbers fit into a cell; the JSON file has those of more."""


def to_markdown(sheet: Datasheet) -> str:
    """Return the datasheet as Markdown."""
    return "\n\n".join([f"# {sheet.name}", *_items(sheet), *_lengths(sheet), *_overlaps(sheet), *_origin(sheet)]) + "\n"


def _items(sheet: Datasheet) -> list[str]:
    rows = [
        [
            split,
            group,
            str(numbers.num_items),
            _answers(numbers),
            NOT_COUNTED
            if numbers.constant_accuracy is None
            else f"{numbers.constant_answer}: {100 * numbers.constant_accuracy:.1f} %",
        ]
        for split, values in sheet.splits.items()
        for group, numbers in values.groups.items()
    ]
    sources = [
        [source, licence, *(str(values.sources.get(source, 0)) for values in sheet.splits.values())]
        for source, licence in sheet.licences.items()
    ]
    return [
        "## Items",
        _table(["split", "group", "items", "answers", "constant answer"], rows, num_text=2),
        _table(["source", "licence", *sheet.splits], sources, num_text=2),
    ]


def _answers(numbers: GroupSheet) -> str:
    if numbers.num_answers == 0:
        return NOT_COUNTED
    if numbers.answers is None or len(numbers.answers) > MAX_SHOWN_ANSWERS:
        return f"{numbers.num_answers} different"
    return ", ".join(f"{answer} {count}" for answer, count in numbers.answers.items())


def _lengths(sheet: Datasheet) -> list[str]:
    rows = [
        [
            split,
            *map(
                _spread,
                (values.prompt_words, values.context_words, values.no_context_tokens, values.with_context_tokens),
            ),
        ]
        for split, values in sheet.splits.items()
    ]
    header = ["split", "prompt, words", "context, words", "without context, tokens", "with context, tokens"]
    return ["## Lengths (min / median / max)", _table(header, rows, num_text=1)]


def _overlaps(sheet: Datasheet) -> list[str]:
    rows = [
        [
            overlap.split,
            overlap.earlier,
            str(overlap.num_exact),
            NOT_COUNTED if overlap.num_near is None else str(overlap.num_near),
        ]
        for overlap in sheet.overlaps
    ]
    return [
        "## Items with a copy in another split",
        _table(["items of", "with a copy in", "exact", "near or exact"], rows, num_text=2),
        "Compared without the wording that all questions of a source share; see `datamodules.duplicates`.",
    ]


def _origin(sheet: Datasheet) -> list[str]:
    if sheet.num_bad_rows is None:
        return ["Malformed rows: not counted; the data come from a package."]
    reasons = "".join(f"; {reason}: {count}" for reason, count in sheet.bad_rows.items())
    return [f"Malformed rows, left out: {sheet.num_bad_rows}{reasons}."]


def _spread(spread: Spread | None) -> str:
    return NOT_COUNTED if spread is None else f"{spread.min} / {spread.median:g} / {spread.max}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], num_text: int) -> str:
    ruler = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    lines = [list(header), ruler, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
