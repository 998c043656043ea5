"""The pages of the public classes are what their docstrings say."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import typing
from pathlib import Path

import cli.main
import datamodules

FOLDER = Path(__file__).parents[2] / "docs/api"


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


def test_pages_are_up_to_date():
    generate = load_generator()
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    outdated = [name for name, content in generate.pages().items() if written.pop(name, None) != content]
    assert not outdated, "run python docs/api/generate.py"
    assert not written, "pages of classes that are gone"


def classes_of(annotation: object) -> set[type]:
    """This project's classes in an annotation, in their constructors' and fields' annotations, and so on."""
    found: set[type] = set()
    todo = [annotation]
    while todo:
        one = todo.pop()
        todo += typing.get_args(one)
        rooms = ("lightning_modules.", "datamodules.", "callbacks.")
        if inspect.isclass(one) and one.__module__.startswith(rooms) and one not in found:
            found.add(one)
            todo += typing.get_type_hints(one.__init__).values()
            todo += typing.get_type_hints(one).values() if dataclasses.is_dataclass(one) else ()
    return found


def test_what_a_config_or_an_import_reaches_has_a_page():
    generate = load_generator()
    modules = {module: names for chapter in generate.PUBLIC.values() for module, names in chapter.items()}
    documented = {getattr(importlib.import_module(module), name) for module, names in modules.items() for name in names}
    roots = [getattr(cli.main, name) for name in (*cli.main.__all__, "RemovabilityCallback", "RunCheckpoint")]
    roots += [getattr(datamodules, name) for name in datamodules.__all__]
    reached = set().union(*map(classes_of, [*roots, *documented]))
    assert {cls.__name__ for cls in reached - documented} == set()
