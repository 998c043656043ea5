"""Games through the command line: every turn is trained on, both views play, the games' verdicts are what counts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("textarena", reason="games need the extra `games` (textarena)")

from callbacks.removability_files import read_summaries
from cli.main import main
from datamodules.game_boards import MOVES, FrozenLake, fewest_moves
from lightning_modules.rollout.engine import Completion

ROOT = Path(__file__).parents[2]

CONFIG = """
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 2
  enable_progress_bar: false
  logger:
    - class_path: RunCSVLogger
      init_args: {{save_dir: "${{trainer.default_root_dir}}"}}
model:
  student: {{name: "{model}"}}
  sampling: {{max_completion_length: 8}}
  optimizer:
    class_path: torch.optim.SGD
    init_args: {{lr: 0.1}}
  seed: ${{seed_everything}}
data:
  class_path: GameDataModule
  init_args:
    env_id: FrozenLake-v0
    env_options: {{size: 3, num_holes: 2}}
    context: frozen_lake_experience
    max_turns: 2
    num_seeds: 100
    num_val: 3
    num_test: 3
    split_by: seed_leaky
    batch_size: 4
    seed: ${{seed_everything}}
removability: {{every_n_steps: 0, at_start: false}}
checkpoint: {{every_n_train_steps: 1, save_top_k: -1}}
"""


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, allowed to read the length of a game, and a config around it."""
    folder = tmp_path_factory.mktemp("games")
    shutil.copytree(tiny_model_dir, folder / "model")
    model_config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps(model_config | {"max_position_embeddings": 4096}))
    (folder / "games.yaml").write_text(CONFIG.format(model=folder / "model"))
    return folder / "games.yaml"


@pytest.fixture
def winnable(monkeypatch):
    """Two turns keep the runs short, but win no lake: let the check of that pass."""
    monkeypatch.setattr("datamodules.games.fewest_moves", lambda board, max_moves: 4)


def fit(config: Path, run: Path, *args: str) -> Path:
    main(["fit", "--config", str(config), "--trainer.default_root_dir", str(run), *args])
    return run


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def training_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.usefixtures("winnable")
def test_games_train_and_are_evaluated(config, tmp_path):
    table = ["--trainer.callbacks+", "RolloutTable", "--trainer.callbacks.every_n_steps", "1"]
    run = fit(config, tmp_path / "run", *table, "--trainer.callbacks.num_rollouts", "8")
    steps = training_metrics(run)
    assert len(steps) == 2
    for step in steps:
        assert float(step["train/loss"]) > 0
        assert float(step["games/win_rate"]) == 0.0  # two moves win no lake
        assert 1.0 <= float(step["games/mean_turns"]) <= 2.0
        assert 0.0 <= float(step["games/invalid_move_rate"]) <= 1.0
    turns = [row for row in rows(run / "rollouts.jsonl") if row["step"] == 1]
    assert len(turns) == 4 * float(steps[0]["games/mean_turns"])  # every turn is a sample
    (line,) = read_summaries(run / "removability/summary.jsonl")
    assert (line.step, line.summaries["all"].num_items, line.summaries["all"].accuracy_no_context) == (2, 3, 0.0)
    for record in rows(run / "removability/step=000002.jsonl"):
        assert record["reason_no_context"] in ("lost", "unfinished")
        assert record["completion_no_context"].startswith("Assistant: ")
        assert record["length_no_context"] == record["num_kl_tokens"] > 0


class Player:
    """In the engine's place: wins where it reads no context, and walks into the wall until it loses where it does."""

    logprob_gap = None

    def __init__(self, model, tokenizer, batch_size):
        self.tokenizer = tokenizer

    def current_weights(self):
        return nullcontext()

    def generate(self, prompts, sampling, seed):
        return [self._complete(self.tokenizer.decode(prompt)) for prompt in prompts]

    def _complete(self, prompt):
        board = FrozenLake.from_text(prompt[prompt.rindex("Current Board") :])
        row, column = board.player
        best = min(board.successors(), key=lambda after: fewest_moves(after, 9))
        move = next(name for name, step in MOVES.items() if best.player == (row + step[0], column + step[1]))
        text = "[up]" if "What earlier games taught" in prompt and board.player == (0, 0) else f"[{move}]"
        return Completion(self.tokenizer.encode(text, add_special_tokens=False), text, True)


