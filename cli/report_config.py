"""What a run's config.yaml says of its setting (data, context, model), its method and its seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

UNKNOWN = "unknown"
UNTRAINED = "untrained"
"""`RunConfig.method` of the student as it came."""

# What varies between seeds or machines without making another method: never told apart by it.
NOT_A_CHOICE = ("seed", "num_workers", "eval_batch_size", "max_tokens_per_micro_batch", "rollout_batch_size")

# What the answers of an untrained model depend on.
WITHOUT_TRAINING = ("data.", "model.student.", "model.views.", "model.evaluation.")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The parts of a config.yaml that a report groups runs by; None or 0 for what it does not say."""

    consistency: str | None = None
    consistency_coef: float | None = None
    consistency_delay_steps: int = 0
    consistency_warmup_steps: int = 0
    sampler: str | None = None
    """``teacher`` where the teacher samples what is trained on; None: not said, and so the student."""
    context_share: float = 0.0
    back_off: float | None = None
    """Threshold in nats per token of a run that `python -m cli back_off` made; None: of any other."""
    untrained: bool = False
    """A fit of no steps, or `python -m cli evaluate` on the config's own student: prompting, with the context."""
    distillation: str | None = None
    beta: float | None = None
    data: str | None = None
    """Class of the data module without its package, and the game where it is one."""
    context: str | None = None
    student: str | None = None
    teacher: str | None = None
    """Name of a teacher that is another model, or how it moves; None for a frozen copy of the student."""
    seed: int | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    """Every other setting of model, data and training length, flattened: dotted name to value."""

    @property
    def setting(self) -> str:
        """Data, context and model, in words."""
        if self.data is None and self.context is None and self.student is None:
            return "setting unknown"
        parts = [self.data or "data unknown", self.context or "no context named", self.student or "model unknown"]
        return " / ".join([*parts, f"teacher {self.teacher}"] if self.teacher else parts)

    @property
    def baseline(self) -> str | None:
        """Name of a method that samples otherwise than on-policy distillation (`lightning_modules.rollout.sources`)."""
        if self.sampler == "teacher" and self.distillation == "cross_entropy":
            return "sft"
        if self.sampler == "teacher":
            return "off_policy_cd" if self.beta == 0.0 else f"off_policy_cd beta {self.beta}"
        return f"context_dropout {self.context_share:g}" if self.context_share else None

    @property
    def method(self) -> str:
        """Who samples, where it is not the student without the context, the consistency term and any back-off."""
        if self.consistency is None and not self.untrained:
            return UNKNOWN
        trained = UNTRAINED if self.untrained else self._trained
        return trained if self.back_off is None else f"{trained} + back_off {self.back_off:g}"

    @property
    def _trained(self) -> str:
        if self.baseline is None:
            return self._term
        return self.baseline if self.consistency == "none" else f"{self.baseline} + {self._term}"

    @property
    def _term(self) -> str:
        """The consistency term, its coefficient and its warm-up."""
        if self.consistency is None or self.consistency == "none" or self.consistency_coef is None:
            return self.consistency or UNKNOWN
        words = f"{self.consistency} x {self.consistency_coef:g}"
        if self.consistency_delay_steps or self.consistency_warmup_steps:
            words += f", from step {self.consistency_delay_steps}, full at "
            words += str(self.consistency_delay_steps + self.consistency_warmup_steps)
        return words


def read_config(path: Path) -> RunConfig:
    """Read config.yaml; a missing or foreign file gives an empty `RunConfig`, for the evaluations do not need it."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return RunConfig()
    if not isinstance(config, dict):
        return RunConfig()
    model, data = _arguments(config.get("model")), _arguments(config.get("data"))
    rollouts, trainer = _mapping(model.get("rollouts")), _mapping(config.get("trainer"))
    untrained = config.get("untrained") is True or _whole(trainer.get("max_steps")) == 0
    return RunConfig(
        consistency=_text(model.get("consistency")),
        consistency_coef=_number(model.get("consistency_coef")),
        consistency_delay_steps=_whole(model.get("consistency_delay_steps")) or 0,
        consistency_warmup_steps=_whole(model.get("consistency_warmup_steps")) or 0,
        sampler=_text(rollouts.get("sampler")),
        context_share=_number(rollouts.get("context_share")) or 0.0,
        back_off=_number(_mapping(config.get("back_off")).get("threshold")),
        untrained=untrained,
        distillation=_text(model.get("distillation")),
        beta=_number(model.get("beta")),
        data=_data_name(config.get("data"), data),
        context=_text(data.get("context")),
        student=_text(_mapping(model.get("student")).get("name")),
        teacher=_teacher_name(_mapping(model.get("teacher"))),
        seed=_first(_whole(model.get("seed")), _whole(config.get("seed_everything"))),
        choices={
            name: value
            for name, value in _choices(model, data, trainer).items()
            if not untrained or name.startswith(WITHOUT_TRAINING)
        },
    )


def differing_choices(configs: list[RunConfig]) -> list[str]:
    """Names of the choices that are not the same in all of `configs`; with untrained ones, of those that all have."""
    names = sorted({name for config in configs for name in config.choices})
    if any(config.untrained for config in configs):
        names = [name for name in names if all(name in config.choices for config in configs)]
    # A null is what no line says: the config of an older version lacks the settings that came later.
    return [name for name in names if len({config.choices.get(name, "None") for config in configs}) > 1]


def _choices(model: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, str]:
    named = [
        *("consistency", "consistency_coef", "consistency_delay_steps", "consistency_warmup_steps", "student.name"),
        *("rollouts.sampler", "rollouts.context_share", "distillation"),
    ]
    if _mapping(model.get("rollouts")).get("sampler") == "teacher":
        named.append("beta")  # the method's name has it
    length = {name: trainer.get(name) for name in ("max_steps", "precision")}
    flat = _flatten({"model": model, "data": data, "trainer": length}, "")
    left_out = {f"model.{name}" for name in named} | {"data.context"}
    return {
        name: str(value)
        for name, value in flat.items()
        if name not in left_out and name.rsplit(".", 1)[-1] not in NOT_A_CHOICE
    }


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _data_name(section: object, arguments: Mapping[str, Any]) -> str | None:
    class_path = _text(_mapping(section).get("class_path"))
    if class_path is None:
        return None
    name = class_path.rsplit(".", 1)[-1].removesuffix("DataModule")
    game = _text(arguments.get("env_id"))
    return f"{name} {game}" if game else name


def _teacher_name(teacher: Mapping[str, Any]) -> str | None:
    kind = _text(teacher.get("kind"))
    if kind == "model":
        return _text(_mapping(teacher.get("model")).get("name")) or UNKNOWN
    return None if kind in (None, "frozen") else kind


def _arguments(section: object) -> Mapping[str, Any]:
    """The arguments of a section that may name its class."""
    values = _mapping(section)
    return _mapping(values["init_args"]) if "init_args" in values else values


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
