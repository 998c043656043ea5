r"""A teacher whose layers run on a vLLM server, and whose head is here.

A distribution over the whole vocabulary for every token would be too much for a network (150,000 numbers), and vLLM
gives the likeliest ones at most, which makes of every divergence another one. What crosses it is the hidden state
before the head, a few thousand numbers, and what the objective sees is what it sees of a teacher beside the student:
hidden states (T, H) and a head. The head is the only tensor that is read from the teacher's files here.

The user starts the server, which holds fixed weights and needs nothing of this project:

    python -m vllm.entrypoints.openai.api_server --model TEACHER --runner pooling --convert embed \
        --pooler-config '{"task": "token_embed"}' --dtype bfloat16 --max-model-len 4096

One request for each micro-batch, its sequences in full: vLLM gives no hidden states for what its prefix cache holds, so
a shared context is computed once for each sequence.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from lightning_modules.models import LoadErrors, ModelSpec, model_location
from lightning_modules.packing import ViewBatch
from lightning_modules.vllm_http import VLLMClient

PLAIN_HEADS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Types of model whose logits are head(hidden states) and nothing else; it can't be tried out without the layers."""


class ServedTeacher:
    """Hidden states from a server, and the head that belongs to them."""

    def __init__(self, url: str, spec: ModelSpec) -> None:
        """Connect, and read the head.

        Args:
            url: address of the vLLM server.
            spec: the model that it runs.

        Raises:
            ConnectionError: if no server answers there.
            RuntimeError: if it gives no hidden states of tokens, or those of another model.
            OSError: if the model's config or head can't be found.
            ValueError: if its head can't be read alone, or more follows after it.
        """
        self.spec, self.dtype = spec, getattr(torch, spec.dtype)
        self.config = _config_of(spec)
        self.head = _head_of(spec, self.config)
        self._client = VLLMClient(url, "teacher.server_url")
        card = self._client.get("/v1/models")["data"][0]
        self.name, self.max_model_len = card["id"], int(card["max_model_len"])
        norms = self._states([[0, 1, 2]]).float().norm(dim=-1)
        if torch.allclose(norms, torch.ones(3), atol=1e-2):  # a version that ignores `use_activation`
            raise RuntimeError(f"The vLLM server at {self._client.url} scales hidden states to length 1.")

    def completion_hidden_states(self, batch: ViewBatch) -> Tensor:
        """What `packing.completion_hidden_states` gives, (T, H), in main memory."""
        prefix, rows = batch.prefix_ids.tolist(), batch.suffix_ids.tolist()
        # The last token predicts nothing that is asked for.
        sequences = [[*prefix, *row[: length - 1]] for row, length in zip(rows, batch.lengths, strict=True)]
        starts = torch.tensor([0, *map(len, sequences[:-1])]).cumsum(0)
        return self._states(sequences)[starts[batch.rows.cpu()] + len(prefix) + batch.columns.cpu()]

    def _states(self, sequences: list[list[int]]) -> Tensor:
        """Hidden states of all tokens, one sequence after the other, (sum of lengths, H)."""
        body = {
            "model": self.name,
            "task": "token_embed",
            "input": sequences,
            "use_activation": False,  # else every state is scaled to length 1
            "encoding_format": "bytes_only",
            "embed_dtype": self.spec.dtype,
            "endianness": "little",
        }
        try:
            content = self._client.post("/pooling", body)
        except RuntimeError as error:
            raise RuntimeError(
                f"The vLLM server at {self._client.url} gives no hidden states ({error}). Start it with --runner "
                'pooling --convert embed --pooler-config \'{"task": "token_embed"}\' (docs/scale.md).'
            ) from error
        if not isinstance(content, bytes):
            raise RuntimeError(
                f"The vLLM server at {self._client.url} answers without hidden states in bytes; vLLM 0.32 does."
            )
        states = torch.frombuffer(bytearray(content), dtype=self.dtype)
        num_tokens, hidden = sum(map(len, sequences)), self.config.get_text_config().hidden_size
        if states.numel() != num_tokens * hidden:
            raise RuntimeError(
                f"The vLLM server at {self._client.url} gave {states.numel()} numbers for {num_tokens} tokens of "
                f"{hidden}: it runs {self.name!r}, which is not the model of teacher.model.name, {self.spec.name!r}."
            )
        return states.view(num_tokens, hidden)


def _config_of(spec: ModelSpec) -> PreTrainedConfig:
    if spec.gguf_file is not None:
        raise ValueError(
            "teacher.server_url is set and teacher.model.gguf_file too: a head alone is read from safetensors only. "
            "Name the folder or hub name of the same model in safetensors."
        )
    with LoadErrors(spec, "config"):
        config = AutoConfig.from_pretrained(
            model_location(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    if config.model_type not in PLAIN_HEADS:
        raise ValueError(
            f"teacher.server_url is set, and teacher.model is of type {config.model_type!r}; types that are known to "
            f"end in a plain head: {', '.join(PLAIN_HEADS)}."
        )
    return config


def _head_of(spec: ModelSpec, config: PreTrainedConfig) -> nn.Linear:
    """The head as a frozen layer, from the one file that holds it."""
    tied = config.get_text_config().tie_word_embeddings
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    with LoadErrors(spec, "head"), safe_open(_file_with(name, spec), framework="pt") as file:
        if name not in file.keys():  # noqa: SIM118  # not a dict
            raise OSError(f"its safetensors hold no tensor {name!r}")
        weight = file.get_tensor(name).to(getattr(torch, spec.dtype))
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight, requires_grad=False)
    return head


def _file_with(tensor: str, spec: ModelSpec) -> Path:
    """The safetensors file that has a tensor; of a model in many files on the hub only that one is fetched."""

    def fetch(name: str) -> Path:
        return Path(str(cached_file(model_location(spec), name, revision=spec.revision)))

    try:
        index = json.loads(fetch(SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
    except OSError:  # a model in one file has no index; whatever else is wrong, the next line meets it again
        return fetch(SAFE_WEIGHTS_NAME)
    return fetch(index["weight_map"].get(tensor, SAFE_WEIGHTS_NAME))
