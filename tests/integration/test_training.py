"""What one optimizer step does to the weights, through the command line."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest
import torch

from lightning_modules.adapters import LoRASpec
from lightning_modules.compatibility import check_stage
from lightning_modules.models import ModelSpec, load_model, load_tokenizer
from lightning_modules.objective.consistency import Consistency
from lightning_modules.teachers import Teacher, TeacherSpec


@pytest.mark.parametrize("consistency", ["none", "no_context_anchor", "adaptive_anchor"])
def test_micro_batches_change_nothing(runs, weights_equal, consistency):
    """1 x 8, several of ragged lengths, and 8 x 1 give the same weights: the loss is normalised over the step."""
    args = ("--model.consistency", consistency, "--trainer.max_steps", "2")
    whole = runs.fit("whole", *args)
    some = runs.fit("some", *args, "--model.max_tokens_per_micro_batch", "700")
    single = runs.fit("single", *args, "--model.max_tokens_per_micro_batch", "1")
    for run in (some, single):
        weights_equal(runs.weights(run, 2), runs.weights(whole, 2))
        for ours, theirs in zip(runs.metrics(run), runs.metrics(whole), strict=True):
            for name in ("train/loss", "train/opd", "train/entropy", "train/gradient_norm"):
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("consistency", get_args(Consistency))
def test_every_variant_trains_and_logs_what_it_says(runs, consistency):
    run = runs.fit(
        "run", "--model.consistency", consistency, "--model.consistency_coef", "0.25", "--trainer.max_steps", "2"
    )
    for row in runs.metrics(run):
        opd, loss, coef = (float(row[f"train/{name}"]) for name in ("opd", "loss", "consistency_coef"))
        if consistency == "none":
            assert (coef, row.get("train/nca")) == (0.0, None)
            assert loss == pytest.approx(opd)
        else:
            assert coef == 0.25
            if consistency != "adaptive_anchor":
                assert float(row["train/consistency_weight"]) == pytest.approx(1.0)
                assert loss == pytest.approx(opd + 0.25 * float(row["train/nca"]), rel=1e-5)
            else:
                assert 0.0 < float(row["train/consistency_weight"]) < 1.0
        for name in ("train/entropy", "train/gradient_norm", "completions/mean_length", "completions/clipped_ratio"):
            assert float(row[name]) >= 0.0


@pytest.mark.parametrize(
    "args",
    [
        ("--model.consistency", "symmetric", "--model.beta", "0.5"),
        ("--model.consistency", "adaptive_anchor", "--model.support", "{kind: top_k_tail, k: 9}"),
    ],
)
def test_the_fused_objective_trains_as_the_reference_does(runs, weights_equal, args):
    args = (*args, "--trainer.max_steps", "1", "--model.max_tokens_per_micro_batch", "700")
    fused = runs.fit("fused", *args)
    reference = runs.fit("reference", *args, "--model.objective_implementation", "reference")
    weights_equal(runs.weights(fused, 1), runs.weights(reference, 1))
    ours, theirs = (runs.metrics(run)[0] for run in (fused, reference))
    assert ours.keys() == theirs.keys()
    logged = [name for name in ours if name.startswith("train/")]
    assert {"train/loss", "train/opd", "train/nca", "train/consistency_weight", "train/entropy"} <= set(logged)
    for name in logged:
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-6), name


def test_warm_up_starts_at_the_baseline(runs, weights_equal):
    """With the coefficient still 0 the step is OPD's, bit for bit; later it is not."""
    none = runs.fit("none", "--model.consistency", "none")
    warm = runs.fit("warm", "--model.consistency_delay_steps", "2", "--model.consistency_warmup_steps", "0")
    weights_equal(runs.weights(warm, 2), runs.weights(none, 2), exactly=True)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(runs.weights(warm, 3).values(), runs.weights(none, 3).values(), strict=True)
    )
    assert [float(row["train/consistency_coef"]) for row in runs.metrics(warm)] == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("kind", ["frozen", "ema", "live"])
def test_teachers(runs, kind):
    run = runs.fit("run", "--model.teacher.kind", kind, "--model.teacher.update_rate", "0.5")
    saved = torch.load(run / "checkpoints/step=000003.ckpt", weights_only=True)["state_dict"]
    teacher = {k.removeprefix("teacher.model."): v for k, v in saved.items() if k.startswith("teacher.")}
    assert bool(teacher) == (kind == "ema")  # only a moving average can't be rebuilt
    if kind == "ema":
        student = {k.removeprefix("student."): v for k, v in saved.items() if k.startswith("student.")}
        initial = torch.load(run / "checkpoints/step=000001.ckpt", weights_only=True)["state_dict"]
        assert any(not torch.equal(teacher[k], student[k]) for k in student)
        assert any(not torch.equal(teacher[k], initial[f"teacher.model.{k}"]) for k in teacher)


def test_another_model_as_teacher(runs, tiny_model_dir):
    """The student's own folder as a separate teacher is the frozen copy: same losses."""
    own = runs.fit("own")
    other = runs.fit("other", "--model.teacher.kind", "model", "--model.teacher.model.name", str(tiny_model_dir))
    assert [r["train/loss"] for r in runs.metrics(own)] == [r["train/loss"] for r in runs.metrics(other)]


