"""What a wheel holds, and that its data modules work where they are installed alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy: setuptools leaves build/ behind, and would put removed modules into the next one."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "wandb", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source"))
    (path,) = folder.glob("*.whl")
    return path


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", *words, "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_wheel_holds_everything(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("cli", "lightning_modules", "datamodules", "callbacks"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / room).rglob("*.py")}
        assert modules <= names
    contexts = {str(p.relative_to(ROOT)) for p in (ROOT / "datamodules/contexts").iterdir() if p.is_file()}
    assert len(contexts) >= 3
    assert contexts <= names
    texts = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_modules").rglob("*.txt")}
    assert texts <= names
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "cli/page").iterdir()}
    assert {"cli/page/page.html", "cli/page/page.css", "cli/page/main.js"} <= page <= names
    scripts = next(name for name in names if name.endswith("entry_points.txt"))
    assert "context-returns = cli.main:console" in zipfile.ZipFile(wheel).read(scripts).decode()


ABSENT = ("deepspeed", "vllm", "wandb", "peft", "textarena", "trl", "transformers", "datasets", "math_verify")
ELSEWHERE = """
import importlib.metadata, importlib.util, sys
for name in sys.argv[2:]:
    assert importlib.util.find_spec(name) is None, name
    assert not list(importlib.metadata.distributions(name=name)), name
import datamodules
for name in datamodules.__all__:
    getattr(datamodules, name)
assert datamodules.__file__.startswith(sys.argv[1]), datamodules.__file__
for name in datamodules.context_names():
    assert datamodules.load_context(name)
data = datamodules.GeographyDataModule()
example = data.examples("val")[0]
assert example.privileged_context
print(data.grade(example, example.answer).reason)
"""


@pytest.fixture
def site_without_them(tmp_path):
    """Return a folder of links to what is installed here, without this project and those that are to be absent."""
    folder = tmp_path / "without"
    folder.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.partition("-")[0].lower().removesuffix(".py")
        if name not in ABSENT and not name.startswith(("__editable__", "context_returns")):
            (folder / path.name).symlink_to(path)
    return folder


def test_data_modules_work_alone_where_the_wheel_is_installed(wheel, tmp_path, site_without_them):
    """In an environment without transformers, wandb, textarena and the like."""
    pip("install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", ELSEWHERE, str(tmp_path / "site"), *ABSENT],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": f"{tmp_path / 'site'}:{site_without_them}", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "correct"