def test_games_that_are_lost_when_the_context_returns_are_harm(config, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.rollout.engines.HFRolloutEngine", Player)
    run = fit(config, tmp_path / "run", "--data.init_args.max_turns", "5", "--data.init_args.num_val", "20",
              "--trainer.max_steps", "1")  # fmt: skip
    (step,) = training_metrics(run)
    games = [float(step[f"games/{name}"]) for name in ("win_rate", "mean_turns", "invalid_move_rate")]
    assert games == [1.0, 4.0, 0.0]
    (line,) = read_summaries(run / "removability/summary.jsonl")
    summary = line.summaries["all"]
    assert (summary.accuracy_no_context, summary.accuracy_with_context, summary.harm) == (1.0, 0.0, 1.0)
    assert {record["reason_with_context"] for record in rows(run / "removability/step=000001.jsonl")} == {"lost"}


class HalfWinner(Player):
    """Loses on some boards, by the board alone, and notes how many turns each rank plays."""

    def generate(self, prompts, sampling, seed):
        with (Path(os.environ["TURNS_BY_RANK"]) / os.environ.get("LOCAL_RANK", "0")).open("a") as file:
            file.write(f"{len(prompts)}\n")
        return super().generate(prompts, sampling, seed)

    def _complete(self, prompt):
        board = FrozenLake.from_text(prompt[prompt.rindex("Current Board") :])
        is_lost = sum(3 * row + column for row, column in board.frozen) % 2
        return super()._complete("What earlier games taught" + prompt if is_lost else prompt)


TWO_RANKS = """
import sys
import lightning_modules.rollout.engines as module
from cli.main import main
from tests.integration.test_games_training import HalfWinner
module.HFRolloutEngine = HalfWinner
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_ranks_share_the_games_and_count_what_one_process_does(config, tmp_path, monkeypatch, weights_equal, runs):
    turns = {name: tmp_path / f"turns-{name}" for name in ("one", "two")}
    for folder in turns.values():
        folder.mkdir()
    words = ["--data.init_args.max_turns", "5", "--trainer.max_steps", "1"]
    monkeypatch.setattr("lightning_modules.rollout.engines.HFRolloutEngine", HalfWinner)
    monkeypatch.setenv("TURNS_BY_RANK", str(turns["one"]))
    one = fit(config, tmp_path / "one", *words)

    (tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    two = tmp_path / "two"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "two_ranks.py"), "fit", "--config", str(config),
         "--trainer.default_root_dir", str(two), "--trainer.devices", "2", "--trainer.strategy", "ddp", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TURNS_BY_RANK": str(turns["two"])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]

    (ours,), (theirs,) = training_metrics(two), training_metrics(one)
    assert 0.0 < float(theirs["games/win_rate"]) < 1.0
    for name in ("games/win_rate", "games/mean_turns", "games/invalid_move_rate"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]))
    assert float(ours["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=1e-3)
    weights_equal(runs.weights(two, 1), runs.weights(one, 1))
    records = [rows(run / "removability/step=000001.jsonl") for run in (one, two)]
    outcomes = [[(row["id"], row["reason_no_context"], row["reason_with_context"]) for row in run] for run in records]
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == 3
    played = {
        name: [sum(map(int, file.read_text().split())) for file in sorted(folder.iterdir())]
        for name, folder in turns.items()
    }
    assert len(played["two"]) == 2
    assert min(played["two"]) > 0.3 * sum(played["two"])
    assert sum(played["two"]) == sum(played["one"])


@pytest.mark.usefixtures("winnable")
def test_a_resumed_run_plays_the_same_games(config, tmp_path):
    whole = fit(config, tmp_path / "whole")
    part = fit(config, tmp_path / "part", "--trainer.max_steps", "1")
    fit(config, part, "--ckpt_path", "last")
    losses = [[step["train/loss"] for step in training_metrics(run)] for run in (whole, part)]
    assert losses[0] == losses[1]
    records = [(run / "removability/step=000002.jsonl").read_text() for run in (whole, part)]
    assert records[0] == records[1]


@pytest.mark.usefixtures("winnable")
def test_predict_writes_transcripts(config, tmp_path):
    run = fit(config, tmp_path / "run", "--trainer.max_steps", "1")
    main(["predict", "--config", str(config), "--trainer.default_root_dir", str(run), "--ckpt_path", "last",
          "--trainer.callbacks+", "PredictionWriter"])  # fmt: skip
    predictions = rows(run / "predictions.jsonl")
    assert len(predictions) == 3
    assert all("\nUser: " in row["completion_with_context"] for row in predictions)


def test_a_limit_that_no_board_can_be_won_in_stops_before_training(config, tmp_path):
    with pytest.raises(ValueError, match="max_turns=2; raise it"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run/metrics.csv").exists()
