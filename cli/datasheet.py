"""The numbers of a datasheet: counts, balance, lengths and duplicates of every split; no text of any item."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from callbacks.classification_metrics import MAX_CLASSES
from datamodules.base import ContextDataModule, Split
from datamodules.controls import count_words
from datamodules.duplicates import near_duplicate_clusters, normalise_text
from datamodules.example import Example
from lightning_modules.views import ViewRenderer

ALL = "all"


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of a list of lengths."""

    min: int
    median: float
    max: int


@dataclass(frozen=True, slots=True)
class GroupSheet:
    """One group of a split, or all of the split."""

    num_items: int
    num_answers: int
    """Distinct reference answers; 0 for games."""
    answers: Mapping[str, int] | None
    """Items of each answer; None where there are more than `MAX_CLASSES`, which are no classes."""
    constant_answer: str | None
    """The most frequent answer; the first in alphabetical order of several. None for games, which are not answered."""
    constant_accuracy: float | None
    """What a model scores that always gives it: a fraction."""


@dataclass(frozen=True, slots=True)
class SplitSheet:
    """One split."""

    sources: Mapping[str, int]
    """Items by `Example.source`."""
    groups: Mapping[str, GroupSheet]
    """Under "all" every item, then each non-empty `Example.group`."""
    prompt_words: Spread
    context_words: Spread
    """0 for an item without a context."""
    no_context_tokens: Spread | None
    """Tokens of the rendered no-context prompt; None without a tokenizer."""
    with_context_tokens: Spread | None


@dataclass(frozen=True, slots=True)
class OverlapSheet:
    """Items of one split that an earlier one holds too."""

    split: Split
    earlier: Split
    num_exact: int
    """Items whose normalised text, or for games whose opening as it is, is in the earlier split."""
    num_near: int | None
    """Items with a near duplicate in the earlier split, exact ones and copies of copies included. None for games, whose
    boards differ in what normalisation takes away."""


@dataclass(frozen=True, slots=True)
class Datasheet:
    """A data set in numbers."""

    name: str
    splits: Mapping[Split, SplitSheet]
    overlaps: Sequence[OverlapSheet]
    licences: Mapping[str, str]
    """By source."""
    num_bad_rows: int | None
    """Rows left out; None where the data are not read from a user's files."""
    bad_rows: Mapping[str, int]
    """Their number by reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def describe(data: ContextDataModule, renderer: ViewRenderer | None) -> Datasheet:
    """Count everything.

    Args:
        data: the data set; it is loaded if it isn't yet.
        renderer: renders both views to count their tokens; None: no token counts.

    Raises:
        ValueError: as `ContextDataModule.setup` and `ViewRenderer.render`.
    """
    splits: dict[Split, list[Example]] = {split: data.examples(split) for split in get_args(Split)}
    sources = sorted({example.source for examples in splits.values() for example in examples})
    audit = data.row_audit
    are_games = data.environment(splits["test"][0]) is not None
    return Datasheet(
        name=type(data).__name__,
        splits={split: _split_sheet(examples, renderer, are_games) for split, examples in splits.items()},
        overlaps=_overlaps(splits, are_games),
        licences={source: data.licences.get(source, "not stated") for source in sources},
        num_bad_rows=None if audit is None else len(audit.problems),
        bad_rows=dict(Counter(reason for _, _, reason in audit.problems)) if audit else {},
    )


def _split_sheet(examples: Sequence[Example], renderer: ViewRenderer | None, are_games: bool) -> SplitSheet:
    members: dict[str, list[Example]] = {ALL: list(examples)}
    for group in sorted({example.group for example in examples} - {""}):
        members[group] = [example for example in examples if example.group == group]
    pairs = [] if renderer is None else [renderer.render(example) for example in examples]
    return SplitSheet(
        sources=dict(sorted(Counter(example.source for example in examples).items())),
        groups={group: _group_sheet(items, are_games) for group, items in members.items()},
        prompt_words=_spread([count_words(example.prompt) for example in examples]),
        context_words=_spread([count_words(example.privileged_context) for example in examples]),
        no_context_tokens=_spread([len(pair.no_context_ids) for pair in pairs]) if pairs else None,
        with_context_tokens=_spread([len(pair.with_context_ids) for pair in pairs]) if pairs else None,
    )


def _group_sheet(examples: Sequence[Example], are_games: bool) -> GroupSheet:
    if are_games:
        return GroupSheet(len(examples), num_answers=0, answers=None, constant_answer=None, constant_accuracy=None)
    counts = dict(sorted(Counter(example.answer for example in examples).items()))
    constant = max(counts, key=counts.__getitem__)
    return GroupSheet(
        num_items=len(examples),
        num_answers=len(counts),
        answers=counts if len(counts) <= MAX_CLASSES else None,
        constant_answer=constant,
        constant_accuracy=counts[constant] / len(examples),
    )


def _spread(lengths: Sequence[int]) -> Spread:
    return Spread(min(lengths), float(np.median(lengths)), max(lengths))


def _overlaps(splits: Mapping[Split, Sequence[Example]], are_games: bool) -> list[OverlapSheet]:
    items = [(split, example) for split, examples in splits.items() for example in examples]
    texts = _distinguishing_texts([example for _, example in items])
    clusters = [] if are_games else near_duplicate_clusters(texts)
    exact: defaultdict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        exact[text if are_games else normalise_text(text)].append(index)
    return [
        OverlapSheet(
            later,
            earlier,
            num_exact=_num_shared(list(exact.values()), items, earlier, later),
            num_near=None if are_games else _num_shared(clusters, items, earlier, later),
        )
        for earlier, later in itertools.combinations(splits, 2)
    ]


def _num_shared(
    clusters: Sequence[Sequence[int]], items: Sequence[tuple[Split, Example]], earlier: Split, later: Split
) -> int:
    """Items of the later split in a cluster that the earlier split has an item of, too."""
    counts = [Counter(items[index][0] for index in cluster) for cluster in clusters]
    return sum(count[later] for count in counts if count[earlier])


def _distinguishing_texts(examples: Sequence[Example]) -> list[str]:
    """Each last user turn without what all of its source's begin and end with.

    The wording of the question would make every two prompts alike.
    """
    prompts = [example.prompt[-1]["content"] for example in examples]
    by_source: defaultdict[str, set[str]] = defaultdict(set)
    for example, prompt in zip(examples, prompts, strict=True):
        by_source[example.source].add(prompt)
    cuts = {source: _common_ends(texts) for source, texts in by_source.items()}
    return [
        prompt[cuts[example.source][0] : len(prompt) - cuts[example.source][1]]
        for example, prompt in zip(examples, prompts, strict=True)
    ]


def _common_ends(texts: set[str]) -> tuple[int, int]:
    """Characters that all texts begin with, and that the rests end with; none for a single text."""
    if len(texts) == 1:
        return 0, 0
    start = _common_prefix_length(texts)
    return start, _common_prefix_length({text[start:][::-1] for text in texts})


def _common_prefix_length(texts: set[str]) -> int:
    # Whatever the smallest and the largest in order have in common, all between them have.
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(texts), max(texts), strict=False))
    )
