"""vLLM in the trainer's process: the protocol, whose weights sample, and faults that the sync check must catch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.rollout import vllm_colocated
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.engines import EngineSpec, make_engine
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.rollout.sync_check import StaleWeightsError
from lightning_modules.rollout.vllm import VLLMSpec

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")

PROMPTS = [[5, 6, 7, *range(20 + n, 20 + 2 * n)] for n in (1, 4, 9, 2)]
GREEDY, SAMPLED = SamplingSpec(12, temperature=0.0), SamplingSpec(12)


@pytest.fixture(scope="module")
def tokenizer(vllm_model_dir):
    return AutoTokenizer.from_pretrained(vllm_model_dir)


@pytest.fixture(scope="module")
def shared(vllm_model_dir, tokenizer):
    """One vLLM for all tests of this file, and its student."""
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    engine = make_engine(EngineSpec("vllm", VLLMSpec(kv_cache_gib=0.1)), model, tokenizer, 64)
    yield engine, model
    engine.close()


@pytest.fixture
def engine(shared, vllm_model_dir):
    """The shared engine; its student has the folder's weights again."""
    engine, model = shared
    model.load_state_dict(AutoModelForCausalLM.from_pretrained(vllm_model_dir).state_dict())
    return engine


def generate(engine, prompts, sampling, seed=0):
    with engine.current_weights():
        return engine.generate(prompts, sampling, seed)


@torch.no_grad()
def move(model, share):
    """Another model, near by."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(share * parameter.std() * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def logprobs_by_hand(model, prompt, completion, vocab_size):
    """One full forward pass; padding columns cut off."""
    logits = model.eval()(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1, :vocab_size]
    return logits.log_softmax(-1)[range(len(completion)), completion]


@pytest.mark.parametrize("common", [0, 40])
def test_greedy_answers_equal_the_transformers_engines(engine, tokenizer, common):
    prompts = [[*range(40, 40 + common), *prompt] for prompt in PROMPTS]
    own = HFRolloutEngine(engine.model, tokenizer).generate(prompts, GREEDY, 0)
    assert generate(engine, prompts, GREEDY) == own


def test_the_students_weights_sample_not_the_folders(engine, tokenizer):
    before = generate(engine, PROMPTS, GREEDY)
    move(engine.model, 0.3)
    after = generate(engine, PROMPTS, GREEDY)
    assert after != before
    assert after == HFRolloutEngine(engine.model, tokenizer).generate(PROMPTS, GREEDY, 0)


def test_logprobs_are_the_models_at_temperature_1(engine, tokenizer):
    for completion, prompt in zip(generate(engine, PROMPTS, SamplingSpec(12, 0.5)), PROMPTS, strict=True):
        expected = logprobs_by_hand(engine.model, prompt, completion.token_ids, len(tokenizer))
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=5e-5)
    assert 0.0 < engine.logprob_gap < 2e-5


def test_seeded_whatever_is_sampled_beside_and_without_side_effects(engine):
    torch.manual_seed(1)
    state, threads, set_num_threads = torch.get_rng_state(), torch.get_num_threads(), torch.set_num_threads
    first, again, other = (generate(engine, PROMPTS, SAMPLED, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert generate(engine, [*PROMPTS, *PROMPTS], SAMPLED, 3)[: len(PROMPTS)] == first
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.set_num_threads is set_num_threads is not None
    assert "vllm" not in torch.set_num_threads.__module__
    assert torch.get_default_dtype() == torch.float32


def test_equal_prompts_get_samples_of_their_own(engine):
    assert len({tuple(c.token_ids) for c in generate(engine, [PROMPTS[0]] * 8, SAMPLED)}) == 8


def test_sampling_follows_the_model(engine, tokenizer):
    """First-token frequencies against the model's own distribution."""
    prompt, n = PROMPTS[0], 1000
    p = engine.model.eval()(torch.tensor([prompt])).logits[0, -1, : len(tokenizer)].softmax(-1).detach()
    drawn = [c.token_ids[0] for c in generate(engine, [prompt] * n, SamplingSpec(1))]
    top = int(p.argmax())
    assert abs(drawn.count(top) / n - float(p[top])) < 4 * (float(p[top] * (1 - p[top])) / n) ** 0.5 + 1e-3
    assert len(set(drawn)) > 20


@pytest.mark.parametrize("sampling", [SamplingSpec(1, 1.0, top_k=2), SamplingSpec(1, 1.0, top_p=1e-6)])
def test_top_k_and_top_p_cut(engine, sampling):
    best = engine.model.eval()(torch.tensor([PROMPTS[1]])).logits[0, -1].topk(2).indices.tolist()
    drawn = {c.token_ids[0] for c in generate(engine, [PROMPTS[1]] * 64, sampling)}
    assert drawn == set(best if sampling.top_k else best[:1])


