"""The student's weights on their way to another engine: named, cut to the vocabulary, in buckets.

Nothing is written to a disk, and no copy of the model is made: a bucket holds the student's own tensors.

LoRA adapters travel as their factors (`adapter_tensors`), never merged into the base. The base is sent when the engine
does not hold it yet, which `base_state` tells: it stays bit for bit what it was, however often adapters follow.

Tied embeddings are sent under both names. vLLM on a CPU repacks its head after loading, and a head that is not sent
silently keeps its old weights.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.adapters import adapter_layers, base_parameters, factors

BUCKET_BYTES = 64 * 2**20
"""Size of a bucket; a larger tensor travels alone."""

PROCESS = uuid.uuid4().hex
"""Of this process, which a server tells from others by it."""

NamedTensor = tuple[str, Tensor]


def weight_buckets(
    model: PreTrainedModel, vocab_size: int, max_bytes: int = BUCKET_BYTES
) -> Iterator[list[NamedTensor]]:
    """The model's parameters by their transformers names, in order, without gradient; adapters are left out.

    Args:
        model: the student.
        vocab_size: rows kept of the embeddings and of the head; what lies behind is padding and no token.
        max_bytes: size of a bucket.

    Yields:
        Buckets of the parameters themselves.
    """
    vocabulary = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    bucket: list[NamedTensor] = []
    size = 0
    for name, parameter in base_parameters(model, remove_duplicate=False):
        is_vocabulary = any(parameter is other for other in vocabulary)
        tensor = parameter.detach()[:vocab_size] if is_vocabulary else parameter.detach()
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    yield bucket


def adapter_tensors(model: PreTrainedModel, vocab_size: int) -> list[NamedTensor]:
    """The factors of all adapters by the names of peft's files, the student's own tensors; `vocab_size` as above."""
    head = model.get_output_embeddings()
    tensors: list[NamedTensor] = []
    for name, layer in adapter_layers(model).items():
        down, up = factors(layer)
        up = up[:vocab_size] if layer is head else up
        tensors += [(f"base_model.model.{name}.lora_A.weight", down), (f"base_model.model.{name}.lora_B.weight", up)]
    return tensors


def base_state(model: PreTrainedModel) -> str:
    """Changes with every write to a parameter that is no adapter's, and differs between models and processes."""
    writes = sum(parameter._version for _, parameter in base_parameters(model))
    return f"{PROCESS}-{id(model)}-{writes}"
