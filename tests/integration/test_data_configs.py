"""Every file under configs/data/ trains behind the quickstart's: two steps with the tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cli.main import main
from datamodules import load_context

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs/data").glob("*.yaml"))
SMALL = ["--data.num_train", "60", "--data.num_val", "24", "--data.num_test", "24", "--data.batch_size", "4"]


@pytest.fixture(scope="module")
def roomy_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with more positions: its tokenizer makes many tokens of the facts."""
    folder = tmp_path_factory.mktemp("roomy") / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


def test_every_task_and_kind_of_context_has_a_file() -> None:
    assert {path.stem for path in FILES} == {
        "geography_demonstrations", "geography_facts", "geography_guidelines", "language_demonstrations",
        "past_tense_demonstrations",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_data_config_trains(path: Path, roomy_model: Path, tmp_path: Path) -> None:
    config = ["--config", str(ROOT / "configs/quickstart.yaml"), "--config", str(path)]
    run = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps", "2"]
    quick = ["--trainer.enable_progress_bar", "false", "--trainer.callbacks", "null", "--removability.max_items", "4"]
    model = ["--model.student.name", str(roomy_model), "--model.student.gguf_file", "null"]
    length = ["--model.sampling.max_completion_length", "4", "--removability.every_n_steps", "0"]
    main(["fit", *config, *run, *quick, *model, *length, *SMALL])
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["data"]["init_args"]["context"] == path.stem
    expected = "leading_turns" if isinstance(load_context(path.stem), tuple) else "system"
    assert written["model"]["views"]["context_slot"] == expected
    lines = [json.loads(line) for line in (tmp_path / "run/removability/summary.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert all(line["summaries"]["all"]["num_items"] == 4 for line in lines)
