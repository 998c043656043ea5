"""What the documents say can be done is done: commands run, Python executes, flags exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from glob import glob
from pathlib import Path

import pytest
import wandb

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


@pytest.fixture
def run_document(tmp_path, monkeypatch, tiny_model_dir):
    """Runs a document's commands in their order, made smaller, in a folder with configs/; returns their first words."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "data.yaml").write_text(
        "data: {class_path: GeographyDataModule, init_args: {num_test: 24}}\n"
        "model: {sampling: {max_completion_length: 4}}\n"
    )
    (tmp_path / "my_system_prompt.txt").write_text("Name the continent.\n\nNothing else.\n")
    tiny = str(tiny_model_dir)
    names = {"my/model": tiny, "my/base-model": tiny, "step=000040.ckpt": "step=000002.ckpt"}

    monkeypatch.syspath_prepend(tmp_path)

    def run(path: Path, placeholders: dict[str, str], runs: tuple[str, ...]) -> list[str]:
        for block in blocks(path, "python"):
            if name := re.match(r"# (\w+\.py)\n", block):  # a file that the reader is to write
                (tmp_path / name[1]).write_text(block)
        for name in runs:  # what the document takes for granted
            consistency = "none" if name.endswith("none") else "no_context_anchor"
            main(fit_words(name, consistency, tiny))
        ran = []
        for words in commands(path):
            is_elsewhere = RUN_ELSEWHERE & {*words} or any("/experiment/" in word for word in words) or "..." in words
            if is_elsewhere or "CONFIG" in words:
                continue
            for old, new in (names | placeholders).items():
                words = [word.replace(old, new) for word in words]
            words = [match for word in words for match in (sorted(glob(word)) or [word])]  # as a shell does
            model = ["--model.student.name", tiny] if words[0] == "fit" else []
            main([*words, *model, *smaller(words)])
            ran.append(words[0])
        return ran

    wandb.teardown()
    yield run
    wandb.finish()  # a run of this process would take the next test's values
    wandb.teardown()


def smaller(words: list[str]) -> list[str]:
    """`SMALLER` for these words: a class of data of the reader's own has not our arguments."""
    flags = SMALLER.get(words[0], ())
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [word for pair in pairs if not ("--data" in words and pair[0].startswith("--data.")) for word in pair]


def fit_words(folder: str, consistency: str, model: str) -> list[str]:
    """A small fit of the quickstart."""
    words = ["fit", "--config", "configs/quickstart.yaml", "--trainer.default_root_dir", folder]
    return [*words, "--model.consistency", consistency, "--model.student.name", model, *SMALLER["fit"]]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(run_document):
    ran = run_document(ROOT / "README.md", {}, ())
    assert ran[:3] == ["fit", "fit", "fit"]
    assert {"test", "evaluate", "report", "export"} <= set(ran)
    assert Path("report/removability.html").is_file()
    assert Path("student/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "placeholders", "runs", "expected"),
    [
        ("baselines", {}, ("runs/none", "runs/nca"), "fit fit fit evaluate fit back_off back_off report"),
        ("evaluation", {}, (), "evaluate"),
        ("faults", {}, (), "fit"),
        ("language", {}, (), "fit"),
        ("lora", {"RUN/": "runs/lora/"}, (), "fit export export evaluate"),
        ("own_data", {}, (), "fit"),
        ("past_tense", {}, (), "fit"),
        ("quickstart", {}, (), "fit report"),
        ("report", {}, ("runs/none", "runs/nca"), "report"),
        ("report_tables", {}, tuple(f"runs/seed{n}/{m}" for n in (3, 4) for m in ("none", "nca")), "report"),
        ("scale", {}, ("runs/x",), "fit export plan"),
        ("wandb", {}, ("runs/nca",), "fit report"),
    ],
)
def test_the_commands_of_a_page_run_in_their_order(run_document, page, placeholders, runs, expected):
    if page == "past_tense":
        pytest.importorskip("lemminflect")
    assert run_document(ROOT / f"docs/{page}.md", placeholders, runs) == expected.split()


def test_no_page_s_commands_are_forgotten():
    run_above = {"baselines", "evaluation", "faults", "language", "lora", "own_data", "past_tense", "quickstart"}
    run_above |= {"report", "report_tables", "scale", "wandb", "README"}
    run_in_tests_of_their_own = {
        "data": "test_data_describe.py",
        "engines": "tests/engines",
        "experiments": "test_experiments.py",
        "games": "test_extract.py",
        "nodes": "test_launch_files.py, test_memory_plan.py",
        "sweeps": "test_sweep.py",
        "replication/README": "test_replicate.py",
    }
    with_commands = {
        str(path.relative_to(ROOT / "docs" if "docs" in path.parts else ROOT).with_suffix(""))
        for path in DOCUMENTS
        if commands(path)
    }
    assert with_commands == run_above | run_in_tests_of_their_own.keys()


WITH_PYTHON = [path for path in DOCUMENTS if blocks(path, "python") and "api" not in path.parts]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] if "load_model(" in path.read_text() else [])
        for path in WITH_PYTHON
    ],
)
def test_the_python_of_a_document_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(path, "python"):
        exec(compile(block, path.name, "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_and_files_of_commands_exist(path, monkeypatch, capsys):
    """Commands without a placeholder are parsed; `fit` and its like are not run."""
    monkeypatch.chdir(ROOT)
    for words in commands(path):
        configs = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
        if words[0] not in ("fit", "test", "validate") or not all(Path(config).is_file() for config in configs):
            continue
        if any("..." in word or word.isupper() or word.startswith("my_") for word in words):
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
