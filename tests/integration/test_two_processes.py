"""Two ranks give the numbers of one: weights, metrics and the evaluation's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.offline_wandb import read_offline_run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["null", "500"])
def test_ddp_equals_one_process(runs, weights_equal, budget):
    """Ragged micro-batches too: ranks then differ in how many passes they need, and the short one runs dummies."""
    args = (
        "--model.sampling.temperature", "0", "--model.max_tokens_per_micro_batch", budget,
        "--removability.max_items", "7", "--trainer.max_steps", "2",
    )  # fmt: skip
    one = runs.fit("one", *args)
    two = runs.fit_on_two_ranks("two", *args)
    weights_equal(runs.weights(two, 2), runs.weights(one, 2))
    for ours, theirs in zip(runs.metrics(two), runs.metrics(one), strict=True):
        for name in ("train/loss", "train/opd", "train/nca", "train/gradient_norm"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3, abs=1e-6)
        for name in ("completions/mean_length", "completions/clipped_ratio", "rollout/with_context_ratio"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]))
    assert (two / "removability/step=000002.jsonl").read_text().count("\n") == 7
    ids = [[json.loads(line)["id"] for line in (run / "removability/step=000002.jsonl").open()] for run in (one, two)]
    assert ids[0] == ids[1]


@pytest.mark.slow
def test_a_fit_on_two_ranks_is_one_run_on_wandb(runs, tmp_path, monkeypatch):
    """With an agent's ids too, which every rank inherits."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    for name, value in {"WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": "r1", "SWEEPS_FOLDER": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    words = ("--config", str(ROOT / "configs/sweeps/run_folder.yaml"), "--trainer.callbacks+=RolloutTable")
    run = runs.fit_on_two_ranks("sweep/r1", *words, "--trainer.max_steps", "2", "--removability.every_n_steps", "1")
    logged = read_offline_run(run)  # refuses more than one
    assert logged.folder.name.endswith("-r1")
    assert [*logged.history["trainer/global_step"]] == sorted(logged.history["trainer/global_step"])
    assert len(logged.history["train/loss"]) == 2
    assert len(logged.history["removability/both_correct"]) == 2
    assert not [path for path in tmp_path.rglob("offline-run-*") if path != logged.folder]
