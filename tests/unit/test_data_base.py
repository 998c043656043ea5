"""Splits, the stateless order of training, loaders alone and under a real Trainer, and what an import loads."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import datamodules
from datamodules.base import ContextDataModule, Split, step_batch_indices
from datamodules.contexts import load_context
from datamodules.example import Example, Grade, GradeReason, Message


def example(item_id: str, context: str | tuple[Message, ...] | None = "c", group: str = "") -> Example:
    prompt = (Message(role="user", content=f"question {item_id}"),)
    return Example(id=item_id, prompt=prompt, privileged_context=context, answer="a", group=group)


class ListDataModule(ContextDataModule):
    """Splits given as lists; counts how often they are loaded."""

    def __init__(self, splits: dict[Split, list[Example]], **loader: int) -> None:
        super().__init__(**loader)
        self.given = splits
        self.num_loads = 0

    def load_splits(self) -> dict[Split, list[Example]]:
        self.num_loads += 1
        return self.given

    def grade(self, example: Example, completion: str) -> Grade:
        return Grade(True, completion, "correct") if completion == example.answer else Grade(False, None, "no_answer")


def numbered(train: int = 10, val: int = 7, test: int = 5, **loader: int) -> ListDataModule:
    sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
    return ListDataModule(
        {split: [example(f"{split}{i}") for i in range(size)] for split, size in sizes.items()}, **loader
    )


def attach(
    data: ListDataModule, rank: int = 0, world_size: int = 1, step: int = 0, accumulate: int = 1
) -> ListDataModule:
    # The four things that the loaders ask a Trainer for; several ranks cannot be had in one process.
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world_size, global_step=step, accumulate_grad_batches=accumulate
    )
    return data


def ids(batches: Iterable[list[Example]]) -> list[list[str]]:
    return [[item.id for item in batch] for batch in batches]


def first_ids(data: ListDataModule, num_batches: int) -> list[list[str]]:
    return ids(itertools.islice(data.train_dataloader(), num_batches))


# The order of training


@given(
    num_items=st.integers(1, 30),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**32),
    num_epochs=st.integers(1, 4),
)
def test_batches_concatenate_to_permutations(num_items: int, batch_size: int, seed: int, num_epochs: int) -> None:
    num_steps = -(-num_items * num_epochs // batch_size)
    steps = [step_batch_indices(num_items, batch_size, seed, step) for step in range(num_steps)]
    assert {len(step) for step in steps} == {batch_size}
    stream = list(itertools.chain(*steps))
    for epoch in range(num_epochs):
        assert sorted(stream[epoch * num_items : (epoch + 1) * num_items]) == list(range(num_items))


@given(num_items=st.integers(1, 30), batch_size=st.integers(1, 12), step=st.integers(0, 10**6))
def test_batch_size_only_regroups_the_stream(num_items: int, batch_size: int, step: int) -> None:
    singles = [step_batch_indices(num_items, 1, 7, step * batch_size + i)[0] for i in range(batch_size)]
    assert step_batch_indices(num_items, batch_size, 7, step) == singles


def test_seed_and_epoch_change_the_order() -> None:
    first = step_batch_indices(100, 100, seed=0, step=0)
    assert first != step_batch_indices(100, 100, seed=1, step=0)
    assert first != step_batch_indices(100, 100, seed=0, step=1)


def test_the_order_is_the_one_of_earlier_versions() -> None:
    # A resumed run relies on it. If this fails, numpy has changed its generator or we have changed the stream.
    assert step_batch_indices(10, 4, seed=0, step=2) == [8, 1, 9, 1]


# Loaders


def test_training_batches_are_the_steps_of_the_stream() -> None:
    data = numbered(train=10, batch_size=4, seed=3)
    expected = [[f"train{i}" for i in step_batch_indices(10, 4, 3, step)] for step in range(6)]
    assert first_ids(data, 6) == expected


def test_a_loader_made_at_step_k_starts_there() -> None:
    expected = first_ids(numbered(batch_size=4), 9)[5:]
    assert first_ids(attach(numbered(batch_size=4), step=5), 4) == expected


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_every_global_batch(world_size: int) -> None:
    whole = first_ids(numbered(batch_size=8), 3)
    shares = [first_ids(attach(numbered(batch_size=8), rank, world_size), 3) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert [share[step] for share in shares] == [batch[rank::world_size] for rank in range(world_size)]


@pytest.mark.parametrize("start", [0, 3])
def test_workers_keep_the_order_of_training(start: int) -> None:
    alone = first_ids(attach(numbered(batch_size=4), step=start), 7)
    assert first_ids(attach(numbered(batch_size=4, num_workers=2), step=start), 7) == alone


def test_the_training_loader_has_no_length_and_no_end() -> None:
    loader = numbered(train=3, batch_size=2).train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    assert len(list(itertools.islice(loader, 20))) == 20


@pytest.mark.parametrize("split", ["val", "test", "predict"])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (8, 0), (2, 2)])
def test_evaluation_sees_every_item_once(split: str, world_size: int, num_workers: int) -> None:
    source: Split = "val" if split == "val" else "test"
    expected = [item.id for item in numbered().examples(source)]
    seen = []
    for rank in range(world_size):
        data = attach(numbered(eval_batch_size=2, num_workers=num_workers), rank, world_size)
        loader = getattr(data, f"{split}_dataloader")()
        batches = ids(loader)
        assert len(loader) == len(batches)
        assert all(1 <= len(batch) <= 2 for batch in batches)
        assert list(itertools.chain(*batches)) == expected[rank::world_size]
        seen += list(itertools.chain(*batches))
    assert sorted(seen) == sorted(expected)


def test_batches_are_lists_of_the_items_themselves() -> None:
    data = numbered()
    batch = next(iter(data.val_dataloader()))
    assert type(batch) is list
    assert batch[0] is data.examples("val")[0]


def test_batch_size_must_divide_among_the_ranks() -> None:
    with pytest.raises(ValueError, match=r"batch_size=6 .* 4 ranks; set a multiple of 4, such as 8"):
        attach(numbered(batch_size=6), 0, 4).train_dataloader()
    with pytest.raises(ValueError, match=r"batch_size=2 .* such as 4"):
        attach(numbered(batch_size=2), 0, 4).train_dataloader()


def test_accumulation_by_the_trainer_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches=2 must be 1"):
        attach(numbered(), accumulate=2).train_dataloader()


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "seed", "num_workers"])
@pytest.mark.parametrize("value", [-1, 1.0, "2", True, None])
def test_numbers_are_checked_at_construction(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r} must be an integer"):
        numbered(**{name: value})


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_empty_batches_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be an integer of at least 1"):
        numbered(**{name: 0})


# Splits


def test_examples_load_once_and_hand_out_copies() -> None:
    data = numbered()
    data.examples("train").clear()
    data.setup("fit")
    data.setup("test")
    assert [len(data.examples(split)) for split in ("train", "val", "test")] == [10, 7, 5]
    assert data.num_loads == 1


def test_nothing_is_loaded_at_construction() -> None:
    assert numbered().num_loads == 0


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'validation' is none of train, val, test"):
        numbered().examples("validation")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [], "val": [example("b")], "test": [example("c")]}, "'train' is empty"),
        ({"train": [example("a")], "val": [example("b")]}, "'test' is empty"),
        (
            {"train": [example("a"), example("a")], "val": [example("b")], "test": [example("c")]},
            "'a' occurs in 'train' and again in 'train'",
        ),
        (
            {"train": [example("a")], "val": [example("b")], "test": [example("a")]},
            "'a' occurs in 'train' and again in 'test'",
        ),
    ],
)
def test_faulty_splits_are_refused(splits: dict[Split, list[Example]], message: str) -> None:
    data = ListDataModule(splits)
    for _ in range(2):  # a failed setup must not pass for a finished one
        with pytest.raises(ValueError, match=f"ListDataModule.load_splits: .*{message}"):
            data.setup("fit")


def test_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ContextDataModule()  # type: ignore[abstract]


def test_summary_counts_splits_and_groups() -> None:
    splits: dict[Split, list[Example]] = {
        "train": [example("a")],
        "val": [example("b", group="new"), example("c", group="new"), example("d", group="old")],
        "test": [example("e")],
    }
    rows = [line.split() for line in ListDataModule(splits).summary().splitlines()[2:]]
    assert rows == [["train", "-", "1"], ["val", "new", "2"], ["val", "old", "1"], ["test", "-", "1"]]


# Export


TURNS = (Message(role="user", content="q"), Message(role="assistant", content="a"))


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [(["x", "y"], ["x", "y"]), ([TURNS, None], [list(TURNS), None]), ([None, "x"], [None, "x"]), ([None], [None])],
)
def test_to_dataset(contexts: list[Any], expected: list[Any]) -> None:
    train = [example(str(i), context) for i, context in enumerate(contexts)]
    dataset = ListDataModule({"train": train, "val": [example("v")], "test": [example("t")]}).to_dataset("train")
    assert dataset.column_names == ["id", "prompt", "privileged_context", "answer"]
    assert list(dataset["privileged_context"]) == expected
    assert dataset[0]["prompt"] == [{"role": "user", "content": "question 0"}]
    assert dataset[0]["answer"] == "a"
    assert list(dataset["id"]) == [str(i) for i in range(len(contexts))]


def test_to_dataset_refuses_two_kinds_of_context() -> None:
    train = [example("0", "text"), example("1", TURNS)]
    with pytest.raises(ValueError, match="mixes contexts"):
        ListDataModule({"train": train, "val": [example("v")], "test": [example("t")]}).to_dataset("train")


def test_to_dataset_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        numbered().to_dataset("train")


# Under a real Trainer


class Recorder(L.LightningModule):
    """Takes an optimizer step per batch and writes down the ids it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch: list[Example], batch_idx: int) -> torch.Tensor:
        self.trained.append([item.id for item in batch])
        return self.weight**2

    def validation_step(self, batch: list[Example], batch_idx: int) -> None:
        self.validated += [item.id for item in batch]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, max_steps: int, ckpt_path: Path | None = None) -> tuple[Recorder, L.Trainer]:
    model = Recorder()
    trainer = L.Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=2,
        check_val_every_n_epoch=None, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, numbered(batch_size=4), ckpt_path=ckpt_path)
    return model, trainer


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_continues_with_the_same_batches(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path, 7)
    assert whole.trained == first_ids(numbered(batch_size=4), 7)
    assert Counter(whole.validated) == {f"val{i}": 3 for i in range(7)}

    killed, trainer = fit(tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "killed.ckpt")
    resumed, _ = fit(tmp_path, 7, tmp_path / "killed.ckpt")
    assert killed.trained + resumed.trained == whole.trained


# Imports


@pytest.mark.parametrize(
    "module", ["datamodules", "datamodules.example", "datamodules.grading", "datamodules.contexts"]
)
def test_light_modules_load_neither_torch_nor_lightning(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'lightning', 'numpy', 'transformers'}} & set(sys.modules)))"
    root = Path(datamodules.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_the_one_of_its_module() -> None:
    assert datamodules.load_context is load_context
    assert datamodules.GradeReason is GradeReason
    for name in datamodules.__all__:
        assert getattr(datamodules, name) is not None
    assert set(datamodules.__all__) <= set(dir(datamodules))


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'GeographyDatamodule'"):
        _ = datamodules.GeographyDatamodule
