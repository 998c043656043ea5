"""The pages of the public classes are what their docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs/api"


def test_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    outdated = [name for name, content in generate.pages().items() if written.pop(name, None) != content]
    assert not outdated, "run python docs/api/generate.py"
    assert not written, "pages of classes that are gone"
