"""Which teachers, anchors and adapters can be used together, and with which ZeRO stage; each refusal has its reason."""

from __future__ import annotations

from transformers import PreTrainedModel

from lightning_modules.adapters import adapter_layers
from lightning_modules.models import ModelSpec
from lightning_modules.objective.consistency import AnchorSource
from lightning_modules.teachers import TeacherSpec


def check_stage(stage: int, teacher: TeacherSpec, student: ModelSpec, anchor: AnchorSource | None) -> None:
    """Refuse what would train wrongly or not at all.

    Args:
        stage: of ZeRO; 0: another strategy.
        teacher: the run's.
        student: the run's.
        anchor: a separate anchor's source.

    Raises:
        ValueError: saying what to use in its place.
    """
    if stage and (teacher.kind == "ema" or anchor == "ema"):
        raise ValueError(
            "teacher.kind ema and consistency ema_anchor can't be used with ZeROStrategy: DeepSpeed would cast the "
            "moving average to the student's data type and leave it out of checkpoints. Use strategy ddp."
        )
    if teacher.device is not None and stage == 3:
        raise ValueError(
            f"teacher.device is {teacher.device!r}, but at ZeRO stage 3 the teacher is spread over the ranks. Leave it "
            "out, or use configs/strategy/zero2.yaml."
        )
    if teacher.device is not None and teacher.kind == "frozen" and student.lora is not None:
        raise ValueError(
            f"teacher.device is {teacher.device!r}, but the frozen teacher of a student with model.student.lora is the "
            "student's own base and takes no memory. Leave it out."
        )


def check_head(stage: int, student: PreTrainedModel) -> None:
    """Refuse an adapted head at ZeRO stage 3: its parts would be gathered in each chunk, and ranks differ in those.

    Raises:
        ValueError: saying what to use in its place.
    """
    head = student.get_output_embeddings()
    if stage == 3 and any(layer is head for layer in adapter_layers(student).values()):
        raise ValueError(
            "lora.target_modules adapts the head, which can't be done at ZeRO stage 3. Leave it out (all-linear does), "
            "or use configs/strategy/zero2.yaml."
        )
