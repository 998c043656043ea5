"""Sampling with transformers' generate: the embedded engine, which needs nothing beside the student itself.

Prompts that begin alike (a shared context) have their common beginning computed once per call of `generate`, as keys
and values that are expanded over each batch, unless the model forgets keys (sliding windows). Padding lies between that
beginning and each prompt's rest, masked out, with position ids that skip it.

A model's own generation_config (Qwen ships top_k=20, repetition_penalty=1.05) is set aside while sampling: it would
make the rollouts off-policy without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer

from lightning_modules.packing import common_prefix, expanded_cache, prefix_keys_values
from lightning_modules.rollout.engine import Completion, SamplingSpec
from lightning_modules.shared_context import KeysValues

MIN_SHARED_TOKENS = 16
"""Shorter common beginnings are not worth a pass of their own."""


class _Beginning(NamedTuple):
    """Leading tokens that prompts share, and their keys and values; empty where nothing is shared."""

    ids: list[int]
    keys_values: KeysValues


class HFRolloutEngine:
    """Implements `RolloutEngine` on the student's own module; its weights are always the current ones."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
        end_token_ids: Sequence[int] | None = None,
    ) -> None:
        """Sample from `model`.

        Args:
            model: the student.
            tokenizer: for padding, decoding and the width of the vocabulary.
            batch_size: prompts per call of generate.
            end_token_ids: tokens that end a completion; default: the model's generation_config, else the tokenizer's.
        """
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.end_token_ids = list(end_token_ids or find_end_token_ids(model, tokenizer))
        self.logprob_gap: float | None = None
        # A sliding window forgets keys, and other kinds of layers keep none: a beginning can't be handed on there.
        self._keeps_all_keys = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)

    def current_weights(self) -> AbstractContextManager[None]:
        """Nothing to do: see the class."""
        return nullcontext()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingSpec, seed: int) -> list[Completion]:
        """See `RolloutEngine.generate`."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: little padding
        completions: dict[int, Completion] = {}
        with own_random_state(seed, self.model.device), _sampling_mode(self.model):
            shared = self._beginning(prompts)
            for start in range(0, len(order), self.batch_size):
                members = order[start : start + self.batch_size]
                batch = [prompts[i] for i in members]
                own = shared
                # Batches may have more in common than all prompts have, such as one of several contexts.
                if len(_common_beginning(batch)) >= len(shared.ids) + MIN_SHARED_TOKENS:
                    own = self._beginning(batch)
                for index, completion in zip(members, self._batch(batch, own, sampling), strict=True):
                    completions[index] = completion
        return [completions[i] for i in range(len(prompts))]

    def _beginning(self, prompts: Sequence[Sequence[int]]) -> _Beginning:
        """Run what the prompts have in common, if it is worth it and the model keeps all of it."""
        ids = _common_beginning(prompts)
        if len(ids) < MIN_SHARED_TOKENS or not self._keeps_all_keys:
            return _Beginning([], [])
        return _Beginning(ids, prefix_keys_values(self.model, torch.tensor(ids, device=self.model.device)))

    def _batch(
        self, prompts: Sequence[Sequence[int]], beginning: _Beginning, sampling: SamplingSpec
    ) -> list[Completion]:
        prefix = beginning.ids
        width = max(map(len, prompts))
        rows, masks = [], []
        for prompt in prompts:
            padding = width - len(prompt)
            rows.append([*prefix, *([self.tokenizer.pad_token_id] * padding), *prompt[len(prefix) :]])
            masks.append([*([1] * len(prefix)), *([0] * padding), *([1] * (len(prompt) - len(prefix)))])
        device = self.model.device
        output = cast(Any, self.model).generate(
            torch.tensor(rows, device=device),
            attention_mask=torch.tensor(masks, device=device),
            past_key_values=expanded_cache(beginning.keys_values, len(prompts)) if prefix else None,
            generation_config=self._config(sampling),
            logits_processor=LogitsProcessorList([_CutPaddingColumns(len(self.tokenizer))]),
            synced_gpus=False,  # weights are whole here (`strategies.whole_weights`), so ranks may end at any length
        )
        return [self._completion(row) for row in output[:, width:].tolist()]

    def _config(self, sampling: SamplingSpec) -> GenerationConfig:
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0.0:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        return GenerationConfig(
            max_new_tokens=sampling.max_completion_length,
            eos_token_id=self.end_token_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **drawn,
        )

    def _completion(self, row: list[int]) -> Completion:
        # The end token is found by position: pad may be the same id, and then only the first one is the answer's.
        end = next((i for i, token in enumerate(row) if token in self.end_token_ids), None)
        token_ids = row if end is None else row[: end + 1]
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(token_ids, text, end is not None)


def _common_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that all prompts begin with and that are not all of any: generate needs one token to go on from."""
    return common_prefix([prompt[:-1] for prompt in prompts]) if len(prompts) > 1 else []


def find_end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a completion: the model's own list (Llama 3 has several), and the tokenizer's end token."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = [] if own is None else [own] if isinstance(own, int) else list(own)
    return sorted({*listed, tokenizer.eos_token_id})


class _CutPaddingColumns(LogitsProcessor):
    """A head may be wider than the vocabulary (padding columns); such an id is no token and must never be sampled."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.vocab_size :] = -torch.inf
        return scores


@contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Run under a random state seeded with `seed`, and give the caller's back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, no gradient, and none of the model's own sampling defaults."""
    was_training, own_config = model.training, model.generation_config
    model.train(False)
    model.generation_config = GenerationConfig()
    try:
        with torch.no_grad():
            yield
    finally:
        model.generation_config = own_config
        model.train(was_training)
