"""`PastTenseDataModule`: 'What is the past tense of the verb "{lemma}"?', a real pattern task for a small model.

`datamodules.verbs` says which verbs are asked about, ``docs/past_tense.md`` what the data are for and what
SmolLM2-135M-Instruct scores with and without the eight demonstrations.

Splitting by verb alone would leak: who has seen "act, acted" knows "react". So a verb with relatives is never
evaluated; it is for training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from datamodules.base import ContextDataModule, Split, require_int
from datamodules.contexts import check_asks_nothing_evaluated, load_context
from datamodules.example import Example, Grade, Message
from datamodules.grading import grade_new_word
from datamodules.sampling import fill_evenly, interleave, shuffled
from datamodules.verbs import PATTERNS, Pattern, Verb, families, load_verbs

_GROUPS: dict[Pattern, str] = {"-ed": "ends_in_ed", "-d": "ends_in_d", "-ied": "ends_in_ied"}

_MAX_EVALUATION_SHARE = 1 / 4
"""Of a pattern's verbs without relatives, for validation and again for test: half of them stay for training."""


class PastTenseDataModule(ContextDataModule):
    """English verbs and their past tense, balanced over three patterns as far as the data go.

    The patterns are -ed, -d and -ied. Every split takes equally many verbs of each; -ied runs short: an evaluation
    split gets at most a quarter of those without relatives, training gets the rest, and the other patterns fill up.

    `Example.id` is ``verb:`` and the lemma, `Example.group` is ``ends_in_ed``, ``ends_in_d`` or ``ends_in_ied`` by what
    is added (empty in training), `Example.meta` has ``pattern``. The lists are interleaved: any prefix of a split is
    about as balanced over patterns as the whole.

    The verbs of the context past_tense_demonstrations and their relatives are in no split, whichever context a run
    uses: runs with different contexts share their items.

    Args:
        context: Name or path of the privileged context of every item, as `load_context` takes it. None: no context.
        num_train: Training items, at least 3.
        num_val: Validation items, at least 3.
        num_test: Test items, at least 3.
        split_seed: Which verbs go where.
        batch_size: Prompts per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Prompts per evaluation batch, on each rank.
        seed: Order of the training prompts.
        num_workers: Processes per loader; 0 reads in the main process.

    Raises:
        ValueError: if a number is out of range. From `setup`: if the data have fewer items than asked for, or the
            context contains a question of validation or test.
        FileNotFoundError: from `setup`, if there is no such context.
        ImportError: from `setup`, if `lemminflect` is not installed.
    """

    def __init__(
        self,
        context: str | None = "past_tense_demonstrations",
        num_train: int = 800,
        num_val: int = 240,
        num_test: int = 240,
        split_seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Check the numbers; nothing is read before `setup`."""
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        self.context = context
        self.num_train = require_int("num_train", num_train, minimum=len(PATTERNS))
        self.num_val = require_int("num_val", num_val, minimum=len(PATTERNS))
        self.num_test = require_int("num_test", num_test, minimum=len(PATTERNS))
        self.split_seed = require_int("split_seed", split_seed, minimum=0)
        self.licences = {"lemminflect": "MIT (NIH SPECIALIST Lexicon, through the package lemminflect)"}

    def load_splits(self) -> dict[Split, list[Example]]:
        """Draw the splits from all verbs, as the class says."""
        context = None if self.context is None else load_context(self.context)
        clusters = _without_demonstrated(load_verbs())
        sizes: dict[Split, int] = {"val": self.num_val, "test": self.num_test}
        drawn = _draw(clusters, sizes, self.num_train, np.random.default_rng(self.split_seed))
        splits: dict[Split, list[Example]] = {
            split: interleave(
                [[_example(verb, context, split) for verb in drawn[split, pattern]] for pattern in PATTERNS]
            )
            for split in get_args(Split)
        }
        check_asks_nothing_evaluated(context, self.context, [*splits["val"], *splits["test"]])
        return splits

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade by the one word that the completion adds to the question, by the rules of `grade_new_word`."""
        return grade_new_word(completion, example.answer, example.prompt[-1]["content"])

    def summary(self) -> str:
        """Return the number of items by split and pattern, as a table to print."""
        names = [*PATTERNS, "items"]
        lines = [f"{'split':<6}" + "".join(f"{name:>{len(name) + 2}}" for name in names)]
        for split in get_args(Split):
            counts = Counter(str(example.meta["pattern"]) for example in self.examples(split))
            counts["items"] = counts.total()
            lines.append(f"{split:<6}" + "".join(f"{counts[name]:>{len(name) + 2}}" for name in names))
        return "\n".join(lines)


def _without_demonstrated(verbs: Sequence[Verb]) -> list[list[Verb]]:
    """Return the families of verbs without those that the shipped demonstrations show a member of."""
    demonstrations = load_context("past_tense_demonstrations")
    assert not isinstance(demonstrations, str)
    shown = {message["content"] for message in demonstrations}
    clusters = [[verbs[index] for index in family] for family in families(verbs)]
    return [cluster for cluster in clusters if not any(verb.question in shown for verb in cluster)]


def _draw(
    clusters: Sequence[Sequence[Verb]], sizes: Mapping[Split, int], num_train: int, rng: np.random.Generator
) -> dict[tuple[Split, Pattern], list[Verb]]:
    """Draw validation and test from verbs without relatives, and training from what is left of all."""
    singles = {
        pattern: shuffled([cluster[0] for cluster in clusters if [v.pattern for v in cluster] == [pattern]], rng)
        for pattern in PATTERNS
    }
    related = [verb for cluster in clusters if len(cluster) > 1 for verb in cluster]
    limits: dict[str, int] = {pattern: int(_MAX_EVALUATION_SHARE * len(singles[pattern])) for pattern in PATTERNS}
    drawn: dict[tuple[Split, Pattern], list[Verb]] = {}
    for split, size in sizes.items():
        counts = fill_evenly(size, limits, f"num_{split}={size}")
        for pattern in PATTERNS:
            drawn[split, pattern] = singles[pattern][: counts[pattern]]
            del singles[pattern][: counts[pattern]]
    left = {
        pattern: shuffled([*singles[pattern], *(v for v in related if v.pattern == pattern)], rng)
        for pattern in PATTERNS
    }
    available: dict[str, int] = {pattern: len(verbs) for pattern, verbs in left.items()}
    counts = fill_evenly(num_train, available, f"num_train={num_train}")
    for pattern in PATTERNS:
        drawn["train", pattern] = left[pattern][: counts[pattern]]
    return drawn


def _example(verb: Verb, context: str | tuple[Message, ...] | None, split: Split) -> Example:
    return Example(
        id=f"verb:{verb.lemma}",
        prompt=(Message(role="user", content=verb.question),),
        privileged_context=context,
        answer=verb.past,
        source="lemminflect",
        group="" if split == "train" else _GROUPS[verb.pattern],
        meta={"pattern": verb.pattern},
    )
