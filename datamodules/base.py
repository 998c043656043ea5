"""`ContextDataModule`: splits, the order of training, and loaders, for every data set with a privileged context.

A subclass says what its items are (`load_splits`) and how a completion is graded (`grade`); everything else is here.
Loaders yield plain lists of `Example`: text, no tensors, so any loop can use them::

    data = GeographyDataModule(batch_size=8)
    for example in data.examples("val"):
        ...

The order of training has no state. One batch is one optimizer step, over all ranks together, and the batch of step k
is a function of (seed, k) alone: a run that was killed and resumed continues with exactly the batches it would have
seen, with no sampler state to save, and the number of ranks or workers changes nothing.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.example import Environment, Example, Grade
from datamodules.rows import RowAudit

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "val", "test"]


class ContextDataModule(L.LightningDataModule, ABC):
    """A data set whose items have a prompt, a privileged context and a reference answer.

    The training loader has no end: bound a run with ``Trainer(max_steps=...)``. Evaluations count steps, not epochs:
    `callbacks.removability.RemovabilityCallback`, or ``val_check_interval`` with ``check_val_every_n_epoch=None``.

    Args:
        batch_size: Prompts per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Prompts per evaluation batch, on each rank.
        seed: Order of the training prompts. It moves no item between splits: a subclass that draws its splits has a
            seed of its own for that.
        num_workers: Processes per loader; 0 reads in the main process, which is fast enough for text in memory.

    Attributes:
        licences: Licence of the data, for each `Example.source`; a subclass states it.
        row_audit: Bad rows of the load; None where the data are not read from a user's files.

    Raises:
        ValueError: if a size is not a positive integer, or `seed` or `num_workers` is negative.
    """

    def __init__(self, batch_size: int = 16, eval_batch_size: int = 32, seed: int = 0, num_workers: int = 0) -> None:
        """Check the numbers; nothing is read before `setup`."""
        super().__init__()
        self.batch_size = require_int("batch_size", batch_size, minimum=1)
        self.eval_batch_size = require_int("eval_batch_size", eval_batch_size, minimum=1)
        self.seed = require_int("seed", seed, minimum=0)
        self.num_workers = require_int("num_workers", num_workers, minimum=0)
        self.licences: Mapping[str, str] = {}
        self.row_audit: RowAudit | None = None
        self._splits: Mapping[Split, list[Example]] | None = None

    @abstractmethod
    def load_splits(self) -> dict[Split, list[Example]]:
        """Return all three splits: the same items in the same order for the same constructor arguments."""

    @abstractmethod
    def grade(self, example: Example, completion: str) -> Grade:
        """Grade one completion of `example`, whichever view it was sampled from. Never raises, whatever the text."""

    def environment(self, example: Example) -> Environment | None:
        """Return a fresh game that `example` opens; None: the item is a question, answered in a single turn."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Load and check the splits, once; further calls do nothing.

        Args:
            stage: Ignored: every stage needs the same items.

        Raises:
            ValueError: if a split is missing or empty, or an id occurs twice, within a split or in two.
        """
        if self._splits is not None:
            return
        splits = self.load_splits()
        _check_splits(splits, type(self).__name__)
        self._splits = splits
        rank_zero_info(self.summary())

    def examples(self, split: Split) -> list[Example]:
        """Return the items of a split, in their fixed order. Works without a Trainer: loads the data if need be."""
        self.setup()
        assert self._splits is not None
        if split not in self._splits:
            raise ValueError(f"split {split!r} is none of {', '.join(get_args(Split))}.")
        return list(self._splits[split])

    def summary(self) -> str:
        """Return the number of items of each split and group, as a table to print."""
        lines = [type(self).__name__, f"{'split':<6} {'group':<16} {'items':>7}"]
        for split in get_args(Split):
            counts = Counter(example.group for example in self.examples(split))
            lines += [f"{split:<6} {group or '-':<16} {counts[group]:>7}" for group in sorted(counts)]
        return "\n".join(lines)

    def to_dataset(self, split: Split) -> datasets.Dataset:
        """Return a split as a Hugging Face data set, for libraries other than ours.

        Columns: ``id``; ``prompt``, a list of messages; ``privileged_context``, text or a list of messages or None;
        ``answer``.

        Raises:
            ImportError: if the package ``datasets`` is not installed.
            ValueError: if contexts of both kinds, text and messages, occur: one column holds one type.
        """
        try:
            import datasets
        except ImportError as error:
            raise ImportError("to_dataset needs the package `datasets`: pip install datasets") from error
        examples = self.examples(split)
        kinds = {type(example.privileged_context) for example in examples} - {type(None)}
        if len(kinds) > 1:
            raise ValueError(f"split {split!r} mixes contexts that are text and contexts that are messages.")
        contexts = [example.privileged_context for example in examples]
        columns = {
            "id": [example.id for example in examples],
            "prompt": [list(example.prompt) for example in examples],
            "privileged_context": [list(context) if isinstance(context, tuple) else context for context in contexts],
            "answer": [example.answer for example in examples],
        }
        return datasets.Dataset.from_dict(columns)

    def train_dataloader(self) -> DataLoader[list[Example]]:
        """Return the endless stream of this rank's share of every optimizer step's batch, from the current step on.

        Raises:
            ValueError: if `batch_size` is no multiple of the number of ranks, or the Trainer accumulates gradients
                over batches: a batch here is a whole optimizer step.
        """
        rank, world_size = self._rank_and_world_size()
        if self.batch_size % world_size:
            accepted = world_size * math.ceil(self.batch_size / world_size)
            raise ValueError(
                f"batch_size={self.batch_size} prompts per step cannot be shared equally by {world_size} ranks; "
                f"set a multiple of {world_size}, such as {accepted}."
            )
        if self.trainer is not None and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"accumulate_grad_batches={self.trainer.accumulate_grad_batches} must be 1: batch_size counts the "
                "prompts of a whole optimizer step, which the training module cuts into micro-batches itself."
            )
        start_step = 0 if self.trainer is None else self.trainer.global_step
        batches = TrainingBatches(self.examples("train"), self.batch_size, self.seed, start_step, rank, world_size)
        return DataLoader(batches, batch_size=None, collate_fn=keep_examples, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[list[Example]]:
        """Return this rank's share of the validation split, once, in order, without padding."""
        return self._evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[list[Example]]:
        """Return this rank's share of the test split, once, in order, without padding."""
        return self._evaluation_dataloader("test")

    def predict_dataloader(self) -> DataLoader[list[Example]]:
        """Return the same as `test_dataloader`."""
        return self._evaluation_dataloader("test")

    def transfer_batch_to_device(
        self, batch: list[Example], device: torch.device, dataloader_idx: int
    ) -> list[Example]:
        """Return the batch as it is: text has no device, and Lightning's own version refuses frozen dataclasses."""
        return batch

    def _evaluation_dataloader(self, split: Split) -> DataLoader[list[Example]]:
        rank, world_size = self._rank_and_world_size()
        batches = EvaluationBatches(self.examples(split)[rank::world_size], self.eval_batch_size)
        return DataLoader(batches, batch_size=None, collate_fn=keep_examples, num_workers=self.num_workers)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def step_batch_indices(num_items: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the indices of the items of one optimizer step, over all ranks: a pure function of its arguments.

    The stream is one permutation of all items after another, a fresh one for each epoch; step k takes positions
    [k * batch_size, (k + 1) * batch_size) of it. A batch may span epochs, so no item is ever dropped.

    Args:
        num_items: Items of the training split, at least 1.
        batch_size: Items per optimizer step, over all ranks.
        seed: Order of the items, at least 0.
        step: Optimizer steps taken before this one.

    Returns:
        `batch_size` indices in [0, `num_items`).
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    epochs = range(positions[0] // num_items, positions[-1] // num_items + 1)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_items) for epoch in epochs}
    return [int(orders[position // num_items][position % num_items]) for position in positions]


class TrainingBatches(IterableDataset[list[Example]]):
    """One rank's share of the batches of steps `start_step`, `start_step` + 1, and so on without end.

    Item i of a step's batch belongs to rank i modulo `world_size`.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, seed: int, start_step: int, rank: int, world_size: int
    ) -> None:
        """Keep what decides the stream; `batch_size` counts all ranks' items."""
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Example]]:
        """Yield this worker's steps: a DataLoader asks its workers in turn, so that together they keep the order."""
        worker, num_workers = _worker_and_num_workers()
        for step in itertools.count(self.start_step + worker, num_workers):
            indices = step_batch_indices(len(self.examples), self.batch_size, self.seed, step)
            yield [self.examples[index] for index in indices[self.rank :: self.world_size]]


class EvaluationBatches(IterableDataset[list[Example]]):
    """Consecutive batches of one rank's items; the last may be shorter.

    An iterable data set, because Lightning puts a DistributedSampler into the loader of any other kind, which pads
    the ranks with duplicates and so counts some items twice.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int) -> None:
        """Keep one rank's items and the number of them in a batch."""
        self.examples = examples
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches, over all workers of the loader."""
        return math.ceil(len(self.examples) / self.batch_size)

    def __iter__(self) -> Iterator[list[Example]]:
        """Yield this worker's batches, in turn with the other workers."""
        worker, num_workers = _worker_and_num_workers()
        for batch in range(worker, len(self), num_workers):
            yield list(self.examples[batch * self.batch_size : (batch + 1) * self.batch_size])


def keep_examples(batch: list[Example]) -> list[Example]:
    """Collate nothing: the loaders' data sets yield whole batches. A named function, for workers must pickle it."""
    return batch


def require_int(name: str, value: int, minimum: int) -> int:
    """Return `value`, or raise a ValueError that names the argument if it is no integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}={value!r} must be an integer of at least {minimum}.")
    return value


def _worker_and_num_workers() -> tuple[int, int]:
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


def _check_splits(splits: Mapping[Split, list[Example]], owner: str) -> None:
    """Raise a ValueError that says what to do, unless there are three non-empty splits and every id occurs once."""
    split_of: dict[str, Split] = {}
    for split in get_args(Split):
        if not splits.get(split):
            raise ValueError(f"{owner}.load_splits: split {split!r} is empty; every split needs at least one item.")
        for example in splits[split]:
            if example.id in split_of:
                raise ValueError(
                    f"{owner}.load_splits: id {example.id!r} occurs in {split_of[example.id]!r} and again in "
                    f"{split!r}; give every item an id of its own and put it into one split only."
                )
            split_of[example.id] = split
