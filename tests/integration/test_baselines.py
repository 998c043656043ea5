"""The trained baselines through the command line, each against one step of its equation in plain transformers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from datamodules import GeographyDataModule
from lightning_modules.views import ViewRenderer, ViewSpec

LEARNING_RATE = 0.1
MAX_LENGTH = 6

OFF_POLICY_CD = ("--model.rollouts.sampler", "teacher", "--model.beta", "0", "--model.consistency", "none")
SFT = (
    "--model.rollouts.sampler", "teacher", "--model.distillation", "cross_entropy", "--model.consistency", "none"
)  # fmt: skip
CONTEXT_DROPOUT = ("--model.rollouts.context_share", "0.5", "--model.consistency", "none")
ONE_STEP = (
    "--trainer.max_steps", "1", "--model.gradient_clip_norm", "null", "--model.sampling.temperature", "0",
    "--trainer.callbacks+=RolloutTable", "--trainer.callbacks.init_args.every_n_steps", "1",
    "--trainer.callbacks.init_args.num_rollouts", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same tokenizer: its answers are not the student's."""
    folder = tmp_path_factory.mktemp("teacher")
    shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    config = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class PlainStep:
    """One step by the definition: every prompt alone and in full, logits by autograd, no code of the objective."""

    def __init__(self, student_dir: Path, teacher_dir: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(student_dir)
        self.student = AutoModelForCausalLM.from_pretrained(student_dir)
        self.teacher = AutoModelForCausalLM.from_pretrained(teacher_dir)
        renderer = ViewRenderer(self.tokenizer, ViewSpec(context_slot="leading_turns"), 512, MAX_LENGTH)
        data = GeographyDataModule(num_train=60, num_val=24, num_test=24, batch_size=8, seed=0)
        self.pairs = {example.id: renderer.render(example) for example in data.examples("train")}

    @torch.no_grad()
    def greedy(self, model: torch.nn.Module, prompt: list[int]) -> list[int]:
        ids: list[int] = []
        while len(ids) < MAX_LENGTH and self.tokenizer.eos_token_id not in ids:
            ids.append(int(model(torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax()))
        return ids

    @staticmethod
    def log_p(model: torch.nn.Module, prompt: list[int], y: list[int]) -> torch.Tensor:
        """Log-probabilities over the vocabulary at each token of y."""
        return model(torch.tensor([[*prompt, *y]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    def weights_after(self, terms: list[torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss, the mean over all tokens, and the weights after a step of plain SGD."""
        loss = torch.cat(terms).mean()
        loss.backward()
        parameters = self.student.named_parameters()
        return loss.item(), {f"student.{name}": (p - LEARNING_RATE * p.grad).detach() for name, p in parameters}


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def rollouts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize(("name", "method"), [("opd", OFF_POLICY_CD), ("cross_entropy", SFT)])
def test_a_step_on_teacher_answers(runs, weights_equal, tiny_model_dir, teacher_dir, name, method, implementation):
    """y ~ f(. | c, x), greedily; KL(f || q_x), or -log q_x(y)."""
    run = runs.fit("run", *method, *ONE_STEP, "--model.teacher.kind", "model", "--model.teacher.model.name",
                   str(teacher_dir), "--model.objective_implementation", implementation)  # fmt: skip
    plain = PlainStep(tiny_model_dir, teacher_dir)
    terms = []
    for row in rollouts(run):
        pair = plain.pairs[row["id"]]
        y = plain.greedy(plain.teacher, pair.with_context_ids)
        assert (row["view"], row["prompt"]) == ("with_context", pair.with_context_text)
        assert (row["completion"], row["length"]) == (plain.tokenizer.decode(y, skip_special_tokens=True), len(y))
        log_q = plain.log_p(plain.student, pair.no_context_ids, y)
        log_f = plain.log_p(plain.teacher, pair.with_context_ids, y).detach()
        terms.append(kl(log_f, log_q) if name == "opd" else -log_q[range(len(y)), y])
    assert len(terms) == 8
    assert any(
        row["completion"] != plain.tokenizer.decode(
            plain.greedy(plain.student, plain.pairs[row["id"]].with_context_ids), skip_special_tokens=True
        )
        for row in rollouts(run)
    )  # fmt: skip
    loss, weights = plain.weights_after(terms)
    (metrics,) = runs.metrics(run)
    assert float(metrics["train/loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics[f"train/{name}"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["rollout/with_context_ratio"]) == 1.0
    weights_equal({k: v for k, v in runs.weights(run, 1).items() if k in weights}, weights)


@pytest.mark.parametrize("budget", ["null", "700", "1"])
def test_a_step_of_context_dropout(runs, weights_equal, tiny_model_dir, budget):
    """The student answers in one of its views, and is trained in that: KL(q_c || f), or KL(q_x || f)."""
    run = runs.fit("run", *CONTEXT_DROPOUT, *ONE_STEP, "--model.max_tokens_per_micro_batch", budget)
    plain = PlainStep(tiny_model_dir, tiny_model_dir)
    terms = []
    for row in rollouts(run):
        pair = plain.pairs[row["id"]]
        own = pair.with_context_ids if row["view"] == "with_context" else pair.no_context_ids
        y = plain.greedy(plain.student, own)
        assert row["completion"] == plain.tokenizer.decode(y, skip_special_tokens=True)
        assert row["prompt"] == plain.tokenizer.decode(own)
        log_f = plain.log_p(plain.teacher, pair.with_context_ids, y).detach()
        terms.append(kl(plain.log_p(plain.student, own, y), log_f))
    views = [row["view"] for row in rollouts(run)]
    assert {"with_context", "no_context"} == set(views)
    loss, weights = plain.weights_after(terms)
    (metrics,) = runs.metrics(run)
    assert float(metrics["train/loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["rollout/with_context_ratio"]) == views.count("with_context") / 8
    weights_equal({k: v for k, v in runs.weights(run, 1).items() if k in weights}, weights)


def test_no_share_is_the_method_and_a_whole_share_trains_the_with_context_view_alone(runs, weights_equal):
    none = ("--model.consistency", "none", "--trainer.max_steps", "2")
    opd, off = runs.fit("opd", *none), runs.fit("off", *none, "--model.rollouts.context_share", "0")
    weights_equal(runs.weights(off, 2), runs.weights(opd, 2), exactly=True)
    whole = runs.fit("whole", *none, "--model.rollouts.context_share", "1")
    # The frozen teacher is the initial student: in the view that both share there is nothing to learn.
    assert float(runs.metrics(whole)[0]["train/opd"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("method", [CONTEXT_DROPOUT, SFT, OFF_POLICY_CD])
def test_a_resumed_run_repeats_the_draws(runs, weights_equal, method):
    table = ("--trainer.callbacks+=RolloutTable", "--trainer.callbacks.init_args.every_n_steps", "1")
    whole = runs.fit("whole", *method, *table)
    runs.fit("halves", *method, *table, "--trainer.max_steps", "1")
    halves = runs.fit("halves", *method, *table, "--ckpt_path", "last")
    assert rollouts(halves) == rollouts(whole)
    assert runs.metrics(halves) == runs.metrics(whole)
    weights_equal(runs.weights(halves, 3), runs.weights(whole, 3), exactly=True)


@pytest.mark.parametrize(
    ("method", "consistency"),
    [(OFF_POLICY_CD, "no_context_anchor"), (SFT, "adaptive_anchor")],
)
def test_teacher_answers_combine_with_a_consistency_term(runs, weights_equal, method, consistency):
    args = (*method, "--model.consistency", consistency, "--trainer.max_steps", "1")
    fused = runs.fit("fused", *args)
    reference = runs.fit("reference", *args, "--model.objective_implementation", "reference")
    weights_equal(runs.weights(fused, 1), runs.weights(reference, 1))
    ours, theirs = (runs.metrics(run)[0] for run in (fused, reference))
    assert float(ours["train/nca"]) > 0
    for name in ("train/loss", "train/nca", "train/consistency_weight", "train/entropy"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-6)


def test_fine_tuning_runs_no_teacher_pass(runs, monkeypatch):
    from lightning_modules.scoring import ViewScorer

    def forbidden(*args: object) -> None:
        raise AssertionError("no term asks for the teacher")

    monkeypatch.setattr(ViewScorer, "teacher_projection", forbidden)
    run = runs.fit("run", *SFT, "--trainer.max_steps", "1")
    with (run / "metrics.csv").open() as file:
        assert "train/cross_entropy" in next(csv.reader(file))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model.distillation", "cross_entropy"), "rollouts.sampler is 'student'"),
        (("--model.rollouts.context_share", "0.5"), "consistency is 'no_context_anchor'"),
        (("--model.rollouts.context_share", "2"), "rollouts.context_share is 2.0"),
        (("--model.rollouts.sampler", "teacher", "--model.engine.kind", "vllm"), "engine.kind is 'vllm'"),
    ],
)
def test_what_is_undefined_is_refused_before_anything_is_loaded(runs, args, message):
    with pytest.raises((ValueError, SystemExit), match=message) as error:
        runs.fit("run", *args, "--model.student.name", "/nowhere")
    assert "nowhere" not in str(error.value)
