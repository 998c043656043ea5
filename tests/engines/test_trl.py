"""TRL trains on what `to_dataset()` gives, for two real steps."""

from __future__ import annotations

import pytest

from tests.integration.test_examples import load

pytest.importorskip("trl", reason="trl is not installed: make test-engines installs it")


def test_sdft_trainer_takes_our_data_set(tiny_model_dir, tmp_path):
    log = load("trl_sdft").main(
        ["--model", str(tiny_model_dir), "--gguf_file", "", "--steps", "2", "--output", str(tmp_path)]
    )
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 2
    assert all(loss == loss for loss in losses)
