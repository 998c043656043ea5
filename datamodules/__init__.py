"""Data sets with a privileged context, their contexts, and the grading of completions; usable without the rest.

Names are imported on first use, so that ``import datamodules.example`` loads neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.base import ContextDataModule, Split
    from datamodules.classification import ClassificationDataModule
    from datamodules.contexts import context_names, load_context
    from datamodules.controls import Control, make_control, with_context
    from datamodules.example import Environment, Example, Grade, GradeReason, Message
    from datamodules.games import GameDataModule
    from datamodules.geography import GeographyDataModule
    from datamodules.grading import grade_choice_mention
    from datamodules.language import LanguageDataModule
    from datamodules.mathematics import MathDataModule
    from datamodules.medical import MedicalDataModule, TransferSets
    from datamodules.past_tense import PastTenseDataModule
    from datamodules.text_sources import TextSource, safety_mix

__all__ = [
    "ClassificationDataModule",
    "ContextDataModule",
    "Control",
    "Environment",
    "Example",
    "GameDataModule",
    "GeographyDataModule",
    "Grade",
    "GradeReason",
    "LanguageDataModule",
    "MathDataModule",
    "MedicalDataModule",
    "Message",
    "PastTenseDataModule",
    "Split",
    "TextSource",
    "TransferSets",
    "context_names",
    "grade_choice_mention",
    "load_context",
    "make_control",
    "safety_mix",
    "with_context",
]

_MODULE_OF = {
    "ClassificationDataModule": "classification",
    "ContextDataModule": "base",
    "Control": "controls",
    "Environment": "example",
    "Example": "example",
    "GameDataModule": "games",
    "GeographyDataModule": "geography",
    "Grade": "example",
    "GradeReason": "example",
    "LanguageDataModule": "language",
    "MathDataModule": "mathematics",
    "MedicalDataModule": "medical",
    "Message": "example",
    "PastTenseDataModule": "past_tense",
    "Split": "base",
    "TextSource": "text_sources",
    "TransferSets": "medical",
    "context_names": "contexts",
    "grade_choice_mention": "grading",
    "load_context": "contexts",
    "make_control": "controls",
    "safety_mix": "text_sources",
    "with_context": "controls",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
