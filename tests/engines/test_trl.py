"""TRL trains on what `to_dataset()` gives, for two real steps."""

from __future__ import annotations

import pytest

from cli.main import main
from tests.integration.test_examples import load

pytest.importorskip("trl", reason="trl is not installed: make test-engines installs it")


def test_sdft_trainer_takes_our_data_set(tiny_model_dir, tmp_path, capsys):
    log = load("trl_sdft").main(
        ["--model", str(tiny_model_dir), "--gguf_file", "", "--steps", "2", "--output", str(tmp_path)]
    )
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 2
    assert all(loss == loss for loss in losses)
    # As the script's docstring says.
    words = ("--config", "configs/quickstart.yaml", "--config", "configs/data/geography_guidelines.yaml")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", *words, "--print_config"])
    config, output = tmp_path / "guidelines.yaml", tmp_path / "evaluated"
    config.write_text(capsys.readouterr().out)
    words = ("--config", str(config), "--model.name", str(tmp_path / "model"), "--output", str(output))
    main(["evaluate", *words, "--max_items", "4"])
    assert len((output / "removability/test-step=000000.jsonl").read_text().splitlines()) == 4
