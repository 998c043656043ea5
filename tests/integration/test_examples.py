"""The example scripts run as they are written, with a tiny model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from datamodules import Example
from lightning_modules.comparison import ComparisonSpec
from lightning_modules.models import ModelSpec

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop(tiny_model_dir, capsys):
    load("plain_loop").main(["--model", str(tiny_model_dir), "--gguf_file", "", "--steps", "2", "--items", "3"])
    out = capsys.readouterr().out
    assert "step 1: loss" in out
    assert "PairedRates(num_items=3" in out


def test_own_lightning_module(tiny_model_dir, tmp_path):
    load("own_lightning_module").main(
        ["--model", str(tiny_model_dir), "--gguf_file", "", "--steps", "2", "--items", "3", "--output", str(tmp_path)]
    )
    lines = [json.loads(line) for line in (tmp_path / "removability/summary.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 2]
    assert lines[1]["summaries"]["all"]["num_items"] == 3


def test_own_lightning_module_puts_the_context_where_it_is_asked_to(tiny_model_dir):
    module = load("own_lightning_module").SupervisedFineTuning(ModelSpec(str(tiny_model_dir)))
    item = Example("i", ({"role": "user", "content": "Why?"},), "Because is a word.", "x")
    expected = {"system": "system\nBecause is a word.<|im_end|>", "user": "user\nBecause is a word.\n\nWhy?"}
    for slot, text in expected.items():
        (comparison,) = module.compare_views([item], ComparisonSpec(context_slot=slot))
        assert text in comparison.prompts.with_context_text
    with pytest.raises(ValueError, match=r"leave removability\.num_samples at 1"):
        module.compare_views([item], ComparisonSpec(num_no_context=2))
