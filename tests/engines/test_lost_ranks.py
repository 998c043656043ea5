"""Two CPU ranks that are killed, lose one of them, or are told to stop: no hang, a message, the same run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli.checkpoints import last_checkpoint
from lightning_modules.checkpoint_folders import LIST
from tests.integration.conftest import CONFIG, ROOT, Runs
from tests.integration.killing import STEPS, kill, same_files

ZERO2 = pytest.mark.skipif("LOST_RANKS_ZERO2" not in os.environ, reason="takes minutes: set LOST_RANKS_ZERO2=1")
STRATEGIES = ("ddp", pytest.param("zero2", marks=ZERO2))


@pytest.fixture(scope="module", params=STRATEGIES)
def strategy(request) -> str:
    if request.param != "ddp" and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: make test-engines installs it")
    return request.param


@pytest.fixture
def runs(tmp_path, tiny_model_dir) -> Runs:
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(model=tiny_model_dir))
    return Runs(tmp_path, tmp_path / "tiny.yaml")


def on_two_ranks(strategy: str, *args: str) -> tuple[str, ...]:
    steps = list(STEPS)
    if strategy != "ddp":  # DeepSpeed keeps no moving average
        steps[steps.index("ema")] = "frozen"
    return (*steps, "--config", str(ROOT / f"configs/strategy/{strategy}.yaml"), "--trainer.devices", "2", *args)


def test_ten_kills_of_two_ranks_change_nothing(runs, strategy):
    """Every number of every file is the same to the last digit: gloo adds two ranks' numbers in one order."""
    args = on_two_ranks(strategy)
    kill(runs, "whole", args, num_ranks=2, num_kills=0)
    kills, _ = kill(runs, "killed", args, num_ranks=2)
    assert [one["codes"] for one in kills] == [[-9, -9]] * 10
    same_files(runs.root / "killed", runs.root / "whole")


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_a_kill_at_each_stage_changes_nothing(runs, stage):
    """Both ranks by kill -9, a random moment after the fourth step."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: make test-engines installs it")
    args = on_two_ranks(stage, "--trainer.max_steps", "7")
    if stage == "zero3":  # the tiny model's parameters are all below the default
        args += ("--trainer.strategy.persistence_threshold", "0")
    kill(runs, "whole", args, num_ranks=2, num_kills=0)
    (end,), _ = kill(runs, "killed", args, num_ranks=2, num_kills=1)
    assert end["codes"] == [-9, -9]
    assert 4 <= end["row"] < 7
    same_files(runs.root / "killed", runs.root / "whole")


@pytest.mark.parametrize("lost", ["0", "1"])
def test_a_rank_that_dies_takes_the_other_with_it(runs, strategy, lost):
    """Whether the first rank or the second dies, the other ends by itself, says why, and the run can be continued."""
    args = on_two_ranks(strategy, "--trainer.max_steps", "9")
    (end,), words = kill(runs, "run", args, num_ranks=2, num_kills=1, signals={lost: "SIGKILL"})
    assert end["codes"][int(lost)] == -9
    other = 1 - int(lost)
    assert end["codes"][other] == 1
    assert f"Rank {other} of 2 has lost another process of this run" in words
    assert "Continue with --ckpt_path last" in words
    assert [row["step"] for row in Runs.metrics(runs.root / "run")] == [str(step) for step in range(1, 10)]


def test_a_rank_that_does_not_answer_is_given_up(runs, strategy):
    """It is stopped, not dead: its connections stay open, and only the timeout tells."""
    timeout = ("--trainer.strategy.init_args.timeout", "0:00:06")
    if strategy == "ddp":
        timeout = ("--trainer.strategy", "lightning.pytorch.strategies.DDPStrategy", *timeout)
    args = on_two_ranks(strategy, "--trainer.max_steps", "9", *timeout)
    (end,), words = kill(runs, "run", args, num_ranks=2, num_kills=1, signals={"1": "SIGSTOP"})
    assert end["codes"] == [1, -9]
    assert "Rank 0 of 2 has lost another process of this run" in words
    assert len(Runs.metrics(runs.root / "run")) == 9


@pytest.mark.parametrize("told", ["0", "1"])
def test_preemption_of_one_rank_is_that_of_all(runs, strategy, told):
    """All save and stop after the same step; rank 0 has the exit code for it, whoever got the signal."""
    args = on_two_ranks(strategy, "--trainer.max_steps", "9", "--checkpoint.every_n_train_steps", "50")
    kill(runs, "whole", args, num_ranks=2, num_kills=0)
    (end,), words = kill(runs, "run", args, num_ranks=2, num_kills=1, signals={told: "SIGTERM"})
    assert end["codes"] == [75, 0]
    assert "saved" in words
    same_files(runs.root / "run", runs.root / "whole")


def test_a_folder_that_lacks_a_share_is_passed_over(runs, strategy, capsys):
    if strategy == "ddp":
        pytest.skip("its checkpoints are files")
    args = on_two_ranks(strategy, "--trainer.max_steps", "4", "--checkpoint.save_top_k", "-1")
    kill(runs, "run", args, num_ranks=2, num_kills=0)
    run = runs.root / "run"
    newest = last_checkpoint(run)
    assert newest.name == "step=000004.ckpt"
    (share,) = newest.glob("checkpoint/*rank_1*optim_states.pt")
    content = share.read_bytes()
    share.write_bytes(content[:-100])
    assert last_checkpoint(run).name == "step=000002.ckpt"
    assert f"{share.name} has {len(content) - 100} bytes in place of {len(content)}" in capsys.readouterr().out
    share.unlink()
    assert last_checkpoint(run).name == "step=000002.ckpt"
    assert f"{share.name} is missing" in capsys.readouterr().out
    share.write_bytes(content)
    Path(newest, LIST).unlink()
    assert last_checkpoint(run).name == "step=000002.ckpt"
