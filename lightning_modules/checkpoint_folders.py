"""Whether a checkpoint that is a folder is whole: its list of files, written last. Standard library only."""

from __future__ import annotations

import json
import os
from pathlib import Path

LIST = "files.json"
"""In the folder: size in bytes of every file, by its path within the folder."""


def seal(folder: Path) -> None:
    """Wait until the disk has every file of a folder, then write the list of them."""
    for path in _files(folder):
        _sync(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    (folder / LIST).write_text(json.dumps(sizes, indent=1, sort_keys=True))
    _sync(folder / LIST)


def what_is_missing(folder: Path) -> str | None:
    """What is not as the list says; None: nothing."""
    try:
        sizes = json.loads((folder / LIST).read_text())
    except FileNotFoundError:
        return f"it has no {LIST}, which is written last"
    except ValueError:
        return f"{LIST} is not complete"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes in place of {size}"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LIST)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
