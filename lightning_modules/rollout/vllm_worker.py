"""What runs inside vLLM's workers: `WeightReceiver`, the other end of `weights`.

vLLM mixes the class into its worker (``worker_extension_cls``) and calls the methods by name (``collective_rpc``). It
is the same for the engine in the trainer's process and for a server of its own, on CPUs and GPUs, with any
tensor_parallel_size: each worker takes its shard of every tensor, as it does when it loads a checkpoint.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

ADAPTER_ID, ADAPTER_NAME = 1, "student"
"""By which vLLM's requests name the student's LoRA adapters."""

QUALIFIED_NAME = "lightning_modules.rollout.vllm_worker.WeightReceiver"


class WeightReceiver:
    """Takes new weights bucket by bucket; methods beside those of vLLM's worker."""

    def begin_new_weights(self) -> int:
        """Undo what was done to the weights after loading (a CPU repacks them), so that they can be loaded again.

        Returns:
            The number of rows that the embeddings take.
        """
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        worker: Any = self
        initialize_layerwise_reload(self._receiving_model())
        return int(worker.model_config.hf_text_config.vocab_size)

    def load_new_weights(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Load one bucket by its transformers names."""
        from vllm.config import set_current_vllm_config

        worker: Any = self
        with set_current_vllm_config(worker.vllm_config):
            self._receiving_model().load_weights(iter(tensors))

    def load_encoded_weights(self, encoded: str) -> None:
        """Load one bucket that came over HTTP: safetensors in base64, because vLLM's endpoint takes strings alone."""
        self.load_new_weights(list(safetensors.torch.load(base64.b64decode(encoded)).items()))

    def finish_new_weights(self, base: str = "") -> None:
        """Prepare the loaded weights for use, and remember whose they are (`held_base`)."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        worker: Any = self
        with set_current_vllm_config(worker.vllm_config):
            finalize_layerwise_reload(self._receiving_model(), worker.model_config)
        worker.held_base_of_trainer = base

    def held_base(self) -> str:
        """What the last `finish_new_weights` was told."""
        return str(getattr(self, "held_base_of_trainer", ""))

    def load_adapter(self, tensors: Sequence[tuple[str, Tensor]], r: int, alpha: float) -> None:
        """Put adapters in the place of those before, under `ADAPTER_ID`. Requests that name it find them there.

        Raises:
            RuntimeError: if vLLM was started without room for adapters, or for narrower ones.
        """
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        worker: Any = self
        manager = getattr(worker.model_runner, "lora_manager", None)
        if manager is None:
            raise RuntimeError("vLLM was started without --enable-lora")
        if r > manager.lora_config.max_lora_rank:
            raise RuntimeError(f"the adapters' rank is {r}, vLLM's --max-lora-rank {manager.lora_config.max_lora_rank}")
        mapper = getattr(self._receiving_model(), "hf_to_vllm_mapper", None)
        adapter = LoRAModel.from_lora_tensors(
            ADAPTER_ID,
            {name: tensor.clone() for name, tensor in tensors},  # vLLM multiplies the scaling into them, in place
            PEFTHelper(r=r, lora_alpha=alpha, target_modules=[]),  # type: ignore[arg-type]  # typed int, as in peft
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            model_vocab_size=manager.vocab_size,
            weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
        )
        manager.remove_adapter(ADAPTER_ID)
        manager._adapter_manager.add_adapter(adapter)

    def load_encoded_adapter(self, encoded: str, r: str, alpha: str) -> None:
        """`load_adapter` over HTTP, see `load_encoded_weights`."""
        self.load_adapter(list(safetensors.torch.load(base64.b64decode(encoded)).items()), int(r), float(alpha))

    def _receiving_model(self) -> Any:
        worker: Any = self
        return worker.model_runner.get_model()


def encode(tensors: Sequence[tuple[str, Tensor]]) -> str:
    """The argument of `WeightReceiver.load_encoded_weights`."""
    # Tied embeddings are one tensor under two names, which safetensors refuses to write: copies are not one any more.
    copies = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors}
    return base64.b64encode(safetensors.torch.save(copies)).decode()
