"""Training and evaluating with vLLM through the command line, games included."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from cli.main import main
from lightning_modules.rollout import vllm_colocated
from lightning_modules.rollout.sync_check import StaleWeightsError
from tests.integration.conftest import CONFIG, Runs
from tests.integration.test_games_training import CONFIG as GAMES_CONFIG

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")

VLLM = ("--model.engine.kind", "vllm", "--model.engine.vllm.kv_cache_gib", "0.1")
GREEDY = ("--model.sampling.temperature", "0")


@pytest.fixture(autouse=True)
def _no_vllm_is_left_over(monkeypatch):
    """A run that stops with an error leaves its vLLM to the process; here the process goes on."""
    started = []
    own = vllm_colocated.ColocatedVLLM.__init__

    def start(self, *args):
        own(self, *args)
        started.append(self)

    monkeypatch.setattr(vllm_colocated.ColocatedVLLM, "__init__", start)
    yield
    for backend in started:
        backend.close()


@pytest.fixture(scope="module")
def config(vllm_model_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "vllm.yaml"
    path.write_text(CONFIG.format(model=vllm_model_dir))
    return path


@pytest.fixture
def runs(config, tmp_path):
    return Runs(tmp_path, config)


def test_greedy_rollouts_train_as_with_transformers(runs):
    """Three steps of the same losses: every step samples with the weights that the step before left."""
    hf = runs.metrics(runs.fit("hf", *GREEDY))
    vllm = runs.metrics(runs.fit("vllm", *GREEDY, *VLLM))
    assert len(hf) == len(vllm) == 3
    for own, theirs in zip(vllm, hf, strict=True):
        for name in ("train/loss", "train/gradient_norm", "completions/mean_length"):
            assert float(own[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name
        assert 0.0 <= float(own["rollout/logprob_gap"]) < 2e-5
        assert "rollout/logprob_gap" not in theirs
    records = [(runs.root / name / "removability/step=000003.jsonl").read_text() for name in ("hf", "vllm")]
    assert records[0].count("\n") == 4
    assert records[0] == records[1]


def test_adapters_train_as_with_transformers(runs):
    """Three steps of the same losses: adapters of the step before sample, and are trained from there."""
    lora = ("--model.student.lora.r", "2", "--model.optimizer.init_args.lr", "0.01")
    hf = runs.metrics(runs.fit("hf", *GREEDY, *lora))
    vllm = runs.metrics(runs.fit("vllm", *GREEDY, *lora, *VLLM))
    assert len(hf) == len(vllm) == 3
    assert len({row["train/loss"] for row in vllm}) == 3
    for own, theirs in zip(vllm, hf, strict=True):
        for name in ("train/loss", "train/gradient_norm", "completions/mean_length"):
            assert float(own[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name
        assert float(own["rollout/logprob_gap"]) < 2e-5


def test_a_resumed_run_samples_as_the_uninterrupted_one(runs):
    whole = runs.fit("whole", *VLLM)
    part = runs.fit("part", *VLLM, "--trainer.max_steps", "1")
    main(runs.args("fit", "part", *VLLM, "--ckpt_path", "last"))
    for ours, theirs in zip(runs.metrics(part), runs.metrics(whole), strict=True):
        assert float(ours["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=1e-5)


def test_a_lost_sync_stops_before_anything_is_trained_on_it(runs, monkeypatch):
    own = vllm_colocated.ColocatedVLLM.load
    calls = []

    def load(self, model):
        calls.append(model)
        if len(calls) == 1:
            own(self, model)

    monkeypatch.setattr(vllm_colocated.ColocatedVLLM, "load", load)
    with pytest.raises(StaleWeightsError, match="--ckpt_path last"):
        runs.fit("run", *VLLM)
    assert len(calls) == 2
    assert [row["step"] for row in runs.metrics(runs.root / "run")] == ["1"]


def test_a_reader_of_short_prompts_is_named_before_training(runs):
    with pytest.raises(ValueError, match="64"):
        runs.fit("run", *VLLM, "--model.engine.vllm.max_model_len", "64")
    assert not (runs.root / "run/metrics.csv").exists()


def test_games_are_played_on_vllm(vllm_model_dir, tmp_path, monkeypatch):
    pytest.importorskip("textarena", reason="games need the extra `games` (textarena)")
    monkeypatch.setattr("datamodules.games.fewest_moves", lambda board, max_moves: 4)  # short games
    (tmp_path / "games.yaml").write_text(GAMES_CONFIG.format(model=vllm_model_dir))
    losses = {}
    for name, engine in (("hf", ()), ("vllm", VLLM)):
        run = tmp_path / name
        args = ("fit", "--config", str(tmp_path / "games.yaml"), "--trainer.default_root_dir", str(run))
        main([*args, *GREEDY, *engine, "--trainer.max_steps", "1"])
        (losses[name],) = training_losses(run)
    assert losses["vllm"] == pytest.approx(losses["hf"], rel=1e-4)


def training_losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_predict_starts_an_engine_of_its_own(runs):
    run = runs.fit("run", *VLLM, "--trainer.max_steps", "1")
    assert not torch.distributed.is_initialized()  # vLLM's process group went with it
    main([*runs.args("predict", "run", *VLLM), "--ckpt_path", "last", "--trainer.callbacks+", "PredictionWriter"])
    assert (run / "predictions.jsonl").read_text().count("\n") == 24


def test_importance_weights_of_an_engine_in_step_are_one(runs, monkeypatch):
    """In float32 both sides agree, and weighing changes nothing; samples of other weights are weighed down or up."""
    plain = runs.metrics(runs.fit("plain", *VLLM))
    weighed = runs.metrics(runs.fit("weighed", *VLLM, "--model.importance_weight_cap", "2"))
    for own, theirs in zip(weighed, plain, strict=True):
        assert float(own["train/importance_weight"]) == pytest.approx(1.0, abs=1e-4)
        assert float(own["train/importance_capped_ratio"]) == 0.0
        assert "train/importance_weight" not in theirs
        assert float(own["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=1e-3)

    monkeypatch.setattr(vllm_colocated.ColocatedVLLM, "load", lambda self, weights: None)
    limit = ("--model.engine.vllm.max_logprob_gap", "100")
    stale = runs.metrics(runs.fit("stale", *VLLM, *limit, "--model.importance_weight_cap", "2"))
    assert abs(float(stale[-1]["train/importance_weight"]) - 1.0) > 1e-2
