"""A student with LoRA through the command line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from cli.main import main

LORA = (
    "--model.student.lora.r", "4", "--model.student.lora.target_modules", "[q_proj, v_proj, down_proj, lm_head]",
    "--model.optimizer.init_args.lr", "0.5",
)  # fmt: skip


def state(run, step=3):
    return torch.load(run / f"checkpoints/step={step:06d}.ckpt", weights_only=True)


@pytest.mark.parametrize("consistency", ["no_context_anchor", "ema_anchor"])
def test_fast_paths_train_as_the_reference(runs, weights_equal, consistency):
    """Packed, fused, in micro-batches, checkpointed; against full rows and plain autograd."""
    args = (*LORA, "--model.consistency", consistency, "--trainer.max_steps", "2")
    fast = runs.fit(
        "fast", *args, "--model.gradient_checkpointing", "true", "--model.max_tokens_per_micro_batch", "500"
    )
    plain = runs.fit(
        "plain", *args, "--model.objective_implementation", "reference", "--model.teacher_cache_tokens", "0",
        "--model.student.attn_implementation", "eager",
    )  # fmt: skip
    weights_equal(runs.weights(fast, 2), runs.weights(plain, 2))
    assert float(runs.metrics(fast)[0]["train/loss"]) != float(runs.metrics(fast)[1]["train/loss"])


def test_checkpoints_hold_adapters_and_resume_exactly(runs):
    dropout = ("--model.student.lora.r", "4", "--model.student.lora.dropout", "0.2")
    whole = runs.fit("whole", *dropout)
    part = runs.fit("part", *dropout, "--trainer.max_steps", "1")
    main(runs.args("fit", "part", *dropout, "--ckpt_path", "last"))
    ours, theirs = state(part)["state_dict"], state(whole)["state_dict"]
    assert all(".lora_" in name for name in ours)
    assert len(ours) == 28
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert runs.metrics(part) == runs.metrics(whole)


@pytest.mark.parametrize("kind", ["ema", "live", "model"])
def test_other_teachers_train(runs, tiny_model_dir, kind):
    other = ("--model.teacher.model.name", str(tiny_model_dir)) if kind == "model" else ()
    args = (*LORA, "--model.teacher.kind", kind, *other, "--trainer.callbacks+=WeightChanges")
    run = runs.fit("run", *args, "--trainer.callbacks+=GradientGeometry")
    frozen = runs.fit("frozen", *LORA)
    same = [row["train/loss"] for row in runs.metrics(run)] == [row["train/loss"] for row in runs.metrics(frozen)]
    assert same == (kind == "model")  # the student's own folder is the base
    assert any(name.startswith("teacher.") for name in state(run)["state_dict"]) == (kind == "ema")


def test_exports_of_a_run_and_of_its_checkpoint(runs, tmp_path):
    run = runs.fit("run", *LORA, "--trainer.callbacks+=HFExport")
    checkpoint = str(run / "checkpoints/step=000003.ckpt")
    main(["export", checkpoint, "--output", str(tmp_path / "adapter")])
    main(["export", checkpoint, "--output", str(tmp_path / "merged"), "--merged", "true"])
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "adapter", run / "export"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for folder in ("merged", "adapter"):
        main(
            ["evaluate", "--config", str(run / "config.yaml"), "--model.name", str(tmp_path / folder), "--output",
             str(tmp_path / f"evaluated-{folder}"), "--split", "val", "--max_items", "4", "--following", "false",
             "--general", "false"]
        )  # fmt: skip
    lines = [next((tmp_path / f"evaluated-{f}/removability").glob("val-*.jsonl")).read_text() for f in
             ("merged", "adapter")]  # fmt: skip
    assert [text.count("\n") for text in lines] == [4, 4]


def test_what_does_not_fit_is_refused(runs, capsys):
    run = runs.fit("run", *LORA, "--trainer.max_steps", "1")
    with pytest.raises(ValueError, match="r 4 there, 8 here"):
        main(runs.args("fit", "run", *LORA, "--model.student.lora.r", "8", "--ckpt_path", "last"))
    with pytest.raises(ValueError, match="does not fit the configured model"):
        main(runs.args("fit", "run", "--model.student.lora", "null", "--ckpt_path", "last"))
    assert run.exists()
