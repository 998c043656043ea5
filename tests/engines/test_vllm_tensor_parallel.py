"""One vLLM over two worker processes: each takes its shard of every tensor, and both together answer as the student."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.adapters import LoRASpec, add_adapters
from lightning_modules.rollout.engines import EngineSpec, make_engine
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.rollout.sync_check import StaleWeightsError
from lightning_modules.rollout.vllm import VLLMSpec
from tests.engines.test_vllm import GREEDY, PROMPTS, SAMPLED, generate, move
from tests.engines.test_vllm_lora import draw_adapters

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")


def engine_of(folder, lora=None):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if lora is not None:
        add_adapters(model, lora, "tiny")
    return make_engine(EngineSpec("vllm", VLLMSpec(kv_cache_gib=0.1, tensor_parallel_size=2)), model, tokenizer, 64)


def test_two_workers_follow_the_student(vllm_model_dir, monkeypatch):
    engine = engine_of(vllm_model_dir)
    try:
        answers = []
        for _ in range(2):
            answers.append(generate(engine, PROMPTS, GREEDY))
            assert answers[-1] == HFRolloutEngine(engine.model, engine.tokenizer).generate(PROMPTS, GREEDY, 0)
            assert engine.logprob_gap < 2e-5
            move(engine.model, 0.3)
        assert answers[0] != answers[1]
        assert generate(engine, PROMPTS, SAMPLED, 3) == generate(engine, PROMPTS, SAMPLED, 3)
        workers = engine._backend.llm.collective_rpc("held_base")
        assert len(workers) == 2
        move(engine.model, 0.01)
        monkeypatch.setattr(engine._backend, "load", lambda model: None)
        with pytest.raises(StaleWeightsError):
            generate(engine, PROMPTS, SAMPLED)
    finally:
        engine.close()


def test_two_workers_take_adapters(vllm_model_dir):
    engine = engine_of(vllm_model_dir, LoRASpec(r=3, alpha=12.0, target_modules=["q_proj", "down_proj", "lm_head"]))
    try:
        for seed in (1, 2):
            draw_adapters(engine.model, seed)
            with engine.current_weights():
                answers = engine.generate(PROMPTS, GREEDY, 0)
            assert answers == HFRolloutEngine(engine.model, engine.tokenizer).generate(PROMPTS, GREEDY, 0)
            assert engine.logprob_gap < 2e-5
    finally:
        engine.close()
