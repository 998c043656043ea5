"""Privileged contexts: what is shipped, what is read, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import datamodules
from datamodules.contexts import context_names, load_context

FOLDER = Path(datamodules.__file__).parent / "contexts"


def test_every_shipped_file_is_a_readable_context_with_a_unique_name() -> None:
    names = [path.stem for path in FOLDER.iterdir() if path.name != "SOURCES.md"]
    assert sorted(names) == list(context_names())
    for name in names:
        assert load_context(name)


def test_every_shipped_file_states_its_source() -> None:
    stated = [line.split("`")[1] for line in (FOLDER / "SOURCES.md").read_text("utf-8").splitlines() if line[:1] == "-"]
    assert sorted(stated) == sorted(path.name for path in FOLDER.iterdir() if path.name != "SOURCES.md")


def test_demonstrations_are_eight_exchanges_of_one_word() -> None:
    messages = load_context("geography_demonstrations")
    assert isinstance(messages, tuple)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 8
    assert {message["content"] for message in messages[1::2]} == {
        "Africa", "Asia", "Europe", "North America", "South America", "Oceania",
    }  # fmt: skip


def test_guidelines_name_every_answer() -> None:
    text = load_context("geography_guidelines")
    assert isinstance(text, str)
    assert "Africa, Asia, Europe, North America, South America, Oceania" in text


def test_package_data_are_found_from_an_installed_copy(tmp_path: Path) -> None:
    shutil.copytree(FOLDER.parent, tmp_path / "datamodules", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.make_archive(str(tmp_path / "wheel"), "zip", tmp_path, "datamodules")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'wheel.zip')!r})\n"
        "import datamodules.contexts as c; assert 'wheel.zip' in c.__file__\n"
        "print(len(c.load_context('geography_demonstrations')))"
    )
    # From another folder and out of an archive: neither the checkout nor a real file can help.
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "16"


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_own_text_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes("\ufeff\n Grüße.\n\nZwei.\n".encode())
    assert load_context(str(path)) == "Grüße.\n\nZwei."


def test_own_json_file(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": " 2"}]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(messages))
    assert load_context(str(path)) == tuple(messages)


def test_a_file_without_suffix_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "context").write_text("text")
    with pytest.raises(ValueError, match=r"suffix '' is none of \.txt, \.md, \.json"):
        load_context(str(tmp_path / "context"))


@pytest.mark.parametrize(
    "name", ["geography", "nowhere/geography_guidelines", "geography_guidelines.txt", "SOURCES", ""]
)
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"geography_demonstrations, .*geography_guidelines"):
        load_context(name)


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[", "is not JSON"),
        (b"{}", "non-empty list"),
        (b"[]", "non-empty list"),
        (json.dumps(["q", "a"]).encode(), "message 0 must have exactly the keys"),
        (json.dumps([{"role": "user"}]).encode(), "message 0 must have exactly the keys"),
        (json.dumps([USER | {"name": "x"}, ASSISTANT]).encode(), "message 0 must have exactly the keys"),
        (json.dumps([ASSISTANT, USER]).encode(), "message 0: role must be 'user' here, not 'assistant'"),
        (json.dumps([USER, USER]).encode(), "message 1: role must be 'assistant' here, not 'user'"),
        (json.dumps([USER | {"role": "system"}, ASSISTANT]).encode(), "message 0: role must be 'user'"),
        (json.dumps([USER, ASSISTANT, USER]).encode(), "last message must be an assistant's"),
        (json.dumps([USER, ASSISTANT | {"content": " "}]).encode(), "message 1: content must be text"),
        (json.dumps([USER, ASSISTANT | {"content": 2}]).encode(), "message 1: content must be text"),
    ],
)
def test_faulty_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "faulty.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"faulty\.json.*{message}"):
        load_context(str(path))
