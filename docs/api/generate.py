"""Writes a page for every public class from its docstring: ``python docs/api/generate.py``, in the project's root.

A test holds the pages to the code.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PUBLIC = {
    "Training": {
        "lightning_modules.context_distillation": ["ContextDistillation"],
        "lightning_modules.models": ["ModelSpec"],
        "lightning_modules.adapters": ["LoRASpec"],
        "lightning_modules.teachers": ["TeacherSpec"],
        "lightning_modules.views": ["ViewSpec", "PromptPair"],
        "lightning_modules.rollout.engine": ["SamplingSpec", "Completion", "RolloutEngine"],
        "lightning_modules.rollout.engines": ["EngineSpec"],
        "lightning_modules.rollout.sources": ["RolloutSpec"],
        "lightning_modules.rollout.episodes": ["Episode", "Turn"],
        "lightning_modules.rollout.experience": ["ExtractionSpec"],
        "lightning_modules.rollout.vllm": ["VLLMSpec"],
        "lightning_modules.strategies": ["ZeROStrategy"],
        "lightning_modules.objective.divergences": ["Support"],
        "lightning_modules.objective.consistency": ["ObjectiveSettings", "ViewLogits", "TokenTerms"],
    },
    "Data": {
        "datamodules.example": ["Example", "Message", "Grade", "Environment"],
        "datamodules.base": ["ContextDataModule"],
        "datamodules.geography": ["GeographyDataModule"],
        "datamodules.language": ["LanguageDataModule"],
        "datamodules.past_tense": ["PastTenseDataModule"],
        "datamodules.classification": ["ClassificationDataModule"],
        "datamodules.text_sources": ["TextSource"],
        "datamodules.medical": ["MedicalDataModule", "TransferSets"],
        "datamodules.mathematics": ["MathDataModule"],
        "datamodules.games": ["GameDataModule"],
        "datamodules.controls": ["Control"],
    },
    "Evaluation and other callbacks": {
        "callbacks.removability": ["RemovabilityCallback"],
        "callbacks.paired_evaluation": ["PairedEvaluation", "ControlSpec"],
        "lightning_modules.evaluated_model": ["EvaluatedModel"],
        "callbacks.paired_records": ["PairedRecord", "GradedSample"],
        "callbacks.removability_metrics": ["PairedRates", "RemovabilitySummary"],
        "callbacks.removability_statistics": ["PairStatistics", "Interval"],
        "lightning_modules.comparison": ["ComparesViews", "ComparisonSpec", "ViewComparison", "Answer"],
        "callbacks.probes": ["ProbeEvaluation"],
        "callbacks.representations": ["RepresentationSimilarity"],
        "callbacks.gradient_geometry": ["GradientGeometry"],
        "callbacks.weight_changes": ["WeightChanges"],
        "callbacks.token_positions": ["TokenPositions"],
        "callbacks.rollout_table": ["RolloutTable"],
        "callbacks.view_sample": ["ViewSample"],
        "callbacks.run_checkpoint": ["RunCheckpoint"],
        "callbacks.hf_export": ["HFExport"],
        "callbacks.predictions": ["PredictionWriter"],
        "callbacks.csv_logger": ["RunCSVLogger"],
    },
}
"""Classes by chapter and module."""


def pages() -> dict[str, str]:
    """Content of every page by its file name."""
    found = {}
    index = ["# Public classes", "", "Written by `docs/api/generate.py` from the docstrings.", ""]
    for chapter, modules in PUBLIC.items():
        index += [f"## {chapter}", ""]
        for module, names in modules.items():
            for name in names:
                cls = getattr(import_module(module), name)
                found[f"{name}.md"] = page(cls)
                summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
                index.append(f"- [{name}]({name}.md): {summary}")
        index.append("")
    return found | {"README.md": "\n".join(index).rstrip() + "\n"}


def page(cls: type) -> str:
    """One class: how to import it, its parameters, its docstring, its public methods."""
    lines = [f"# {cls.__name__}", "", "```python", f"from {cls.__module__} import {cls.__name__}", ""]
    head = f"class {cls.__name__}(Protocol)" if getattr(cls, "_is_protocol", False) else _signature(cls.__name__, cls)
    lines += [head, "```", "", _markdown(inspect.getdoc(cls) or ""), ""]
    constructor = inspect.getdoc(vars(cls).get("__init__")) or ""
    if "Args:" in constructor:
        lines += [_markdown(constructor[constructor.index("Args:") :]), ""]
    if is_dataclass(cls):
        described = _field_comments(cls)
        rows = [f"- `{field.name}`: {described.get(field.name, '')}".rstrip(": ") for field in fields(cls)]
        lines += ["## Fields", "", *rows, ""]
    for name, method in sorted(vars(cls).items()):
        function = method.fget if isinstance(method, property) else inspect.unwrap(getattr(method, "__func__", method))
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        head = _property(name, function) if isinstance(method, property) else _signature(name, function)
        lines += [f"## `{name}`", "", "```python", head, "```", "", _markdown(inspect.getdoc(function) or ""), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _signature(name: str, function: Any) -> str:
    """Parameters, one per line where they are many; defaults as the code writes them."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return f"class {name}"
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    words = [_parameter(p) for p in parameters]
    by_name = [i for i, p in enumerate(parameters) if p.kind == inspect.Parameter.KEYWORD_ONLY]
    if by_name and not any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
        words.insert(by_name[0], "*")
    returned = "" if inspect.isclass(function) or not isinstance(signature.return_annotation, str) else " -> "
    returned += signature.return_annotation if returned else ""
    short = f"{name}({', '.join(words)}){returned}"
    if len(short) <= 100:
        return short
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){returned}"


