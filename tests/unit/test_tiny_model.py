"""The shared tiny model keeps the traits of real ones that tests rely on."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

USER_TURN = {"role": "user", "content": "Which continent is Paris, France in?"}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_loads_with_the_auto_classes_and_runs(tiny_model_dir, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (32, 2, 2)
    assert config.vocab_size == len(tokenizer) == 400
    assert model.lm_head.weight is model.model.embed_tokens.weight
    logits = model(**tokenizer("Paris", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_the_end_token_is_also_the_padding(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("text", ["Lima, Peru", " two  spaces\n\n", "São Paulo 東京 🙂", "a<|im_end|>\nb"])
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_special_tokens_are_single_ids(tokenizer):
    assert len(tokenizer("<|im_start|><|im_end|>", add_special_tokens=False).input_ids) == 2


def test_template_adds_a_default_system_message(tokenizer):
    rendered = tokenizer.apply_chat_template([USER_TURN], tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhich continent is Paris, France in?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_template_keeps_a_given_system_message(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, USER_TURN]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich continent is Paris, France in?<|im_end|>\n"
    )


@pytest.mark.parametrize(("enable_thinking", "tail"), [(True, ""), (False, "<think>\n\n</think>\n\n")])
def test_template_switches_thinking_off(tokenizer, enable_thinking, tail):
    rendered = tokenizer.apply_chat_template(
        [USER_TURN], tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
    )
    assert rendered.endswith(f"<|im_start|>assistant\n{tail}")
