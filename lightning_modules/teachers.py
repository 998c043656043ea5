"""The teacher: who scores the student's answers with the context in view.

frozen  a copy of the initial student (self-distillation). The default: OPCD (arXiv:2602.12275) measured a live
        self-teacher collapsing (Sokoban 18.8 against 53.9). Of a student with LoRA it is the base, over the student's
        own tensors (`adapters.shared_copy`).
model   another model of the same tokenizer, frozen.
ema     a moving average of the student, updated after every optimizer step. With LoRA the factors A and B are averaged,
        each by itself (their product is then not the average of the products), beside the student's own base.
live    the student itself, adapters included, with the context and without gradient.

A teacher too large to stand beside the student may have its layers on another device (`TeacherSpec.device`), or on a
vLLM server (`TeacherSpec.server_url`). What comes back are its hidden states, (T, H) a micro-batch; its head stays
beside the student, where the objective is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.models import (
    ModelSpec,
    check_plain_head,
    check_same_tokenizer,
    freeze,
    frozen_copy,
    load_model,
    load_tokenizer,
)
from lightning_modules.served_teacher import ServedTeacher


@dataclass(frozen=True)
class TeacherSpec:
    """Which teacher."""

    kind: Literal["frozen", "model", "ema", "live"] = "frozen"
    """``frozen``: copy of the initial student; ``model``: another one; ``ema``: moving average; ``live``: no copy."""
    model: ModelSpec | None = None
    """The other model, for ``kind: model`` only."""
    update_rate: float = 0.01
    """Share of the student mixed into an ``ema`` teacher after each optimizer step, between 0 and 1."""
    device: str | None = None
    """Where the layers of a ``frozen`` teacher or another ``model`` are, such as cuda:1 or cpu; None: beside the
    student. With several ranks on a node, rank r takes the r-th GPU from there on."""
    server_url: str | None = None
    """Address of a vLLM server that you started and that runs the layers of another ``model``, such as
    http://localhost:8001 (`served_teacher`); None: they run here."""

    def __post_init__(self) -> None:
        """Check that the fields fit together.

        Raises:
            ValueError: naming the field.
        """
        if (self.kind == "model") != (self.model is not None):
            raise ValueError(
                f"teacher.kind is {self.kind!r}: teacher.model must be set for kind 'model', and only for it."
            )
        if not 0.0 < self.update_rate <= 1.0:
            raise ValueError(f"teacher.update_rate is {self.update_rate}; it must be in (0, 1].")
        if self.device is not None:
            if self.kind not in ("frozen", "model"):
                raise ValueError(
                    f"teacher.device is {self.device!r} and teacher.kind {self.kind!r}, which follows the student; "
                    "leave it out, or use kind 'frozen' or 'model'."
                )
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"teacher.device is {self.device!r}, which names no device: cpu, cuda:1, ..."
                ) from error
        if self.server_url is not None and (self.kind != "model" or self.device is not None):
            raise ValueError(
                f"teacher.server_url is {self.server_url!r}: that is for kind 'model' (here {self.kind!r}) and without "
                f"teacher.device (here {self.device!r})."
            )
        if self.model is not None and self.model.lora is not None:
            raise ValueError(
                "teacher.model.lora is set; a teacher is not trained. For one that was trained with adapters name a "
                "folder with its merged weights (python -m cli export --merged true)."
            )


