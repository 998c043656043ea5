"""OPD must teach: a tiny model that answers rightly with its context learns to answer without it, and NCA keeps both.

The model is first trained (supervised, seconds) to answer a dozen questions rightly behind the context and at random
without it. Then the real LightningModule runs. With the sign of the loss flipped the same test fails.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from callbacks.removability import RemovabilityCallback
from callbacks.removability_files import read_summaries
from datamodules.base import ContextDataModule
from datamodules.example import Example
from datamodules.grading import grade_choice_mention
from lightning_modules import step_gradient
from lightning_modules.context_distillation import ContextDistillation
from lightning_modules.models import ModelSpec
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.views import ViewRenderer, ViewSpec

ANSWERS = ("Africa", "Asia", "Europe", "Oceania")
CONTEXT = "Answer with the continent only."


class Riddles(ContextDataModule):
    """Sixteen questions with fixed answers; every split holds all of them: this is about learning, not generalising."""

    def load_splits(self):
        def items(split):
            return [
                Example(f"{split}-{i}", ({"role": "user", "content": f"Which is {i}?"},), CONTEXT, ANSWERS[i % 4])
                for i in range(16)
            ]

        return {split: items(split) for split in ("train", "val", "test")}

    def grade(self, example, completion):
        return grade_choice_mention(completion, example.answer, {answer: (answer,) for answer in ANSWERS})


def predicted(model, tokenizer, prompt, answer):
    """Logits (T, V) at the tokens of an answer, and the tokens (T,), the end token with them."""
    completion = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits, torch.tensor(completion)


@torch.no_grad()
def knows_all(model, tokenizer, pairs):
    """Whether greedy decoding behind the context gives every answer."""
    answers = (predicted(model, tokenizer, pair.with_context_ids, right) for pair, right in pairs)
    return all(torch.equal(logits.argmax(-1), completion) for logits, completion in answers)


@pytest.fixture(scope="module")
def schooled_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right behind the context, uniformly random without it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).train()
    renderer = ViewRenderer(tokenizer, ViewSpec(), 512, 8)
    pairs = [(renderer.render(e), e.answer) for e in Riddles().load_splits()["train"]]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(3_000):
            # Rounding differs between machines, and so does the step at which the last question is learnt.
            if step >= 400 and step % 50 == 0 and knows_all(model, tokenizer, pairs):
                break
            pair, right = pairs[step * 7 % 16]
            guess = ANSWERS[int(torch.randint(4, ()))]
            loss = torch.zeros(())
            for prompt, answer in ((pair.with_context_ids, right), (pair.no_context_ids, guess)):
                loss = loss + torch.nn.functional.cross_entropy(*predicted(model, tokenizer, prompt, answer))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            pytest.fail("The model did not learn its questions in 3,000 steps.")
    folder = tmp_path_factory.mktemp("schooled")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def distil(model: Path, root: Path, consistency: str) -> list:
    module = ContextDistillation(
        ModelSpec(str(model)),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        sampling=SamplingSpec(6),
        consistency=consistency,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=100,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        callbacks=[RemovabilityCallback(every_n_steps=0)],
    )
    trainer.fit(module, Riddles(batch_size=16))
    return [line.summaries["all"] for line in read_summaries(root / "removability/summary.jsonl")]


@pytest.mark.parametrize("consistency", ["none", "no_context_anchor"])
def test_opd_raises_no_context_accuracy(schooled_model, tmp_path, consistency):
    before, after = distil(schooled_model, tmp_path, consistency)
    assert before.accuracy_with_context >= 0.9
    assert before.accuracy_no_context <= 0.5
    assert after.accuracy_no_context >= 0.85
    if consistency == "no_context_anchor":
        assert after.accuracy_with_context >= 0.85


def test_a_flipped_sign_does_not(schooled_model, tmp_path, monkeypatch):
    real = step_gradient.distillation

    def flipped(*args):
        term = real(*args)
        return replace(term, loss=-term.loss)

    monkeypatch.setattr(step_gradient, "distillation", flipped)
    _, after = distil(schooled_model, tmp_path, "none")
    assert after.accuracy_no_context < 0.85