def test_a_teacher_on_a_device_of_its_own(runs):
    """Here that is the CPU once more: same numbers, by the way that the hidden states take between devices."""
    settings = ("--model.consistency", "teacher_no_context_anchor", "--trainer.callbacks+=TokenPositions",
                "--trainer.callbacks+=ProbeEvaluation", "--trainer.callbacks.init_args.max_items", "2")  # fmt: skip
    own = runs.fit("own", *settings)
    placed = runs.fit("placed", *settings, "--model.teacher.device", "cpu")
    for name in ("train/loss", "train/nca", "train/gradient_norm"):
        assert [row[name] for row in runs.metrics(own)] == [row[name] for row in runs.metrics(placed)]
    files = [path.relative_to(own) for path in own.rglob("*.jsonl") if path.name != "summary.jsonl"]
    assert len(files) > 4
    without_times = [
        [re.sub(r'"(elapsed_s|run_s|cost_share)": [^,}]+', "", (run / f).read_text()) for f in files]
        for run in (own, placed)
    ]
    assert without_times[0] == without_times[1]
    saved = torch.load(placed / "checkpoints/step=000003.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("student.") for name in saved)


def test_no_trainer_moves_the_layers_of_a_teacher_elsewhere(tiny_model_dir):
    spec = ModelSpec(str(tiny_model_dir))
    student = load_model(spec)
    teacher = Teacher(TeacherSpec(device="cpu"), student, load_tokenizer(spec)).to("meta")
    assert {p.device.type for p in teacher.network(student).parameters()} == {"cpu"}
    assert {p.device.type for p in teacher.head(student).parameters()} == {"meta"}


def test_a_teacher_that_can_not_be_elsewhere(tiny_model_dir):
    spec, elsewhere = ModelSpec(str(tiny_model_dir)), TeacherSpec(device="cuda:99")
    student, tokenizer = load_model(spec), load_tokenizer(spec)
    with pytest.raises(ValueError, match=r"teacher\.device is 'cuda:99'; the teacher can't be put on cuda:100"):
        Teacher(elsewhere, student, tokenizer, local_rank=1)
    with pytest.raises(ValueError, match=r"teacher\.device is 'nowhere', which names no device"):
        TeacherSpec(device="nowhere")
    with pytest.raises(ValueError, match=r"teacher\.kind 'live', which follows the student"):
        TeacherSpec("live", device="cpu")
    with pytest.raises(ValueError, match="the student's own base and takes no memory"):
        check_stage(0, elsewhere, ModelSpec("m", lora=LoRASpec()), None)
    with pytest.raises(ValueError, match="at ZeRO stage 3 the teacher is spread over the ranks"):
        check_stage(3, elsewhere, spec, None)


def test_student_equal_teacher_without_context_costs_nothing(runs):
    run = runs.fit(
        "run", "--data.init_args.context", "null", "--trainer.max_steps", "1", "--model.consistency", "symmetric"
    )
    (row,) = runs.metrics(run)
    assert float(row["train/opd"]) == pytest.approx(0.0, abs=1e-6)
    assert float(row["train/nca"]) == pytest.approx(0.0, abs=1e-6)


def test_several_generations_per_prompt(runs):
    run = runs.fit("run", "--model.num_generations", "3", "--trainer.max_steps", "1")
    assert float(runs.metrics(run)[0]["train/loss"]) > 0


def test_gradient_checkpointing_without_a_teacher_cache_changes_nothing(runs, weights_equal):
    plain = runs.fit("plain", "--trainer.max_steps", "2")
    checkpointed = runs.fit(
        "checkpointed", "--trainer.max_steps", "2", "--model.gradient_checkpointing", "true",
        "--model.teacher_cache_tokens", "0",
    )  # fmt: skip
    weights_equal(runs.weights(checkpointed, 2), runs.weights(plain, 2))


def test_a_model_that_cannot_share_contexts_says_so_and_trains_the_same(runs, weights_equal):
    plain = runs.fit("plain", "--trainer.max_steps", "2")
    with pytest.warns(UserWarning, match="once per example, not once per micro-batch: attn_implementation is 'eager'"):
        eager = runs.fit(
            "eager", "--trainer.max_steps", "2", "--model.student.attn_implementation", "eager",
            "--model.max_tokens_per_micro_batch", "600",
        )  # fmt: skip
    weights_equal(runs.weights(eager, 2), runs.weights(plain, 2))


def test_a_schedule_is_stepped_once_per_optimizer_step(runs):
    run = runs.fit(
        "run",
        "--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR",
        "--model.lr_scheduler.start_factor", "0.25",
        "--model.lr_scheduler.total_iters", "3",
    )  # fmt: skip
    # Each step's own, as it was used: 0.1 x (1/4, 2/4, 3/4).
    assert [float(row["train/learning_rate"]) for row in runs.metrics(run)] == pytest.approx([0.025, 0.05, 0.075])


def test_bf16_trains(runs):
    run = runs.fit("run", "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "2")
    assert all(float(row["train/loss"]) > 0 for row in runs.metrics(run))
    assert all(tensor.dtype == torch.float32 for tensor in runs.weights(run, 2).values())


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])  # Lightning makes no 16-mixed on a CPU
def test_precisions_that_would_train_wrongly_are_refused(runs, precision):
    with pytest.raises(ValueError, match=rf"trainer\.precision is {precision}.*Use bf16-mixed or 32-true"):
        runs.fit("run", "--trainer.precision", precision)


def test_a_loss_that_is_not_a_number_stops_before_the_weights_change(runs, monkeypatch):
    from lightning_modules import step_gradient
    from lightning_modules.context_distillation import NonFiniteLossError

    real = step_gradient.distillation
    calls = []

    def poisoned(*args):
        calls.append(1)
        term = real(*args)
        nan = float("nan")
        return replace(term, loss=term.loss * nan, opd_T=term.opd_T * nan) if len(calls) == 3 else term

    monkeypatch.setattr(step_gradient, "distillation", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"Step 2: .*opd=nan.*--ckpt_path last"):
        runs.fit("run")
    assert len(runs.metrics(runs.root / "run")) == 2
    assert sorted(p.name for p in (runs.root / "run/checkpoints").iterdir()) == ["step=000001.ckpt", "step=000002.ckpt"]
