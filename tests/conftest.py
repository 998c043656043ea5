"""Fixtures that unit and integration tests share. Nothing here reaches a network."""

import os
from pathlib import Path

import pytest

# Before any test imports transformers, datasets or wandb, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
# The models here are tiny: a second thread only waits, and waits busily when something else runs beside the tests.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"

# Like SmolLM2's: a default system message appears where none is given. `enable_thinking` is Qwen3's.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)

TOKENIZER_CORPUS = [
    "Which continent is Paris, France in? Answer with the continent only.",
    "Which continent is Nairobi, Kenya in? Answer with the continent only.",
    "Which continent is Lima, Peru in? Answer with the continent only.",
    "Africa Asia Europe North America South America Oceania Antarctica",
    "The answer is Africa. The answer is Asia. The answer is Europe. The answer is Oceania.",
    "The answer is North America. The answer is South America.",
    "system\nYou are a helpful assistant.\nuser\nassistant\n<think>\n\n</think>\n\n",
    "Reply with one word: the name of the continent. Choose the correct option: A, B, C or D.",
]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a random two-layer Llama and a real fast tokenizer with a ChatML template.

    Shared by the whole session: read it, never write into it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = _byte_level_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # far from uniform: contexts must matter to the answers
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # leaves the random state of the test that asks first as it was
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def _byte_level_tokenizer():
    """Train a byte-level BPE of about 400 tokens; it can encode any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",  # pad == eos, as in SmolLM2: the end of an answer must still be trained
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
