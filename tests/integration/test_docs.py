"""What the documents say can be done is done: commands run, Python executes, flags exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cli.main import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
SMALLER = {
    "fit": (
        "--model.student.gguf_file", "null", "--trainer.max_steps", "2", "--removability.max_items", "4",
        "--removability.every_n_steps", "1", "--checkpoint.every_n_train_steps", "1", "--data.num_train", "60",
        "--data.num_val", "24", "--data.num_test", "24",
    ),
    "test": ("--data.num_test", "6"),
    "evaluate": ("--max_items", "4"),
}  # fmt: skip
"""Flags behind a command of the README that make it small."""


RUN_ELSEWHERE = {"configs/strategy/zero2.yaml", "--model.engine.kind", "sweep"}
"""Commands with these words are run by tests/engines, test_experiments.py and test_sweep.py."""


def blocks(path: Path, *languages: str) -> list[str]:
    """Fenced blocks of a document in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    return [body for language, body in found if language in languages]


def commands(path: Path) -> list[list[str]]:
    """Words of every ``python -m cli`` in a document's blocks of commands, comments left out."""
    lines = "\n".join(blocks(path, "", "bash", "sh")).replace("\\\n", " ").splitlines()
    return [
        shlex.split(line, comments=True)[3:] for line in lines if re.match(r"(\w+=\S+ )*python -m cli ", line.strip())
    ]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path, monkeypatch, tiny_model_dir, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names = {"my/model": str(tiny_model_dir), "step=000040.ckpt": "step=000002.ckpt"}
    ran = []
    for words in commands(ROOT / "README.md"):
        if RUN_ELSEWHERE & {*words} or any("/experiment/" in word for word in words):
            continue
        args = [next((word.replace(old, new) for old, new in names.items() if old in word), word) for word in words]
        model = ["--model.student.name", str(tiny_model_dir)] if words[0] == "fit" else []
        main([*args, *model, *SMALLER.get(words[0], ())])
        ran.append(words[0])
    assert ran[:3] == ["fit", "fit", "fit"]
    assert {"test", "evaluate", "report", "export"} <= set(ran)
    assert (tmp_path / "report/removability.html").is_file()
    assert (tmp_path / "student/model.safetensors").is_file()


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = blocks(ROOT / "README.md", "python")
    assert len(python) >= 2
    for block in python:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_and_files_of_commands_exist(path, monkeypatch, capsys):
    """Commands without a placeholder are parsed; `fit` and its like are not run."""
    monkeypatch.chdir(ROOT)
    for words in commands(path):
        configs = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
        if words[0] not in ("fit", "test", "validate") or not all(Path(config).is_file() for config in configs):
            continue
        if any("..." in word or word.isupper() for word in words):
            continue
        with pytest.raises(SystemExit) as ended:
            main([*words, "--print_config"])
        assert ended.value.code == 0, capsys.readouterr().err
        assert "model:" in capsys.readouterr().out


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (path.parent / target).exists(), target
