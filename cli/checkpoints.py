"""Which checkpoint of a run is the newest whole one."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lightning_modules.checkpoint_folders import what_is_missing


def last_checkpoint(run_folder: str | Path | None) -> Path:
    """The newest checkpoint under RUN/checkpoints that was written to its end.

    Files that are cut off and folders that lack a rank's share are passed over, and said so.

    Raises:
        FileNotFoundError: if there is none. A missing ``last`` never means a fresh start; ``auto`` does.
    """
    folder = Path(run_folder or ".") / "checkpoints"
    candidates = sorted(folder.glob("*.ckpt"), key=_step, reverse=True)
    for path in candidates:
        wrong = what_is_wrong(path)
        if wrong is None:
            return path
        print(f"Passing over {path}: {wrong}. The run was probably killed, or its disk full, while writing it.")
    raise FileNotFoundError(
        f"--ckpt_path last: no complete checkpoint in {folder}. Check --trainer.default_root_dir, leave --ckpt_path "
        "away to start from the beginning, or use --ckpt_path auto, which does either."
    )


def last_checkpoint_or_start(run_folder: str | Path) -> Path | None:
    """The newest whole checkpoint, or None for a fresh start where a run has written none yet.

    The folder of a run that was killed before its first checkpoint is renamed by rank 0: its steps will be made again.

    Raises:
        FileNotFoundError: if there are checkpoints and none is whole.
    """
    folder = Path(run_folder)
    if any((folder / "checkpoints").glob("*.ckpt")):
        return last_checkpoint(folder)
    if (folder / "config.yaml").exists() and getattr(rank_zero_only, "rank", 0) == 0:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.unsaved-{number}")).exists():
            number += 1
        folder.rename(aside)
        print(f"{folder} held a run without a checkpoint; it is {aside} now, and the run starts again.")
    return None


def what_is_wrong(path: Path) -> str | None:
    """Why a checkpoint can't be continued; None: it is whole."""
    if path.is_dir():  # DeepSpeed's
        return what_is_missing(path)
    # The zip format has its directory at the end.
    return None if zipfile.is_zipfile(path) else "it is not complete"


def _step(path: Path) -> tuple[int, float]:
    number = re.search(r"step=(\d+)", path.name)
    return (int(number.group(1)) if number else -1, path.stat().st_mtime)
