"""LoRA (arXiv:2106.09685): a small trained update beside every frozen linear layer.

    y = W x + alpha / r * B A x,      A (r, inputs) random, B (outputs, r) zero at the start

made by peft. The student stays the model that it was, with peft's layers in the place of linear ones. It is never
merged while it trains: merging and unmerging for every rollout rounds, and the base drifts.

The base, W without the update, is who the student was before the first step: the frozen teacher, the W0 of
`WeightChanges`, and what answers are compared with. `shared_copy` makes it a model of its own over the student's own
tensors. So there is no second model in memory, nothing is switched on or off between two passes, and its scores are
those of the untouched model bit for bit, whatever mode the student is in.

Under ZeRO-3 too: DeepSpeed gathers a parameter for whichever module is about to run, and keeps it until the last of
those that are running it has ended. Two modules may so have the same one, as tied embeddings do. The adapters
themselves are built whole, equal on all ranks, and spread when DeepSpeed's engine is made.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ADAPTER = "default"
"""Name by which peft knows the adapter."""

FINGERPRINT_VALUES = 256
"""Values of each tensor that `fingerprint` reads: 0.3 s with SmolLM2-135M, and little more with larger models."""


@dataclass(frozen=True)
class LoRASpec:
    """Adapters in place of full-parameter training."""

    r: int = 16
    """Rank of every update. Its parameters: r x (inputs + outputs) of each adapted layer."""
    alpha: float = 32.0
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is set to zero in training, in [0, 1)."""
    target_modules: list[str] | str = "all-linear"
    """Names of linear layers, such as [q_proj, v_proj]; a string is a regular expression over whole names, or
    ``all-linear``: every linear layer but the head."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: naming the field, its value and what is accepted.
        """
        if self.r < 1:
            raise ValueError(f"lora.r is {self.r}; it must be at least 1.")
        if self.alpha <= 0.0:
            raise ValueError(f"lora.alpha is {self.alpha}; it must be positive.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout is {self.dropout}; it must be in [0, 1).")
        if not self.target_modules:
            raise ValueError(
                "lora.target_modules is empty; name linear layers, or write all-linear. For full-parameter training "
                "leave model.student.lora out."
            )


# ---------------------------------------------------------------------------------------------------- making models


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of its own around the same parameters; what is trained, moved or cast in one is so in both."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def add_adapters(model: PreTrainedModel, spec: LoRASpec, base_name: str) -> None:
    """Freeze the model and put adapters into it, in place. A is drawn from torch's random state.

    The adapters are float32 where the model is bfloat16 or float16: an optimizer's small steps would be rounded away.

    Args:
        model: without adapters.
        spec: which ones.
        base_name: the model's name, for peft's file beside exported adapters.

    Raises:
        ImportError: if peft is not installed.
        ValueError: if target modules are not in the model, or can't be adapted.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("model.student.lora needs peft: pip install -e '.[train]', or pip install peft.") from error
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # typed int, and divided as a number
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules,
        task_type="CAUSAL_LM",
    )
    head = model.get_output_embeddings()
    try:
        model.add_adapter(config, ADAPTER)
    except ValueError as error:
        raise ValueError(f"lora.target_modules is {spec.target_modules!r}: {error}") from error
    config.base_model_name_or_path = base_name
    for name, parameter in model.named_parameters():
        if is_adapter(name) and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    _check_targets(spec, adapter_layers(model), head, base_name)


def _check_targets(spec: LoRASpec, layers: Mapping[str, Any], head: nn.Module, base_name: str) -> None:
    names = [] if isinstance(spec.target_modules, str) else spec.target_modules
    missing = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    if missing:
        raise ValueError(f"lora.target_modules names {missing}, which are no layers of {base_name!r}.")
    others = [name for name, layer in layers.items() if not isinstance(layer.base_layer, nn.Linear)]
    if others:
        raise ValueError(f"lora.target_modules names {others[:3]}; only linear layers and the head can be adapted.")
    if spec.dropout and any(layer.base_layer is head for layer in layers.values()):
        raise ValueError(
            f"lora.dropout is {spec.dropout} and the head is among lora.target_modules: the objective projects a view "
            "more than once and would draw other masks each time. Set dropout to 0, or leave the head out."
        )


# ---------------------------------------------------------------------------------------------------- taking apart


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was here."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of peft by the names of the linear layers whose places they took; empty without adapters."""
    if not has_adapters(model):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def rank_and_alpha(model: nn.Module) -> tuple[int, float]:
    """Of a model with adapters."""
    config: Any = model.peft_config
    return int(config[ADAPTER].r), float(config[ADAPTER].lora_alpha)


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """A (r, inputs) and B (outputs, r) of one of `adapter_layers`, without gradient."""
    down, up = (linears[ADAPTER].weight.detach() for linears in (layer.lora_A, layer.lora_B))
    return down, up


