"""What of the engines needs no vLLM: settings, weights on their way, and the arithmetic of the sync check."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_modules.adapters import LoRASpec, add_adapters
from lightning_modules.rollout import vllm_colocated
from lightning_modules.rollout.engine import Completion, SamplingSpec
from lightning_modules.rollout.engines import EngineSpec, make_engine
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.rollout.sync_check import StaleWeightsError, check_gap, log_probabilities, mean_gap
from lightning_modules.rollout.vllm import Sampled, VLLMRolloutEngine, VLLMSpec
from lightning_modules.rollout.vllm_colocated import ColocatedVLLM
from lightning_modules.rollout.vllm_worker import WeightReceiver, encode
from lightning_modules.rollout.weights import adapter_tensors, base_state, weight_buckets

PROMPTS, ANSWERS = [[1, 2, 3], [4, 5]], [[6, 7], [8, 9, 10]]


def small_model(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
            tie_word_embeddings=tied,
        )
    )


class FakeVLLM:
    """Implements `vllm.Backend` with fixed answers, and notes what it is asked."""

    def __init__(self, logprobs):
        self.logprobs, self.calls = logprobs, []

    def sample(self, prompts, sampling, seeds, end_ids):
        self.calls.append(("sample", tuple(seeds)))
        rows = zip(ANSWERS, self.logprobs, strict=True)
        return [Sampled(list(answer), list(logprobs), "length") for answer, logprobs in rows]

    def load(self, model):
        self.calls.append("load")

    def sleep(self):
        self.calls.append("sleep")

    def close(self):
        self.calls.append("close")


@pytest.fixture
def student(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir), AutoTokenizer.from_pretrained(tiny_model_dir)


def reference(model, prompt, answer, width):
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1, :width]
    return logits.log_softmax(-1)[range(len(answer)), answer]


def faked(student, off=0.0):
    """An engine over a fake whose log-probabilities are the student's plus `off`."""
    model, tokenizer = student
    logprobs = [
        (reference(model, prompt, answer, len(tokenizer)) + off).tolist()
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    fake = FakeVLLM(logprobs)
    return VLLMRolloutEngine(model, tokenizer, VLLMSpec(), lambda: fake), fake


def test_weights_arrive_in_time_and_the_engine_rests_afterwards(student):
    engine, fake = faked(student)
    with engine.current_weights():
        first = engine.generate(PROMPTS, SamplingSpec(3), 1)
        engine.generate(PROMPTS, SamplingSpec(3), 1)
    (_, seeds), again = fake.calls[1], fake.calls[2]
    assert fake.calls == ["load", ("sample", seeds), again, "sleep"]
    assert again == ("sample", seeds)
    assert len(set(seeds)) == 2
    assert [completion.token_ids for completion in first] == ANSWERS
    assert 0.0 <= engine.logprob_gap < 1e-5
    engine.close()
    assert fake.calls[-1] == "close"


def test_an_engine_whose_weights_may_be_old_does_not_sample(student):
    engine, _ = faked(student)
    with engine.current_weights():
        pass
    with pytest.raises(AssertionError, match="inside current_weights"):
        engine.generate(PROMPTS, SamplingSpec(3), 0)


def test_a_block_inside_another_one_sends_nothing(student):
    """Ranks evaluate different numbers of batches, so a sync for each batch would leave some of them waiting."""
    engine, fake = faked(student)
    with engine.current_weights():
        for _ in range(2):
            with engine.current_weights():
                engine.generate(PROMPTS, SamplingSpec(3), 0)
    assert [call for call in fake.calls if isinstance(call, str)] == ["load", "sleep"]


def test_with_several_ranks_vllm_ends_with_its_process_only(student, monkeypatch):
    engine, fake = faked(student)
    with engine.current_weights():
        pass
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        engine.close()
    assert "close" not in fake.calls
    engine.close()
    assert fake.calls[-1] == "close"


def test_one_vllm_over_several_gpus_beside_other_ranks_is_refused(student, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(vllm_colocated, "_import_vllm", lambda: type("vllm", (), {"SamplingParams": None}))
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 2, with 2 trainer processes"):
        ColocatedVLLM(student[0], VLLMSpec(tensor_parallel_size=2), 20, 4)


def test_the_first_samples_after_each_sync_are_checked(student):
    engine, fake = faked(student, off=1e-3)
    for _ in range(2):
        with engine.current_weights(), pytest.raises(StaleWeightsError, match=r"differ by 0\.001 nats"):
            engine.generate(PROMPTS, SamplingSpec(3), 0)
    assert fake.calls.count("sleep") == 2  # its memory is given back whatever happened
    engine.spec = VLLMSpec(max_logprob_gap=2e-3)
    with engine.current_weights():
        engine.generate(PROMPTS, SamplingSpec(3), 0)


def test_trainer_log_probabilities_are_those_of_full_passes(student):
    model, tokenizer = student
    model.train()
    ours = log_probabilities(model, PROMPTS, ANSWERS, len(tokenizer))
    assert model.training
    theirs = [reference(model, *pair, len(tokenizer)) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=0, atol=1e-5)


def test_the_gap_is_the_mean_over_tokens(student):
    """By hand: two tokens off by 0.1 and three by 0.2, in either direction: (2 * 0.1 + 3 * 0.2) / 5."""
    model, tokenizer = student
    off = [0.1, -0.2]
    completions = [
        Completion(answer, "", True, (reference(model, prompt, answer, len(tokenizer)) + by).tolist())
        for prompt, answer, by in zip(PROMPTS, ANSWERS, off, strict=True)
    ]
    assert mean_gap(model, PROMPTS, completions, len(tokenizer)) == pytest.approx(0.16, abs=1e-5)


def test_the_coarser_data_type_sets_the_limit():
    check_gap(0.01, [torch.bfloat16, torch.float32])
    with pytest.raises(StaleWeightsError):
        check_gap(0.01, [torch.float32, torch.float32])
    check_gap(0.01, [torch.float32], max_gap=0.02)
    with pytest.raises(StaleWeightsError, match="nan"):
        check_gap(float("nan"), [torch.bfloat16])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_bytes", [1, 300, 10**9])
def test_every_tensor_travels_once_and_without_padding(tied, max_bytes):
    model = small_model(tied=tied)
    buckets = list(weight_buckets(model, 17, max_bytes))
    sent = dict(pair for bucket in buckets for pair in bucket)
    assert sum(map(len, buckets)) == len(sent)
    state = model.state_dict()  # names a tied head too
    assert sent.keys() == state.keys()
    assert "lm_head.weight" in sent
    for name, tensor in sent.items():
        is_vocabulary = name in ("lm_head.weight", "model.embed_tokens.weight")
        assert torch.equal(tensor, state[name][:17] if is_vocabulary else state[name])
        assert not tensor.requires_grad
    for bucket in buckets:
        assert len(bucket) == 1 or sum(tensor.numel() * 4 for _, tensor in bucket) <= max_bytes
    if max_bytes == 10**9:
        assert len(buckets) == 1


def test_buckets_hold_no_copies():
    model = small_model(tied=True)
    sent = dict(pair for bucket in weight_buckets(model, 17) for pair in bucket)
    assert sent["model.norm.weight"].data_ptr() == model.model.norm.weight.data_ptr()


def test_adapters_travel_beside_the_base():
    """The base by the names that it had without them, the factors by peft's; the head's are cut to the vocabulary."""
    model = small_model(tied=True)
    before = [name for bucket in weight_buckets(model, 17) for name, _ in bucket]
    state = base_state(model)
    add_adapters(model, LoRASpec(r=2, target_modules=["q_proj", "lm_head"]), "small")
    assert [name for bucket in weight_buckets(model, 17) for name, _ in bucket] == before
    sent = dict(adapter_tensors(model, 17))
    layers = [*(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)), "lm_head"]
    assert set(sent) == {f"base_model.model.{layer}.lora_{factor}.weight" for layer in layers for factor in "AB"}
    assert sent["base_model.model.lm_head.lora_B.weight"].shape == (17, 2)
    assert sent["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (2, 8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(1.0)
        assert base_state(model) == state
        model.model.norm.weight.add_(1.0)
    assert base_state(model) != state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bucket_survives_http(dtype):
    shared = torch.randn(3, 2).to(dtype)
    received = []

    class Receiver(WeightReceiver):
        def load_new_weights(self, tensors):
            received.extend(tensors)

    Receiver().load_encoded_weights(encode([("a", shared), ("b", shared), ("c", shared.T)]))
    arrived = dict(received)
    assert arrived.keys() == {"a", "b", "c"}
    assert torch.equal(arrived["b"], shared)
    assert torch.equal(arrived["c"], shared.T)


def test_the_embedded_engine_is_the_default(student):
    engine = make_engine(EngineSpec(), *student, 4)
    assert isinstance(engine, HFRolloutEngine)
    assert engine.logprob_gap is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "server"}, r"engine\.vllm\.mode is 'server' and engine\.vllm\.server_url is None"),
        ({"server_url": "http://a"}, "mode is 'colocate' and .* is 'http://a'"),
        ({"tensor_parallel_size": 0}, r"engine\.vllm\.tensor_parallel_size is 0; it must be at least 1"),
        ({"mode": "server", "server_url": "http://a", "tensor_parallel_size": 2}, "server's own command"),
        ({"max_model_len": 0}, r"engine\.vllm\.max_model_len is 0"),
        ({"num_checked": 0}, r"engine\.vllm\.num_checked is 0"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization is 1\.5; it must be in \(0, 1\]"),
        ({"kv_cache_gib": 0.0}, r"kv_cache_gib is 0\.0; it must be positive"),
        ({"max_logprob_gap": -1.0}, r"max_logprob_gap is -1\.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMSpec(**settings)


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match=r"engine\.vllm is set and engine\.kind is 'hf'"):
        EngineSpec("hf", VLLMSpec(max_model_len=100))