def _property(name: str, getter: Any) -> str:
    annotation = inspect.signature(getter).return_annotation
    return f"{name}: {annotation}" if isinstance(annotation, str) else name


def _parameter(parameter: inspect.Parameter) -> str:
    """As the code has it; annotations are strings there."""
    annotation = parameter.annotation
    typed = "" if annotation is parameter.empty else annotation if isinstance(annotation, str) else annotation.__name__
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    word = stars + parameter.name + (f": {typed}" if typed else "")
    if parameter.default is parameter.empty:
        return word
    if is_dataclass(parameter.default) and parameter.default == type(parameter.default)():
        return f"{word} = {type(parameter.default).__name__}()"  # its own page has the fields
    default = "..." if re.search(r" at 0x|<factory>", repr(parameter.default)) else repr(parameter.default)
    return f"{word}{' = ' if typed else '='}{default}"


def _field_comments(cls: type) -> dict[str, str]:
    """The string under each field."""
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', inspect.getsource(cls), flags=re.M | re.S)
    return {name: " ".join(text.replace("``", "`").split()) for name, text in found}


def _markdown(text: str) -> str:
    """A Google docstring as Markdown: sections as headings in bold, their entries as a list, examples as they are."""
    lines, in_section, in_example = [], False, False
    for line in text.replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields|Example|Examples):", line):
            lines += ["", f"**{line[:-1]}**", ""]
            in_section, in_example = True, line.startswith("Example")
        elif in_example and (line.startswith("    ") or not line):
            # What is indented further is code, in Markdown as in a docstring.
            lines.append(re.sub(r"::$", ":", line[4:]))
        elif in_section and (entry := re.match(r"    (\w+(?:\[\w+\])?): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif in_section and line.startswith("        "):
            lines.append("  " + line.strip())
        else:
            in_example = False
            in_section = in_section and (line.startswith("    ") or not line)
            lines.append(line.strip() if in_section else line)
    return "\n".join(lines)


def main() -> None:
    """Write all pages; remove those of classes that are gone."""
    folder = ROOT / "docs/api"
    written = pages()
    for path in folder.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, content in written.items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