def delta(layer: Any) -> Tensor:
    """The update alpha / r * B A of one of `adapter_layers`, (outputs, inputs), float32."""
    down, up = factors(layer)
    return up.float() @ down.float() * float(layer.scaling[ADAPTER])


def base_parameters(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters by their names in the model without adapters, which are left out."""
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        if not is_adapter(name):
            yield name.replace(".base_layer.", "."), parameter


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


@torch.no_grad()
def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with W + alpha / r * B A in place of W, float32, in main memory; `model` is left as it is.

    Where one of head and embeddings that were tied has an adapter, they are tied no more.
    """
    deltas = {name: delta(layer) for name, layer in adapter_layers(model).items()}
    plain = shared_copy(model)
    for name, layer in adapter_layers(plain).items():
        plain.set_submodule(name, layer.base_layer)
    plain._hf_peft_config_loaded = False
    del plain.peft_config
    head, embeddings = plain.get_output_embeddings(), plain.get_input_embeddings()
    assert isinstance(head.weight, Tensor)
    head_name = next(name for name, module in plain.named_modules() if module is head)
    if head_name in deltas and head.weight is embeddings.weight:
        plain.config.tie_word_embeddings = False
        head.weight = nn.Parameter(head.weight.detach().clone())
    own: dict[int, nn.Parameter] = {}  # by the shared one, so that tied weights stay tied
    for module in plain.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = own.get(id(parameter))
                if value is None:
                    copied = parameter.detach().to("cpu", torch.float32, copy=True)
                    value = own[id(parameter)] = nn.Parameter(copied, requires_grad=False)
                module._parameters[name] = value
    for name, change in deltas.items():
        plain.get_parameter(f"{name}.weight").add_(change.cpu())
    plain.config.dtype = torch.float32
    return plain


# ----------------------------------------------------------------------------------------------------- checkpoints


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Of a base: names, shapes, types and evenly spaced values of all its parameters, as they are in `dtype` if given.

    Under ZeRO-3 inside `spread_weights.gathered`.
    """
    digest = hashlib.sha256()
    for name, parameter in base_parameters(model):
        digest.update(f"{name} {tuple(parameter.shape)} {dtype or parameter.dtype}".encode())
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // FINGERPRINT_VALUES)].to(dtype or parameter.dtype).float().cpu()
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """Which adapters on which base: kept in checkpoints, which hold no base."""

    spec: LoRASpec
    base: str
    """`fingerprint`."""
    held_in: str | None = None
    """Data type of the base where ZeRO-3 chose it by the trainer's precision; None: it is model.student.dtype."""

    @classmethod
    def of(cls, spec: LoRASpec, base: PreTrainedModel, held_in: str | None = None) -> AdapterRecord:
        """The record of adapters of `spec` on `base`, whose values are taken as they are in `held_in` if given."""
        return cls(spec, fingerprint(base, None if held_in is None else getattr(torch, held_in)), held_in)

    def to_state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    def check(self, saved: Mapping[str, Any] | None) -> None:
        """Refuse a checkpoint of other adapters or of another base.

        Raises:
            ValueError: naming what differs.
        """
        if saved is None:
            raise ValueError(
                "The checkpoint is of full-parameter training and model.student.lora is set. Leave it out, or start "
                "from the checkpoint's weights: python -m cli export, then --model.student.name FOLDER."
            )
        ours = asdict(self.spec)
        different = [f"{name} {saved['spec'][name]!r} there, {ours[name]!r} here" for name in ours]
        different = [text for text, name in zip(different, ours, strict=True) if saved["spec"][name] != ours[name]]
        if different:
            raise ValueError(f"The checkpoint's adapters differ in model.student.lora: {'; '.join(different)}.")
        if saved["base"] != self.base:
            raise ValueError(
                "The checkpoint's adapters were trained on another base: model.student names other weights now, or "
                "another revision or dtype. Adapters mean nothing beside another base; use the run's own config.yaml."
            )


def without_base(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict's adapters: those of the student, and of moving averages."""
    return {name: value for name, value in state.items() if is_adapter(name)}


def leave_base_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """`without_base` in place, as a hook, whoever asks for the state: Lightning, or DeepSpeed's engine.

    DeepSpeed itself leaves each frozen parameter out by one name, and those of a base have two or, where tied, four.
    """
    for name in [name for name in state if not is_adapter(name)]:
        del state[name]
