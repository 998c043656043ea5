"""The transformers engine: on-policy, seeded, cut at the right token, and the same with a shared beginning."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lightning_modules.rollout import hf
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.hf import HFRolloutEngine, find_end_token_ids


@pytest.fixture
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).train()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


PROMPTS = [[5, 6, 7, *range(20 + n, 20 + 2 * n)] for n in (1, 4, 9, 2)]
GREEDY, SAMPLED = SamplingSpec(12, temperature=0.0), SamplingSpec(12)


def greedy_by_hand(model, prompt, length, ends):
    """Argmax, one full forward pass per token: nothing cached, nothing padded."""
    ids = list(prompt)
    model.eval()
    with torch.no_grad():
        while len(ids) < len(prompt) + length:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("common", [0, 30])
def test_greedy_answers_equal_one_by_one_decoding(model, tokenizer, common):
    prompts = [[*range(40, 40 + common), *prompt] for prompt in PROMPTS]
    engine = HFRolloutEngine(model, tokenizer, batch_size=3)
    for prompt, completion in zip(prompts, engine.generate(prompts, GREEDY, seed=0), strict=True):
        assert completion.token_ids == greedy_by_hand(model, prompt, 12, engine.end_token_ids)


@pytest.mark.parametrize("window", [16, 40, 64])
def test_a_model_that_forgets_keys_runs_every_prompt_in_full(tokenizer, window):
    """What a sliding window keeps of a beginning is not all of it, and at other places than a full cache has it."""
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, max_position_embeddings=128, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MistralForCausalLM(config)
    prompts = [[*range(40, 80), *prompt] for prompt in PROMPTS]
    engine = HFRolloutEngine(model, tokenizer, batch_size=3)
    for prompt, completion in zip(prompts, engine.generate(prompts, GREEDY, seed=0), strict=True):
        assert completion.token_ids == greedy_by_hand(model, prompt, 12, engine.end_token_ids)


def test_a_shared_beginning_is_computed_once(model, tokenizer, monkeypatch):
    seen = []
    own = hf.prefix_keys_values
    monkeypatch.setattr(hf, "prefix_keys_values", lambda m, ids: seen.append(ids.tolist()) or own(m, ids))
    common = list(range(40, 70))
    HFRolloutEngine(model, tokenizer).generate([[*common, *p] for p in PROMPTS], GREEDY, seed=0)
    assert seen == [[*common, 5, 6, 7]]


def test_a_beginning_that_all_prompts_share_is_computed_once_for_all_batches(model, tokenizer, monkeypatch):
    seen = []
    own = hf.prefix_keys_values
    monkeypatch.setattr(hf, "prefix_keys_values", lambda m, ids: seen.append(ids.tolist()) or own(m, ids))
    common = list(range(40, 70))
    prompts = [[*common, *p] for p in PROMPTS]
    engine = HFRolloutEngine(model, tokenizer, batch_size=1)
    for prompt, completion in zip(prompts, engine.generate(prompts, GREEDY, seed=0), strict=True):
        assert completion.token_ids == greedy_by_hand(model, prompt, 12, engine.end_token_ids)
    assert seen == [[*common, 5, 6, 7]]


def test_a_batch_uses_its_own_context_where_that_is_longer(model, tokenizer, monkeypatch):
    seen = []
    own = hf.prefix_keys_values
    monkeypatch.setattr(hf, "prefix_keys_values", lambda m, ids: seen.append(len(ids)) or own(m, ids))
    template, contexts = list(range(40, 60)), ([9] * 20, [8] * 30)
    prompts = [[*template, *context, n, 3] for context in contexts for n in (1, 2)]
    engine = HFRolloutEngine(model, tokenizer, batch_size=2)
    for prompt, completion in zip(prompts, engine.generate(prompts, GREEDY, seed=0), strict=True):
        assert completion.token_ids == greedy_by_hand(model, prompt, 12, engine.end_token_ids)
    assert seen == [20, 40, 50]


def test_seeded_and_without_side_effects(model, tokenizer):
    engine = HFRolloutEngine(model, tokenizer)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (engine.generate(PROMPTS, SAMPLED, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_the_models_own_sampling_defaults_are_set_aside(model, tokenizer):
    """Trap: a hub model's generation_config (top_k, repetition_penalty) would make rollouts off-policy silently."""
    engine = HFRolloutEngine(model, tokenizer)
    plain = engine.generate(PROMPTS, SAMPLED, seed=5)
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=5.0, eos_token_id=1)
    assert engine.generate(PROMPTS, SAMPLED, seed=5) == plain
    assert model.generation_config.top_k == 1


def test_the_end_token_is_kept_and_padding_is_not(model, tokenizer):
    """Trap: pad == eos. The end token belongs to the answer and is trained; padding behind it never is."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    engine = HFRolloutEngine(model, tokenizer)
    completions = engine.generate(PROMPTS * 30, SamplingSpec(40), seed=0)
    finished = [c for c in completions if c.finished]
    assert finished
    assert len(finished) < len(completions)
    for completion in completions:
        ends = [token in engine.end_token_ids for token in completion.token_ids]
        assert ends == [False] * (len(ends) - 1) + [completion.finished]
        assert completion.finished or len(completion.token_ids) == 40
        assert tokenizer.eos_token not in completion.text


def test_padding_columns_of_the_head_are_never_sampled(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) * 4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    engine = HFRolloutEngine(LlamaForCausalLM(config), tokenizer)
    tokens = [t for c in engine.generate(PROMPTS * 4, SamplingSpec(20), seed=0) for t in c.token_ids]
    assert max(tokens) < len(tokenizer)


def test_sampling_follows_the_model(model, tokenizer):
    """First-token frequencies against the model's own distribution."""
    prompt, n = PROMPTS[0], 4000
    with torch.no_grad():
        p = model.eval()(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    drawn = [c.token_ids[0] for c in HFRolloutEngine(model, tokenizer, 1000).generate([prompt] * n, SamplingSpec(1), 0)]
    top = int(p.argmax())
    share = drawn.count(top) / n
    assert abs(share - float(p[top])) < 4 * (float(p[top] * (1 - p[top])) / n) ** 0.5 + 1e-3
    assert len(set(drawn)) > 50


def test_all_end_tokens_of_the_model_count(model, tokenizer):
    model.generation_config.eos_token_id = [3, 9]
    assert find_end_token_ids(model, tokenizer) == sorted({3, 9, tokenizer.eos_token_id})


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_completion_length", 0), ("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1)],
)
def test_bad_sampling_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        SamplingSpec(**{field: value})
