"""DDP and DeepSpeed ZeRO on two CPU ranks against one process, through the command line.

Greedy rollouts make the runs comparable: every rank then samples what the one process does. A budget of 320 tokens
gives the two ranks different numbers of micro-batches; five items to evaluate, two at a time, different numbers of
those.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from callbacks.removability_files import read_records, read_summaries
from cli.checkpoints import last_checkpoint
from cli.main import main
from lightning_modules.zero_checkpoints import weights_only_loading
from tests.integration.conftest import CONFIG, ROOT, Runs

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
SETTINGS = (
    "--model.sampling.temperature", "0",
    "--model.max_tokens_per_micro_batch", "320",
    "--trainer.callbacks+=HFExport",
    "--removability.max_items", "5",
    "--data.init_args.eval_batch_size", "2",
)  # fmt: skip
ADAM = (
    "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "0.01",
    "--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR",
    "--model.lr_scheduler.start_factor", "0.25", "--model.lr_scheduler.total_iters", "3",
)  # fmt: skip
LORA = (
    "--model.student.lora.r", "4", "--model.student.lora.target_modules", "[q_proj, down_proj]",
    "--trainer.callbacks+=HFExport", "--trainer.callbacks.folder", "merged", "--trainer.callbacks.merged", "true",
)  # fmt: skip
ONE_STEP = ("--trainer.max_steps", "1")
EXACT = ("train/loss", "train/opd", "train/nca", "train/gradient_norm")


class TwoRanks:
    """Makes runs with one strategy; `jobs` first, then `start` once."""

    def __init__(self, runs: Runs, strategy: str) -> None:
        self.runs, self.strategy, self.jobs = runs, strategy, []

    def job(self, command: str, name: str, *args: str, **happens: object) -> None:
        config = ("--config", str(ROOT / f"configs/strategy/{self.strategy}.yaml"))
        words = [*self.runs.args(command, name, *config, *SETTINGS), "--trainer.devices", "2", *args]
        if self.strategy == "zero3":  # the tiny model's parameters are all below the default
            words += ["--trainer.strategy.persistence_threshold", "0"]
        self.jobs.append({"args": words, "folder": str(self.runs.root / name), **happens})

    def start(self) -> None:
        file = self.runs.root / "jobs.json"
        file.write_text(json.dumps(self.jobs))
        codes, words = on_two_ranks([str(ROOT / "tests/engines/two_ranks.py"), str(file)], self.runs.root)
        assert codes == [0, 0], "".join(text[-3000:] for text in words)


def on_two_ranks(command: Sequence[str], folder: Path) -> tuple[list[int], list[str]]:
    """What two processes of one process group end with: their codes, and what they printed into `folder`'s logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in (0, 1)]
    ranks = []
    for rank, log in enumerate(logs):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu",
        }  # fmt: skip
        with log.open("w") as output:
            words = [sys.executable, *command]
            ranks.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output))
    try:
        codes = [rank.wait(timeout=900) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return codes, [log.read_text() for log in logs]


def validated_run(root: Path, model: Path, name: str) -> Runs:
    """Runs of one process under `root`; the first is made, and evaluated once more from its checkpoint."""
    (root / "tiny.yaml").write_text(CONFIG.format(model=model))
    runs = Runs(root, root / "tiny.yaml")
    runs.fit(name, *SETTINGS)
    main(runs.args("validate", name, *SETTINGS, "--ckpt_path", "last"))
    return runs


@pytest.fixture(scope="module")
def one_process(tiny_model_dir, vllm_model_dir, tmp_path_factory) -> Runs:
    """The same settings in this process: "sgd", a "wider" teacher, and "adam" with a schedule."""
    runs = validated_run(tmp_path_factory.mktemp("one"), tiny_model_dir, "sgd")
    runs.fit("wider", *SETTINGS, *wider_teacher(vllm_model_dir))
    runs.fit("adam", *SETTINGS, *ADAM)
    runs.fit("lora", *SETTINGS, *LORA)
    main(runs.args("validate", "lora", *SETTINGS, *LORA, "--ckpt_path", "last"))
    runs.fit("lora_bf16", *SETTINGS, *LORA, *ONE_STEP, "--model.student.dtype", "bfloat16")
    return runs


@pytest.fixture(scope="module", params=STRATEGIES)
def two_ranks(request, one_process, vllm_model_dir, tmp_path_factory) -> Iterator[TwoRanks]:
    """All runs of one strategy."""
    strategy = request.param
    if strategy != "ddp":
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: make test-engines installs it")
    ranks = TwoRanks(Runs(tmp_path_factory.mktemp(strategy), one_process.config), strategy)
    for name, args in (("sgd", ()), ("lora", LORA)):
        ranks.job("fit", name, *args)
        ranks.job("fit", f"{name}_cut", *args, crash_at=3)
        ranks.job("fit", f"{name}_cut", *args, "--ckpt_path", "last")
        ranks.job("validate", name, *args, "--ckpt_path", "last")
    ranks.job("fit", "wider", *wider_teacher(vllm_model_dir))
    ranks.job("fit", "poisoned", poison_at=1, fails=True)
    ranks.job("fit", "adam", *ADAM, *offload(strategy))
    if strategy != "ddp":
        ranks.job("fit", "ema", "--model.teacher.kind", "ema", fails=True)
        ranks.job("fit", "bf16", "--trainer.precision", "bf16-mixed", poison_at=2, fails=True)
        ranks.job("fit", "lora_bf16", *LORA, *ONE_STEP, "--trainer.precision", "bf16-mixed")
    if strategy == "zero3":
        ranks.job("fit", "lora_head", "--model.student.lora.target_modules", "[q_proj, lm_head]", fails=True)
    ranks.start()
    return ranks


def wider_teacher(folder: Path) -> tuple[str, ...]:
    """Another model of the same tokenizer: layers twice as wide, and a head with padding columns."""
    return ("--model.teacher.kind", "model", "--model.teacher.model.name", str(folder))


def offload(strategy: str) -> tuple[str, ...]:
    optimizer = ("--trainer.strategy.offload_optimizer", "true")
    return {
        "zero2": optimizer,
        "zero3": (*optimizer, "--trainer.strategy.offload_parameters", "true"),
    }.get(strategy, ())


def close(
    ours: list[dict[str, str]], theirs: list[dict[str, str]], names: tuple[str, ...] = EXACT, rel: float = 2e-5
) -> None:
    assert len(ours) == len(theirs) > 0
    for name in names:
        assert [float(row[name]) for row in ours] == pytest.approx([float(row[name]) for row in theirs], rel=rel), name


def filled(run: Path) -> list[dict[str, str]]:
    """Metrics without what is empty: a run that was validated afterwards has columns that another lacks."""
    return [{name: value for name, value in row.items() if value} for row in Runs.metrics(run)]


def exported(run: Path) -> dict[str, torch.Tensor]:
    """Of a run with adapters both these and the merged weights."""
    files = run.glob("*/*model.safetensors")
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("name", ["sgd", "lora"])
def test_losses_and_weights_are_those_of_one_process(two_ranks, one_process, name):
    ours, theirs = two_ranks.runs.root / name, one_process.root / name
    assert len(Runs.metrics(ours)) == 3
    close(Runs.metrics(ours), Runs.metrics(theirs))
    trained, reference = exported(ours), exported(theirs)
    assert trained.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    counts = [(ours / f"micro_batches.rank{rank}").read_text().split()[:3] for rank in (0, 1)]
    assert counts[0] != counts[1]  # else nothing ragged has been seen


def test_a_teacher_of_another_size_too(two_ranks, one_process):
    ours, theirs, own = (Runs.metrics(root / name) for root, name in (
        (two_ranks.runs.root, "wider"), (one_process.root, "wider"), (one_process.root, "sgd")
    ))  # fmt: skip
    close(ours, theirs)
    assert all(row["train/opd"] != other["train/opd"] for row, other in zip(theirs, own, strict=True))


def test_adam_a_schedule_and_offload_too(two_ranks, one_process):
    ours, theirs = (Runs.metrics(runs.root / "adam") for runs in (two_ranks.runs, one_process))
    close(ours, theirs, (*EXACT, "train/learning_rate"))
    assert [float(row["train/learning_rate"]) for row in ours] == pytest.approx([0.0025, 0.005, 0.0075])


def test_adapters_beside_a_base_in_bf16(two_ranks, one_process, tmp_path):
    """The one process holds its base in bf16 too; with rounded rotary positions the losses are off by 2 %."""
    if two_ranks.strategy == "ddp":
        pytest.skip("DDP keeps float32 weights and casts in the layers")
    run = two_ranks.runs.root / "lora_bf16"
    close(Runs.metrics(run), Runs.metrics(one_process.root / "lora_bf16"), EXACT[:3], rel=1e-3)
    main(["export", str(last_checkpoint(run)), "--output", str(tmp_path / "export")])
    assert {value.dtype for value in exported(tmp_path).values()} == {torch.float32}


def test_an_adapted_head_is_refused_at_stage_3(two_ranks):
    if two_ranks.strategy != "zero3":
        pytest.skip("elsewhere it can be adapted")
    error = (two_ranks.runs.root / "lora_head/error.rank0.txt").read_text()
    assert error.startswith("ValueError: lora.target_modules adapts the head")


@pytest.mark.parametrize("name", ["sgd", "lora"])
def test_a_crash_changes_nothing(two_ranks, name):
    whole, cut = (two_ranks.runs.root / folder for folder in (name, f"{name}_cut"))
    assert filled(cut) == filled(whole)
    assert len(Runs.metrics(cut)) == 3
    trained, reference = exported(cut), exported(whole)
    assert trained.keys() == reference.keys()
    assert all(torch.equal(trained[name], value) for name, value in reference.items())


@pytest.mark.parametrize("run_name", ["sgd", "lora"])
def test_evaluations_are_those_of_one_process(two_ranks, one_process, run_name):
    ours, theirs = two_ranks.runs.root / run_name, one_process.root / run_name
    lines = [read_summaries(run / "removability/summary.jsonl") for run in (ours, theirs)]
    assert [(line.split, line.step) for line in lines[0]] == [("val", 3), ("val", 3)]
    assert [line.summaries["all"].num_items for line in lines[0]] == [5, 24]
    for name in ("step=000003.jsonl", "val-step=000003.jsonl"):
        records = [read_records(run / "removability" / name) for run in (ours, theirs)]
        for one, other in zip(*records, strict=True):
            assert (one.id, one.completion_no_context, one.completion_with_context) == (
                other.id, other.completion_no_context, other.completion_with_context
            )  # fmt: skip
            assert one.kl == pytest.approx(other.kl, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("run_name", ["sgd", "lora"])
def test_no_checkpoint_holds_the_teacher_or_a_base(two_ranks, run_name):
    checkpoint = last_checkpoint(two_ranks.runs.root / run_name)
    if checkpoint.is_file():
        names = set(torch.load(checkpoint, weights_only=True)["state_dict"])
    else:
        names = set()
        for share in checkpoint.glob("checkpoint/*_model_states.pt"):
            with weights_only_loading():
                saved = torch.load(share, weights_only=True)
            names |= {*saved["module"], *(name for group in saved["param_shapes"] for name in group)}
            names |= {*(saved["frozen_param_shapes"] or {})}
    assert any(name.startswith("student.") for name in names)
    assert not any(name.startswith("teacher.") for name in names)
    assert run_name == "sgd" or all(".lora_" in name for name in names)


def test_export_of_a_checkpoint_with_adapters(two_ranks, tmp_path):
    """Merged, the run's base and the one rebuilt here agree bit for bit: training has not touched it."""
    run = two_ranks.runs.root / "lora"
    for folder, merged in (("export", "false"), ("merged", "true")):
        main(["export", str(last_checkpoint(run)), "--output", str(tmp_path / folder), "--merged", merged])
    trained, weights = exported(run), exported(tmp_path)
    assert weights.keys() == trained.keys()
    assert all(torch.equal(weights[name], trained[name]) for name in weights)


def test_export_of_a_checkpoint(two_ranks, tmp_path, capsys):
    run = two_ranks.runs.root / "sgd"
    main(["export", str(last_checkpoint(run)), "--output", str(tmp_path / "export")])
    trained, weights = exported(run), exported(tmp_path)
    assert weights.keys() == trained.keys()
    assert all(torch.equal(weights[name], trained[name]) for name in weights)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "export").dtype == torch.float32
    with pytest.raises(SystemExit):
        main(["export", str(last_checkpoint(run)), "--output", str(tmp_path / "export")])
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_a_gradient_that_is_not_a_number_is_never_applied(two_ranks):
    """On one rank of two, and from a loss that is a number: only the gradient tells."""
    for name, step in (("poisoned", 1), ("bf16", 2)):
        run = two_ranks.runs.root / name
        if two_ranks.strategy == "ddp" and name == "bf16":
            continue
        for rank in (0, 1):
            error = (run / f"error.rank{rank}.txt").read_text()
            assert error.startswith(f"NonFiniteLossError: Step {step}: loss or gradient is not finite")
            assert "unchanged: True" in error
        assert len(Runs.metrics(run)) == step
        assert last_checkpoint(run).name == f"step={step:06d}.ckpt"


def test_moving_averages_are_refused_under_zero(two_ranks):
    if two_ranks.strategy == "ddp":
        pytest.skip("DDP keeps them")
    error = (two_ranks.runs.root / "ema/error.rank0.txt").read_text()
    assert error.startswith("ValueError: teacher.kind ema")
    assert "Use strategy ddp" in error


def test_a_full_disk_leaves_the_checkpoint_before(two_ranks, tmp_path):
    """The disk is really full, in the midst of the second folder: both ranks end and say so, and the run goes on."""
    if two_ranks.strategy != "zero2":
        pytest.skip("one stage stands for all: the folders are written by the same code")
    files = [path for path in last_checkpoint(two_ranks.runs.root / "sgd").rglob("*") if path.is_file()]
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
    runs = Runs(tmp_path, two_ranks.runs.config)
    ranks = TwoRanks(runs, "zero2")
    ranks.job("fit", "run")
    fit = ["-m", "cli", *ranks.jobs[0]["args"]]
    with small_file_system(tmp_path / "run/checkpoints", size + size // 2) as resize:
        codes, words = on_two_ranks(fit, tmp_path)
        assert codes == [1, 1]
        assert any("step=000002.ckpt could not be written" in text and "MiB are free there" in text for text in words)
        assert last_checkpoint(tmp_path / "run").name == "step=000001.ckpt"
        resize(4 * size)
        codes, words = on_two_ranks([*fit, "--ckpt_path", "last", "--checkpoint.save_top_k", "1"], tmp_path)
        assert codes == [0, 0], words
        names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
        assert names == {"step=000001.ckpt", "step=000003.ckpt"}  # nothing half-written is left
    assert filled(tmp_path / "run") == filled(two_ranks.runs.root / "sgd")


@contextmanager
def small_file_system(folder: Path, num_bytes: int) -> Iterator[Callable[[int], object]]:
    """A file system of its own at `folder`; yields what changes its size."""

    def mount(*options: str) -> int:
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode

    folder.mkdir(parents=True)
    if mount("-t", "tmpfs", "-o", f"size={num_bytes}", "none"):
        pytest.skip("mounting a file system needs root")
    try:
        yield lambda size: mount("-o", f"remount,size={size}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
