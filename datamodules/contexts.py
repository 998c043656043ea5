"""Privileged contexts as text files: what the teacher sees and the deployed student does not.

The files shipped with this package lie in the folder ``contexts/`` beside this module; ``SOURCES.md`` there states
where each comes from. They are files rather than strings in code or YAML so that a context can be read, diffed and
replaced as what it is: text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from datamodules.example import Example, Message

_SUFFIXES = (".txt", ".md", ".json")
_SOURCES = "SOURCES.md"


def load_context(name_or_path: str) -> str | tuple[Message, ...]:
    """Read a privileged context.

    Args:
        name_or_path: The name of a context of this package without its suffix (``geography_demonstrations``; see
            `context_names`), or the path of your own file. Whatever has neither a path separator nor one of the
            suffixes below is a name. ``.txt`` and ``.md`` hold text, which is returned without the white space around
            it; ``.json`` holds demonstrations: a list of ``{"role": ..., "content": ...}``, user and assistant in
            turn, from a user to an assistant.

    Returns:
        The text, or the demonstrations as messages.

    Raises:
        FileNotFoundError: if there is no such context; the message lists the names known.
        ValueError: if the suffix is another, or the file is empty, not UTF-8, or not demonstrations as described. The
            message names the file and what is wrong.
    """
    file = _find(name_or_path)
    suffix = Path(file.name).suffix
    if suffix not in _SUFFIXES:
        raise ValueError(f"Context {file}: suffix {suffix!r} is none of {', '.join(_SUFFIXES)}.")
    try:
        # A byte order mark at the start of a file is no text: utf-8-sig drops it.
        text = file.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"Context {file} is not UTF-8 text: {error}.") from error
    if not text:
        raise ValueError(f"Context {file} is empty; for a run without a context give null instead of a file.")
    return _demonstrations(text, str(file)) if suffix == ".json" else text


def context_names() -> tuple[str, ...]:
    """Return the names of the contexts of this package, sorted."""
    return tuple(sorted(_shipped()))


def check_asks_nothing_evaluated(
    context: str | tuple[Message, ...] | None, name: str | None, evaluated: Iterable[Example]
) -> None:
    """Refuse a context that contains the question of an evaluated item, for it may answer it too.

    Args:
        context: As `load_context` returns it; None: no context.
        name: What the user called it, for the message.
        evaluated: Items of validation and test.

    Raises:
        ValueError: naming the context, the question and the item.
    """
    texts = [context] if isinstance(context, str) else [message["content"] for message in context or ()]
    for example in evaluated:
        question = example.prompt[-1]["content"]
        if any(question in text for text in texts):
            raise ValueError(
                f"context={name!r} contains {question!r}, which validation or test asks ({example.id}); demonstrate "
                "other items, such as those of the shipped demonstrations, which are in no split."
            )


def _shipped() -> dict[str, Traversable]:
    """Map the name of each context of this package to its file."""
    # Asked of the package, not of __file__: an installed wheel need not be a folder.
    folder = files("datamodules") / "contexts"
    return {
        Path(file.name).stem: file
        for file in folder.iterdir()
        if Path(file.name).suffix in _SUFFIXES and file.name != _SOURCES
    }


def _find(name_or_path: str) -> Traversable:
    """Resolve a name, or a path, to an existing file."""
    path = Path(name_or_path)
    is_name = path.name == name_or_path and path.suffix not in _SUFFIXES
    shipped = _shipped()
    if is_name and name_or_path in shipped:
        return shipped[name_or_path]
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"No context {name_or_path!r}: neither a file nor one of the names {', '.join(sorted(shipped))}."
    )


def _demonstrations(text: str, file: str) -> tuple[Message, ...]:
    """Parse and check a JSON list of messages."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"Context {file} is not JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'Context {file} must be a non-empty list of {{"role": ..., "content": ...}}.')
    messages = tuple(_message(entry, index, file) for index, entry in enumerate(entries))
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"Context {file}: the last message must be an assistant's, for the prompt follows it.")
    return messages


def _message(entry: object, index: int, file: str) -> Message:
    """Check one message against its place: even ones are the user's, odd ones the assistant's."""
    where = f"Context {file}, message {index}"
    if not isinstance(entry, dict) or set(entry) != {"role", "content"}:
        raise ValueError(f'{where} must have exactly the keys "role" and "content", not {entry!r}.')
    role, content = entry["role"], entry["content"]
    expected = "user" if index % 2 == 0 else "assistant"
    if role != expected:
        raise ValueError(f"{where}: role must be {expected!r} here, not {role!r}; user and assistant take turns.")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{where}: content must be text that is not blank, not {content!r}.")
    return Message(role="user" if index % 2 == 0 else "assistant", content=content)
