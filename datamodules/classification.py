"""`ClassificationDataModule`: texts with one label each; the safety mix of the paper among others.

The safety setting of arXiv:2606.11627 (data as in OPCD, arXiv:2602.12275) is TweetEval offensive, HateCheck and ETHOS
together, 500 items held out. Nobody published which 500; here they are drawn so that nothing evaluated was trained on:

* cases of one template of HateCheck stay in one split ("I hate [IDENTITY_P]." is asked about with seven groups), its
  spelling variants with it;
* exact and near duplicates stay in one split, also across sources (`datamodules.duplicates`);
* TweetEval's own split is not kept: its files are one pool, as the mix has a split of its own.

Departure: OPCD holds out one set; here validation and test are two of 500 each, so that a checkpoint is not selected on
the test items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import ContextDataModule, Split, require_int
from datamodules.contexts import load_context
from datamodules.duplicates import near_duplicate_clusters
from datamodules.example import Example, Grade, Message
from datamodules.rows import RowAudit
from datamodules.sampling import Kind, draw_whole_clusters, interleave, proportional_shares, shuffled
from datamodules.tagged_answers import grade_tagged_answer
from datamodules.text_sources import LabelledText, ReadSource, TextSource, read_source


class ClassificationDataModule(ContextDataModule):
    """Texts to classify, from one or more sources; the answer is a label between <answer> tags.

    Validation and test have the sources and their answers in the shares that these have of all rows, as far as whole
    clusters of duplicates allow, and exactly the sizes asked for; the rest is training. A cluster of more than a tenth
    of a split is always trained on, so that no template decides a score. Any prefix of a split is about as balanced
    over sources and answers as the whole.

    `Example.source` and `Example.group` are the source's name, so that metrics come out for each; `Example.meta` has
    what the files say of a row (HateCheck's ``functionality`` and ``template``, ETHOS's ``score``, TweetEval's
    ``file``). Ids are the source's name and the row's place in its file: they hold for the same files.

    Args:
        sources: Data sets, in any number; their names must differ.
        context: Name or path of the privileged context of every item, as `load_context` takes it. None: no context.
        num_val: Validation items, over all sources.
        num_test: Test items, over all sources.
        split_seed: Which clusters go where.
        max_bad_share: Share of bad rows, over all sources, that are left out with a warning; more stop the load.
        lenient_grading: Read more completions as answers (`datamodules.tagged_answers`), to compare with OPCD's.
        batch_size: Prompts per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Prompts per evaluation batch, on each rank.
        seed: Order of the training prompts.
        num_workers: Processes per loader; 0 reads in the main process.

    Raises:
        ValueError: if a number is out of range, or there are no sources or two of one name. From `setup`: if too many
            rows are bad, or there are not enough for the splits.
        FileNotFoundError: from `setup`, if a file or the context is missing.

    Example:
        In YAML::

            data:
              class_path: ClassificationDataModule
              init_args:
                context: safety_system_prompt
                sources:
                  - {format: tweeteval, path: data/tweeteval_offensive}
                  - {format: hatecheck, path: data/hatecheck/test_suite_cases.csv}
                  - {format: ethos, path: data/ethos/Ethos_Dataset_Binary.csv}
    """

    def __init__(
        self,
        sources: list[TextSource],
        context: str | None = "safety_system_prompt",
        num_val: int = 500,
        num_test: int = 500,
        split_seed: int = 0,
        max_bad_share: float = 0.0,
        lenient_grading: bool = False,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Check names and numbers; nothing is read before `setup`."""
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        names = [source.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sources have the names {names}; give at least one, and each a name of its own.")
        self.sources = sources
        self.context = context
        self.num_val = require_int("num_val", num_val, minimum=1)
        self.num_test = require_int("num_test", num_test, minimum=1)
        self.split_seed = require_int("split_seed", split_seed, minimum=0)
        self.lenient_grading = lenient_grading
        self.licences = {source.name: source.licence for source in sources}
        self.max_bad_share = RowAudit(max_bad_share).max_bad_share  # checked there
        self._choices: dict[str, Mapping[str, tuple[str, ...]]] = {}

    def load_splits(self) -> dict[Split, list[Example]]:
        """Read all sources, cluster their texts, and split the clusters."""
        context = None if self.context is None else load_context(self.context)
        audit = RowAudit(self.max_bad_share)
        read = {source.name: read_source(source, audit) for source in self.sources}
        audit.finish()
        if audit.problems:
            rank_zero_warn(audit.report())
        self.row_audit = audit
        self._choices = {name: dict.fromkeys(source.answers, ()) for name, source in read.items()}
        rows = [(name, row) for name, source in read.items() for row in source.rows]
        drawn = self._draw(rows)
        return {
            split: [_example(*rows[index], read[rows[index][0]], context) for index in drawn[split]]
            for split in get_args(Split)
        }

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade by the label in the <answer> tags, by the rules of `datamodules.tagged_answers`."""
        self.setup()
        return grade_tagged_answer(
            completion, example.answer, self._choices[example.source], lenient=self.lenient_grading
        )

    def _draw(self, rows: Sequence[tuple[str, LabelledText]]) -> dict[Split, list[int]]:
        """Indices of the rows of each split, in order."""
        rng = np.random.default_rng(self.split_seed)
        kinds: list[Kind] = [(name, row.answer) for name, row in rows]
        clusters = near_duplicate_clusters([row.text for _, row in rows], _template_links(rows))
        left: Sequence[Sequence[int]] = shuffled(clusters, rng)
        sizes: dict[Split, int] = {"test": self.num_test, "val": self.num_val}
        drawn: dict[Split, Sequence[Sequence[int]]] = {}
        for split, size in sizes.items():
            quotas = proportional_shares(size, Counter(kinds), f"num_{split}={size}")
            drawn[split], left = draw_whole_clusters(left, kinds, quotas, max(1, size // 10), f"num_{split}={size}")
        drawn["train"] = left
        return {split: _mixed(chosen, rows, rng) for split, chosen in drawn.items()}


def _template_links(rows: Sequence[tuple[str, LabelledText]]) -> Iterator[tuple[int, int]]:
    """Pairs of rows of one source's template."""
    first: dict[tuple[str, str], int] = {}
    for index, (name, row) in enumerate(rows):
        if row.template:
            yield first.setdefault((name, row.template), index), index


def _mixed(
    clusters: Sequence[Sequence[int]], rows: Sequence[tuple[str, LabelledText]], rng: np.random.Generator
) -> list[int]:
    """The indices of all clusters, so that any prefix has about the sources and answers of the whole."""
    strata: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index in sorted(index for cluster in clusters for index in cluster):
        name, row = rows[index]
        strata[name, row.answer].append(index)
    return interleave([shuffled(members, rng) for _, members in sorted(strata.items())])


def _example(name: str, row: LabelledText, source: ReadSource, context: str | tuple[Message, ...] | None) -> Example:
    return Example(
        id=row.id,
        prompt=(Message(role="user", content=source.question.replace("{text}", row.text)),),
        privileged_context=context,
        answer=row.answer,
        source=name,
        group=name,
        meta=row.meta,
    )