class Teacher(nn.Module):
    """Holds the teacher's weights (none of its own for ``live``)."""

    def __init__(
        self,
        spec: TeacherSpec,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        load_again: Callable[[], PreTrainedModel] | None = None,
        local_rank: int = 0,
    ) -> None:
        """Build the teacher of `spec` beside `student`.

        Args:
            spec: which teacher.
            student: the initial student.
            tokenizer: of the student.
            load_again: makes a second initial student, where the first can't be copied or need not; None: copy it.
            local_rank: of this process on its node, for a teacher on another device.

        Raises:
            ValueError: if another model's tokenizer is not the student's, or its device is not there.
            ConnectionError: if no server answers at its address.
        """
        super().__init__()
        self.spec = spec
        self.model: PreTrainedModel | None = None
        self.served: ServedTeacher | None = None
        if spec.kind == "frozen":
            self.model = frozen_copy(student) if load_again is None else freeze(load_again())
        elif spec.kind == "ema":
            # float32 whatever the student's type: in bf16 a small update_rate would be rounded away.
            self.model = frozen_copy(student, torch.float32)
        elif spec.model is not None:
            check_same_tokenizer(tokenizer, load_tokenizer(spec.model), spec.model.name)
            if spec.server_url is not None:
                self.served = ServedTeacher(spec.server_url, spec.model)
            else:
                self.model = _other_model(spec.model)
        self._elsewhere: tuple[PreTrainedModel] | None = None  # in a tuple: no submodule, so that no trainer moves it
        self._head: nn.Module | None = None if self.served is None else self.served.head
        if spec.device is not None:
            assert self.model is not None
            self._head = copy.deepcopy(self.model.get_output_embeddings())
            self._elsewhere, self.model = (_moved(self.model, spec.device, local_rank),), None
        if not self.has_state:
            self.register_state_dict_post_hook(_leave_out)

    @property
    def moves(self) -> bool:
        """Whether its weights change during the run: nothing computed with it may then be kept between steps."""
        return self.spec.kind in ("ema", "live")

    @property
    def has_state(self) -> bool:
        """Whether its weights are in state dicts: only a moving average can't be rebuilt from the config."""
        return self.spec.kind == "ema"

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode whatever the trainer asks: a teacher has no dropout."""
        return super().train(False)

    def config(self, student: PreTrainedModel) -> PreTrainedConfig:
        """Of the model that scores, wherever it runs."""
        return self.network(student).config if self.served is None else self.served.config

    def max_length(self, student: PreTrainedModel) -> int:
        """Tokens of the longest sequence that it can read."""
        positions: int = self.config(student).get_text_config().max_position_embeddings
        return positions if self.served is None else min(positions, self.served.max_model_len)

    def network(self, student: PreTrainedModel) -> PreTrainedModel:
        """The model that scores; call it without gradient.

        Raises:
            ValueError: if its layers are on a server.
        """
        if self.served is not None:
            raise ValueError(
                "teacher.server_url is set: such a teacher gives hidden states for a given text and does not sample. "
                "Leave rollouts.sampler at 'student', or let the teacher run here."
            )
        if self._elsewhere is not None:
            return self._elsewhere[0]
        return student if self.model is None else self.model

    def head(self, student: PreTrainedModel) -> nn.Module:
        """Its head, on the student's device."""
        return self.network(student).get_output_embeddings() if self._head is None else self._head

    def update(self, student: PreTrainedModel) -> None:
        """Follow the student after an optimizer step (``ema`` only)."""
        if self.spec.kind == "ema":
            assert self.model is not None
            update_average(self.model, student, self.spec.update_rate)


def _other_model(spec: ModelSpec) -> PreTrainedModel:
    model = load_model(spec)
    check_plain_head(model, spec.name)
    return freeze(model)


def _moved(model: PreTrainedModel, name: str, local_rank: int) -> PreTrainedModel:
    device = torch.device(name)
    if device.index is not None:
        device = torch.device(device.type, device.index + local_rank)
    try:
        moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]  # transformers' stub knows no torch.device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"teacher.device is {name!r}; the teacher can't be put on {device} ({error}).") from error
    return moved


def _leave_out(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Take the module's tensors out of a state dict, whoever asks for it: Lightning, or DeepSpeed's engine."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


@torch.no_grad()
def update_average(average: nn.Module, student: nn.Module, rate: float) -> None:
    """Average <- average + rate * (student - average), parameter by parameter, in place; shared ones are left alone."""
    for ours, theirs in zip(average.parameters(), student.parameters(), strict=True):
        if ours is not theirs:
            ours.lerp_(theirs.to(ours.dtype), rate)