def test_the_end_token_is_kept_and_ends(engine, tokenizer):
    completions = generate(engine, PROMPTS * 60, SamplingSpec(40))
    assert {completion.finished for completion in completions} == {True, False}
    for completion in completions:
        ends = [token in engine.end_token_ids for token in completion.token_ids]
        assert ends == [False] * (len(ends) - 1) + [completion.finished]
        assert completion.finished or len(completion.token_ids) == 40
        assert len(completion.logprobs) == len(completion.token_ids)
        assert tokenizer.eos_token not in completion.text


def test_padding_columns_of_the_head_are_never_sampled(engine, tokenizer):
    """Trap: a head wider than the vocabulary. The planted column would win every draw."""
    with torch.no_grad():
        embedding = engine.model.get_input_embeddings().weight
        assert len(embedding) > len(tokenizer)
        embedding[len(tokenizer) :] = 20 * embedding[: len(embedding) - len(tokenizer)]
    tokens = [t for c in generate(engine, PROMPTS * 4, SAMPLED) for t in c.token_ids]
    assert max(tokens) < len(tokenizer)


# ------------------------------------------------------------------------------------------------- planted faults


def test_a_skipped_sync_stops(engine, monkeypatch):
    generate(engine, PROMPTS, SAMPLED)
    move(engine.model, 0.01)
    monkeypatch.setattr(engine._backend, "load", lambda model: None)
    with pytest.raises(StaleWeightsError, match=r"differ by .* nats on average, at most 0\.0002"):
        generate(engine, PROMPTS, SAMPLED)


def faulty_buckets(monkeypatch, change):
    """Let `change` replace every (name, tensor) on its way by a list of them."""
    own = vllm_colocated.weight_buckets

    def buckets(*args):
        return ([changed for pair in bucket for changed in change(*pair)] for bucket in own(*args))

    monkeypatch.setattr(vllm_colocated, "weight_buckets", buckets)


def test_a_shuffled_tensor_stops(engine, monkeypatch):
    def shuffle(name, tensor):
        is_target = name == "model.layers.1.self_attn.o_proj.weight"
        return [(name, tensor[torch.randperm(len(tensor))] if is_target else tensor)]

    faulty_buckets(monkeypatch, shuffle)
    with pytest.raises(StaleWeightsError):
        generate(engine, PROMPTS, SAMPLED)


def test_a_tied_head_left_out_stops(engine, monkeypatch):
    """Trap of vLLM on a CPU: the repacked head keeps its old weights, silently."""
    generate(engine, PROMPTS, SAMPLED)
    move(engine.model, 0.01)
    with monkeypatch.context() as patch:
        faulty_buckets(patch, lambda name, tensor: [(name, tensor)] if name != "lm_head.weight" else [])
        with pytest.raises(StaleWeightsError):
            generate(engine, PROMPTS, SAMPLED)
    generate(engine, PROMPTS, SAMPLED)
    assert engine.logprob_gap < 2e-5


def test_keys_and_values_of_old_weights_stop(engine, monkeypatch):
    """The probe is sampled like everything else, so it sees a prefix cache that was not reset."""
    prompts = [[*range(40, 240), *prompt] for prompt in PROMPTS]
    generate(engine, prompts, SAMPLED)
    move(engine.model, 0.05)
    monkeypatch.setattr(engine._backend.llm, "reset_prefix_cache", lambda: None)
    with pytest.raises(StaleWeightsError):
        generate(engine, prompts, SAMPLED)
    monkeypatch.undo()
    generate(engine, prompts, SAMPLED)


def test_not_a_number_stops(engine, monkeypatch):
    faulty_buckets(monkeypatch, lambda name, tensor: [(name, tensor * float("nan"))])
    with pytest.raises(StaleWeightsError, match="differ by nan"):
        generate(engine, PROMPTS, SAMPLED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM sleeps on CUDA only: a CPU has no sleep mode")
def test_a_sleeping_engine_takes_new_weights(vllm_model_dir, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir).to("cuda")
    engine = make_engine(EngineSpec("vllm", VLLMSpec(kv_cache_gib=0.1)), model, tokenizer, 64)
    generate(engine, PROMPTS, SAMPLED)
    assert engine._backend._asleep
    move(model, 0.3)
    own = HFRolloutEngine(model, tokenizer).generate(PROMPTS, GREEDY, 0)
    assert generate(engine, PROMPTS, GREEDY) == own  # and the sync check passed
    engine.close()


# ------------------------------------------------------------------------------------------------------- the user


def test_a_missing_vllm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"engine\.kind is vllm, and vLLM can't be imported: pip install"):
        vllm_colocated._import_vllm()


def test_no_weights_reach_the_disk(vllm_model_dir, tokenizer, tmp_path, monkeypatch):
    """vLLM starts from the config alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    seen: list[str] = []

    class LLM:
        def __init__(self, folder, **kwargs):
            seen.extend(path.name for path in Path(folder).rglob("*"))

    monkeypatch.setattr(vllm_colocated, "_import_vllm", lambda: type("vllm", (), {"LLM": LLM, "SamplingParams": None}))
    vllm_colocated.ColocatedVLLM(model, VLLMSpec(), len(tokenizer), 4)
    assert seen == ["config.json"]
