"""A run that is killed ten times at random points and continued each time is the run that was not."""

from __future__ import annotations

import pytest

from cli.checkpoints import last_checkpoint
from tests.integration.killing import STEPS, kill, same_files


@pytest.mark.slow
def test_ten_kills_change_nothing(runs, weights_equal):
    whole = runs.fit("whole", *STEPS)
    kills, _ = kill(runs, "killed", STEPS)
    killed = runs.root / "killed"
    assert [one["codes"] for one in kills] == [[-9]] * 10
    assert len({one["row"] for one in kills}) == 10
    same_files(killed, whole)
    weights_equal(runs.weights(killed, 46), runs.weights(whole, 46), exactly=True)
    assert [path.name for path in (killed / "checkpoints").iterdir() if "unfinished" in path.name] == []


@pytest.mark.parametrize("kept", ["1", "2"])
def test_before_the_first_checkpoint_auto_starts_again(runs, kept, capsys):
    """What the first sitting left is kept beside the run; without `auto` it is in the way."""
    whole = runs.fit("whole", "--trainer.max_steps", "2", "--removability.at_start", "true")
    run = runs.fit("run", "--trainer.max_steps", "2", "--removability.at_start", "true", "--ckpt_path", "auto")
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    for _ in range(int(kept)):
        runs.fit("run", "--trainer.max_steps", "2", "--removability.at_start", "true", "--ckpt_path", "auto")
        if kept == "2":
            for path in (run / "checkpoints").iterdir():
                path.unlink()
    assert f"it is {runs.root}/run.unsaved-1 now" in capsys.readouterr().out
    assert sorted(path.name for path in runs.root.glob("run*")) == [
        "run", *(f"run.unsaved-{n}" for n in range(1, int(kept) + 1))
    ]  # fmt: skip
    assert runs.metrics(run) == runs.metrics(whole)
    assert [line["step"] for line in runs.summaries(run)] == [0, 2]


def test_auto_continues_where_there_is_a_checkpoint(runs):
    runs.fit("run", "--trainer.max_steps", "2", "--ckpt_path", "auto")
    run = runs.fit("run", "--ckpt_path", "auto")
    assert [row["step"] for row in runs.metrics(run)] == ["1", "2", "3"]
    assert last_checkpoint(run).name == "step=000003.ckpt"
