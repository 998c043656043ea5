"""Which engine samples: `EngineSpec`, and the engine it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.adapters import has_adapters
from lightning_modules.rollout.engine import RolloutEngine
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.rollout.vllm import VLLMRolloutEngine, VLLMSpec, vocabulary_width
from lightning_modules.rollout.vllm_colocated import ColocatedVLLM
from lightning_modules.rollout.vllm_server import VLLMServer, server_max_length


@dataclass(frozen=True)
class EngineSpec:
    """Which engine samples the rollouts and the answers of evaluations."""

    kind: Literal["hf", "vllm"] = "hf"
    """``hf``: transformers' generate on the student itself; ``vllm``: vLLM, with weights that are kept in sync."""
    vllm: VLLMSpec = VLLMSpec()
    """How vLLM runs, for ``kind: vllm``."""

    def __post_init__(self) -> None:
        """Refuse settings that would be ignored.

        Raises:
            ValueError: if vLLM is configured and not used.
        """
        if self.kind == "hf" and self.vllm != VLLMSpec():
            raise ValueError("engine.vllm is set and engine.kind is 'hf': set engine.kind to vllm, or leave it out.")

    def max_length(self) -> int | None:
        """Tokens of the longest prompt with its completion that vLLM reads, a server being asked; None: no own limit.

        Raises:
            ConnectionError: if no server answers at its address.
        """
        limits = [self.vllm.max_model_len]
        if self.vllm.server_url is not None:
            limits.append(server_max_length(self.vllm.server_url))
        return min((limit for limit in limits if limit is not None), default=None)


def make_engine(
    spec: EngineSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> RolloutEngine:
    """The engine of `spec` for a student; vLLM starts with the first rollout.

    Args:
        spec: which engine.
        model: the student.
        tokenizer: the student's.
        batch_size: prompts per call of generate (`hf`), or requests that are worked on at once (`vllm`).
    """
    if spec.kind == "hf":
        return HFRolloutEngine(model, tokenizer, batch_size)

    def start() -> ColocatedVLLM | VLLMServer:
        width = vocabulary_width(model, tokenizer)
        if spec.vllm.server_url is not None:
            return VLLMServer(spec.vllm.server_url, width, batch_size, has_adapters(model))
        return ColocatedVLLM(model, spec.vllm, width, batch_size)

    return VLLMRolloutEngine(model, tokenizer, spec.vllm, start)
