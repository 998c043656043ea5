"""LoRA students on vLLM: adapters are synced as they are, the base is sent once and stays what it was."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.adapters import LoRASpec, add_adapters, base_parameters, is_adapter
from lightning_modules.rollout import vllm_colocated
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.engines import EngineSpec, make_engine
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.rollout.sync_check import StaleWeightsError
from lightning_modules.rollout.vllm import VLLMSpec

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")

PROMPTS = [[5, 6, 7, *range(20 + n, 20 + 2 * n)] for n in (1, 4, 9, 2)]
GREEDY = SamplingSpec(12, temperature=0.0)
NUM_SYNCS = 1000


@torch.no_grad()
def draw_adapters(model, seed, share=0.2):
    """Adapters that change answers."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.copy_(share * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module", params=["all-linear", ["q_proj", "down_proj", "lm_head"]], ids=["linear", "and_head"])
def engine(request, vllm_model_dir):
    """One vLLM, and a student with adapters; with some of them the head is adapted, which has padding columns."""
    tokenizer = AutoTokenizer.from_pretrained(vllm_model_dir)
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    add_adapters(model, LoRASpec(r=3, alpha=12.0, target_modules=request.param), "tiny")
    engine = make_engine(EngineSpec("vllm", VLLMSpec(kv_cache_gib=0.1)), model, tokenizer, 64)
    yield engine
    engine.close()


def generate(engine):
    with engine.current_weights():
        return engine.generate(PROMPTS, GREEDY, 0)


def base_hash(tensors):
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_greedy_answers_are_those_of_the_adapted_student(engine):
    answers = []
    for seed in (1, 2):
        draw_adapters(engine.model, seed)
        answers.append(generate(engine))
        assert answers[-1] == HFRolloutEngine(engine.model, engine.tokenizer).generate(PROMPTS, GREEDY, 0)
        assert engine.logprob_gap < 2e-5
    assert answers[0] != answers[1]


def test_the_base_is_sent_once_and_stays_what_it_was(engine, monkeypatch):
    """vLLM repacks what it holds, so that its base is known by its answers and their log-probabilities."""
    draw_adapters(engine.model, 3, share=0.0)
    untouched, ours = generate(engine), base_hash(base_parameters(engine.model))
    monkeypatch.setattr(vllm_colocated, "weight_buckets", None)  # nobody asks for the base any more
    for seed in range(NUM_SYNCS):
        draw_adapters(engine.model, seed)
        with engine.current_weights():
            pass
    generate(engine)
    assert engine.logprob_gap < 2e-5
    draw_adapters(engine.model, 3, share=0.0)
    assert generate(engine) == untouched
    assert base_hash(base_parameters(engine.model)) == ours


def test_a_base_that_was_written_to_is_sent_again(engine, monkeypatch):
    draw_adapters(engine.model, 4)
    generate(engine)
    for is_noticed in (True, False):
        if not is_noticed:
            held = vllm_colocated.base_state(engine.model)
            monkeypatch.setattr(vllm_colocated, "base_state", lambda model, held=held: held)
        with torch.no_grad():
            dict(base_parameters(engine.model))["model.layers.0.self_attn.q_proj.weight"].mul_(1.5)
        with nullcontext() if is_noticed else pytest.raises(StaleWeightsError):
            generate(engine)


def test_syncing_leaves_the_students_adapters_alone(engine):
    """vLLM multiplies alpha / r into B in place."""
    draw_adapters(engine.model, 5)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters() if is_adapter(name)}
    generate(engine)
    after = {name: p for name, p in engine.model.named_parameters() if is_adapter(name)}
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("fault", ["skipped", "shuffled", "without a factor"])
def test_adapters_that_are_not_the_students_stop(engine, monkeypatch, fault):
    draw_adapters(engine.model, 6)
    generate(engine)
    draw_adapters(engine.model, 7)
    own = vllm_colocated.adapter_tensors

    def faulty(model, vocab_size):
        name, tensor = own(model, vocab_size)[1]
        changed = tensor[torch.arange(len(tensor)).roll(1)] if fault == "shuffled" else torch.zeros_like(tensor)
        return [(n, changed if n == name else t) for n, t in own(model, vocab_size)]

    if fault == "skipped":
        monkeypatch.setattr(engine._backend, "load", lambda model: None)
    else:
        monkeypatch.setattr(vllm_colocated, "adapter_tensors", faulty)
    with pytest.raises(StaleWeightsError):
        generate(engine)


def test_a_rank_that_vllm_has_no_room_for_is_named(vllm_model_dir):
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    add_adapters(model, LoRASpec(r=513, target_modules=["q_proj"]), "tiny")
    engine = make_engine(EngineSpec("vllm"), model, AutoTokenizer.from_pretrained(vllm_model_dir), 4)
    with (
        pytest.raises(ValueError, match=r"model\.student\.lora\.r is 513; vLLM takes at most 512"),
        engine.current_weights(),
    ):
        pass
