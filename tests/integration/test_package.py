"""What a wheel holds: every package, the contexts, and the console script."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_everything(tmp_path):
    # A copy: setuptools leaves build/ behind, and would put modules that were removed since into the next wheel.
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "wandb", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    done = subprocess.run(
        [*f"{sys.executable} -m pip wheel -q --no-deps --no-build-isolation -w".split(), str(tmp_path), str(source)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("cli", "lightning_modules", "datamodules", "callbacks"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / room).rglob("*.py")}
        assert modules <= names
    contexts = {str(p.relative_to(ROOT)) for p in (ROOT / "datamodules/contexts").iterdir() if p.is_file()}
    assert len(contexts) >= 3
    assert contexts <= names
    assert "lightning_modules/rollout/experience_prompt.txt" in names
    scripts = next(name for name in names if name.endswith("entry_points.txt"))
    assert "context-returns = cli.main:console" in zipfile.ZipFile(wheel).read(scripts).decode()
