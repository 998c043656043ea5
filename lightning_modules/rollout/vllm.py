"""Sampling with vLLM: paged and batched generation with a prefix cache, and weights of its own that are kept in sync.

``colocate``  vLLM runs in the trainer's process, on its device. It starts with the first rollout, from the student's
              config alone; the weights come from the student, without a disk.
``server``    a separate vLLM process that the user starts (`vllm_server`).

Several trainer processes (DDP, ZeRO) have a vLLM each in mode ``colocate``. Of a server rank zero replaces the weights
when all ranks are done with the old ones; each rank sends its own requests.

`current_weights` is entered by all ranks together, for a whole rollout or evaluation, however many items each has; in a
block inside another one nothing happens. It sends the student's weights and resets the prefix cache, whose keys and
values belong to the old ones. Of a student with LoRA it sends the adapters; vLLM runs them beside the base, which is
sent once. The first completions afterwards are checked against the trainer (`sync_check`).

Every request has a seed of its own, made of the call's seed and its position, so that a completion does not depend on
how vLLM batches. The same seed draws other samples than with transformers. On a CPU the model runs eagerly: compiling
takes minutes. This file and the others of its name are all that samples with vLLM (`served_teacher` scores with one);
the package is imported when the engine starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.rollout.engine import Completion, SamplingSpec
from lightning_modules.rollout.hf import find_end_token_ids, own_random_state
from lightning_modules.rollout.sync_check import check_gap, mean_gap, trainer_dtype


@dataclass(frozen=True)
class VLLMSpec:
    """How vLLM runs."""

    mode: Literal["colocate", "server"] = "colocate"
    """``colocate``: in the trainer's process, on its device; ``server``: a vLLM server that you started."""
    server_url: str | None = None
    """Address of the server, such as http://localhost:8000; for ``server`` only."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type vLLM computes in; auto: that of the student's parameters. Under bf16-mixed set bfloat16."""
    max_model_len: int | None = None
    """Longest prompt with its completion, in tokens; None: what the model can read. Smaller values save KV cache."""
    tensor_parallel_size: int = 1
    """GPUs that share one copy of the model, in mode ``colocate``; a server has an option of that name."""
    gpu_memory_utilization: float = 0.3
    """Share of a GPU's memory for vLLM's weights and KV cache, beside the trainer; not used on a CPU."""
    kv_cache_gib: float | None = None
    """Size of the KV cache in GiB; None: by gpu_memory_utilization on GPUs, 1 on a CPU."""
    enforce_eager: bool | None = None
    """Run the model without compiling it and without CUDA graphs; None: on a CPU only."""
    sleep: bool = True
    """Give vLLM's GPU memory back between rollouts. A CPU has no sleep mode, and nothing is done there."""
    num_checked: int = 8
    """Completions of the sync check after every sync, scored by the trainer."""
    max_logprob_gap: float | None = None
    """Largest mean gap in nats that the sync check accepts; None: by data type, 2e-4 in float32, 0.1 in bfloat16."""

    def __post_init__(self) -> None:
        """Check the ranges, and that the fields fit together.

        Raises:
            ValueError: naming the field, its value and what is accepted.
        """
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError(
                f"engine.vllm.mode is {self.mode!r} and engine.vllm.server_url is {self.server_url!r}: the address "
                "must be set for mode 'server', and only for it."
            )
        for name in ("tensor_parallel_size", "num_checked", "max_model_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"engine.vllm.{name} is {value}; it must be at least 1.")
        for name in ("gpu_memory_utilization", "kv_cache_gib", "max_logprob_gap"):
            value = getattr(self, name)
            if value is not None and value <= 0.0:
                raise ValueError(f"engine.vllm.{name} is {value}; it must be positive.")
        if self.gpu_memory_utilization > 1.0:
            raise ValueError(
                f"engine.vllm.gpu_memory_utilization is {self.gpu_memory_utilization}; it must be in (0, 1]."
            )
        if self.mode == "server" and self.tensor_parallel_size > 1:
            raise ValueError("engine.vllm.tensor_parallel_size belongs to the server's own command in mode 'server'.")


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a vLLM returned for one prompt."""

    token_ids: list[int]
    logprobs: list[float]
    """Of each token, at temperature 1."""
    finish_reason: str | None
    """``stop``: an end token; ``length``: cut off."""


class Backend(Protocol):
    """A running vLLM, here or elsewhere."""

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingSpec, seeds: Sequence[int], end_ids: Sequence[int]
    ) -> list[Sampled]:
        """One completion for each prompt, in order, each with its own seed."""
        ...

    def load(self, model: PreTrainedModel) -> None:
        """Take the model's weights and forget the prefixes of the old ones."""
        ...

    def sleep(self) -> None:
        """Give memory back until the next `load`."""
        ...

    def close(self) -> None:
        """End it, if it was started here."""
        ...


class VLLMRolloutEngine:
    """Implements `RolloutEngine`.

    Args:
        model: the student.
        tokenizer: for decoding and the width of the vocabulary.
        spec: how vLLM runs.
        start: starts vLLM, or connects to one; called at the first sync.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: VLLMSpec,
        start: Callable[[], Backend],
    ) -> None:
        self.model, self.tokenizer, self.spec = model, tokenizer, spec
        self.end_token_ids = find_end_token_ids(model, tokenizer)
        self.vocab_size = vocabulary_width(model, tokenizer)
        self.logprob_gap: float | None = None
        self._start = start
        self._backend: Backend | None = None
        self._is_current = False

    @contextmanager
    def current_weights(self) -> Iterator[None]:
        """Start vLLM if need be, send the student's weights, and let vLLM sleep afterwards; see the module's docstring.

        Raises:
            ImportError: if vLLM is not installed; the message says how to install it.
            RuntimeError: on all other ranks, if rank zero could not send them to their server.
        """
        if self._is_current:
            yield
            return
        with own_random_state(0, self.model.device):  # starting vLLM seeds the process
            if self._backend is None:
                self._backend = self._start()
            backend = self._backend
            if self.spec.mode == "server" and num_ranks() > 1:
                _on_rank_zero(lambda: backend.load(self.model))
            else:
                backend.load(self.model)
        self.logprob_gap, self._is_current = None, True
        try:
            yield
        finally:
            self._is_current = False
            backend.sleep()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingSpec, seed: int) -> list[Completion]:
        """See `RolloutEngine.generate`; inside `current_weights` only.

        Raises:
            StaleWeightsError: if the first completions after a sync show that vLLM has other weights.
        """
        assert self._backend is not None
        assert self._is_current, "generate is called inside current_weights"
        seeds = [int(state) for state in np.random.SeedSequence(seed).generate_state(len(prompts))]
        with own_random_state(seed, self.model.device):
            sampled = self._backend.sample(prompts, sampling, seeds, self.end_token_ids)
        completions = [self._completion(one) for one in sampled]
        if self.logprob_gap is None:
            self._check(prompts, completions)
        return completions

    def close(self) -> None:
        """End vLLM; the next `current_weights` starts it again.

        With several ranks it ends with the process only: it would take the trainer's process group with it.
        """
        if self._backend is not None and num_ranks() == 1:
            self._backend.close()
            self._backend = None

    def _check(self, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> None:
        count = self.spec.num_checked
        self.logprob_gap = mean_gap(self.model, prompts[:count], completions[:count], self.vocab_size)
        dtypes = [engine_dtype(self.spec, self.model), trainer_dtype(self.model)]
        check_gap(self.logprob_gap, dtypes, self.spec.max_logprob_gap)

    def _completion(self, sampled: Sampled) -> Completion:
        if sampled.finish_reason not in ("stop", "length") or not sampled.token_ids:
            raise RuntimeError(
                f"vLLM ended a completion of {len(sampled.token_ids)} tokens with {sampled.finish_reason!r}."
            )
        text = self.tokenizer.decode(sampled.token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(sampled.token_ids, text, sampled.finish_reason == "stop", sampled.logprobs)


def num_ranks() -> int:
    """Trainer processes."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _on_rank_zero(act: Callable[[], None]) -> None:
    """Act on rank zero when all ranks are here; they go on when it is done, or fail with it."""
    torch.distributed.barrier()
    failure: Exception | None = None
    if torch.distributed.get_rank() == 0:
        try:
            act()
        except Exception as error:  # handed on below
            failure = error
    reason = [None if failure is None else f"{type(failure).__name__}: {failure}"]
    torch.distributed.broadcast_object_list(reason, src=0)
    if failure is not None:
        raise failure
    if reason[0] is not None:
        raise RuntimeError(f"Rank zero could not send the student's weights to vLLM. {reason[0]}")


def vocabulary_width(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the embeddings that are tokens."""
    return min(len(tokenizer), model.config.get_text_config().vocab_size)


def engine_dtype(spec: VLLMSpec, model: PreTrainedModel) -> torch.dtype:
    """What vLLM computes in."""
    dtype: torch.dtype = model.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    return dtype
