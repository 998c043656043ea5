"""`python -m cli sweep` end to end: real fits of a tiny model, W&B offline, Optuna's study on disk."""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")

import wandb

from callbacks.run_checkpoint import PREEMPTED
from cli.main import main
from cli.sweep_file import Choices, Scalar, read_sweep_file
from tests.integration.test_faults import stopped_by

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "configs/sweeps").glob("*.yaml") if path.name != "run_folder.yaml")
SMALLER = ["--trainer.max_steps=2", "--removability.every_n_steps=1"]


def write_sweep(folder: Path, config: Path, **changes) -> Path:
    path = folder / "tiny.yaml"
    fit = [f"--config={config}", f"--config={ROOT / 'configs/sweeps/run_folder.yaml'}"]
    content = {
        "program": "cli",
        "method": "grid",
        "metric": {"name": "removability/both_correct", "goal": "maximize"},
        "parameters": {"model.consistency_coef": {"values": [0.25, 1.0]}, "seed_everything": {"values": [3]}},
        "command": ["${env}", "python", "-m", "cli", "fit", *fit, *SMALLER, "${args}"],
    }
    path.write_text(yaml.safe_dump(content | changes))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(ROOT)  # python -m cli finds the checkout

    def run(count: int, **changes) -> Path:
        path = write_sweep(tmp_path, tiny_config, **changes)
        main(["sweep", str(path), "--count", str(count), "--folder", str(tmp_path / "sweeps")])
        return tmp_path / "sweeps/tiny"

    return run


def test_two_parameters_end_to_end_and_on_after_a_stop(sweep, capsys):
    folder = sweep(1)
    assert [row["state"] for row in rows(folder / "trials.csv")] == ["complete"]
    sweep(5)  # the grid has two points: it ends there
    trials = rows(folder / "trials.csv")
    assert [(row["run"], row["model.consistency_coef"]) for row in trials] == [
        ("tiny-0000", "0.25"),
        ("tiny-0001", "1.0"),
    ]
    for row in trials:
        run = folder / row["run"]
        config = yaml.safe_load((run / "config.yaml").read_text())
        # the values, and what refers to them through ${...}
        assert config["model"]["consistency_coef"] == float(row["model.consistency_coef"])
        assert config["model"]["seed"] == config["data"]["init_args"]["seed"] == config["seed_everything"] == 3
        logged = [line for line in rows(run / "metrics.csv") if line.get("removability/both_correct")]
        assert float(row["removability/both_correct"]) == float(logged[-1]["removability/both_correct"])
        offline = [path.name for path in run.glob("wandb/offline-run-*")]
        assert [name.endswith(row["run"]) for name in offline] == [True]  # one W&B run a fit, under its own id
    assert "best of 2" in capsys.readouterr().out


def test_interrupted_trials_start_again_and_another_file_is_refused(sweep, tmp_path, tiny_config, capsys):
    from cli.sweep import SweepRunner, suggest

    runner = SweepRunner(write_sweep(tmp_path, tiny_config), tmp_path / "sweeps")
    trial = runner._next_trial()  # as a kill leaves it: asked for, never told
    for name, parameter in runner.file.parameters.items():
        suggest(trial, name, parameter)
    folder = sweep(1)
    states = [(row["state"], row["model.consistency_coef"]) for row in rows(folder / "trials.csv")]
    assert states == [("fail", "0.25"), ("complete", "0.25")]
    with pytest.raises(SystemExit):
        sweep(2, method="random")
    assert "holds a sweep of another version" in capsys.readouterr().err


SCORES = (
    "import os,pathlib,sys; d=pathlib.Path(os.environ['SWEEPS_FOLDER'],os.environ['WANDB_SWEEP_ID'],"
    "os.environ['WANDB_RUN_ID']); {check}; d.mkdir(); (d/'metrics.csv').write_text('step,score\\n1,2\\n')"
)
"""A program that logs one score, unless `check` ends it."""


def scores(check: str = "0") -> dict:
    """What makes a sweep of that program."""
    command = ["${interpreter}", "-c", SCORES.format(check=check), "${args}"]
    return {"metric": {"name": "score", "goal": "maximize"}, "command": command}


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_second_sitting_goes_on_with_other_values(sweep, tmp_path, method):
    changes = {"method": method, "parameters": {"v": {"min": 0.0, "max": 1.0}}, **scores()}
    sweep(2, **changes)
    halves = [row["v"] for row in rows(sweep(4, **changes) / "trials.csv")]
    assert len({*halves}) == 4
    shutil.rmtree(tmp_path / "sweeps")
    assert [row["v"] for row in rows(sweep(4, **changes) / "trials.csv")] == halves


def test_a_point_of_the_grid_that_failed_is_tried_again_in_the_next_sitting(sweep, tmp_path):
    allowed = tmp_path / "disk_is_free"
    check = f"sys.argv[1] == '--v=2' and not os.path.exists({str(allowed)!r}) and sys.exit(1)"
    changes = {"parameters": {"v": {"values": [1, 2, 3]}}, **scores(check)}
    states = [(row["v"], row["state"]) for row in rows(sweep(9, **changes) / "trials.csv")]
    assert states == [("1", "complete"), ("2", "fail"), ("3", "complete")]
    allowed.touch()
    states = [(row["v"], row["state"]) for row in rows(sweep(9, **changes) / "trials.csv")]
    assert states == [("1", "complete"), ("2", "fail"), ("3", "complete"), ("2", "complete")]


def test_a_value_that_is_no_number_is_a_failure(sweep, capsys):
    """Optuna takes none; a grid would offer such a point for ever."""
    one = "step,score\\n1,' + ('nan' if sys.argv[1] == '--v=1' else '2') + '\\n"
    command = ["${interpreter}", "-c", SCORES.format(check="0").replace("step,score\\n1,2\\n", one), "${args}"]
    folder = sweep(9, **(scores() | {"command": command, "parameters": {"v": {"values": [1, 2]}}}))
    assert [(row["v"], row["state"]) for row in rows(folder / "trials.csv")] == [("1", "fail"), ("2", "complete")]
    assert "its score is not a number" in capsys.readouterr().out


def test_a_second_sitting_at_the_same_time_is_refused(sweep, tmp_path):
    changes = {"parameters": {"v": {"values": [1, 2]}}, **scores()}
    folder = sweep(1, **changes)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another sitting of this sweep"):
            sweep(2, **changes)
    assert [row["state"] for row in rows(sweep(2, **changes) / "trials.csv")] == ["complete", "complete"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_ends_its_run_first(tmp_path, tiny_config, signum):
    steps = ["--trainer.max_steps=100000"]
    path = write_sweep(tmp_path, tiny_config)
    content = yaml.safe_load(path.read_text())
    content["command"][-1:-1] = steps
    path.write_text(yaml.safe_dump(content))
    run = tmp_path / "sweeps/tiny/tiny-0000"
    words = ["sweep", str(path), "--count", "1", "--folder", str(tmp_path / "sweeps")]
    code, _, errors = stopped_by(signum, words, run / "checkpoints/step=000003.ckpt")
    assert code == PREEMPTED, errors
    assert "Stopped; the same command goes on." in errors
    log = (tmp_path / "sweeps/tiny/tiny-0000.log").read_text()
    assert "SIGTERM: saved" in log
    with (tmp_path / "sweeps/tiny/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the run holds it no longer


def test_run_cap_holds_and_may_be_raised(sweep):
    changes = {"parameters": {"v": {"values": [1, 2, 3]}}, **scores()}
    assert len(rows(sweep(9, run_cap=1, **changes) / "trials.csv")) == 1
    assert len(rows(sweep(9, run_cap=2, **changes) / "trials.csv")) == 2


def test_a_command_that_does_not_exist_ends_in_a_line(sweep):
    with pytest.raises(SystemExit, match="/nowhere/python"):
        sweep(1, **(scores() | {"command": ["/nowhere/python", "${args}"]}))


def test_poor_runs_are_pruned(sweep):
    """The second run is worse at its first evaluation, and does not get to its second."""
    step = "import sys,time,os,pathlib; v=float(sys.argv[1].split('=')[1]);"
    step += "d=pathlib.Path(os.environ['SWEEPS_FOLDER'],os.environ['WANDB_SWEEP_ID'],os.environ['WANDB_RUN_ID']);"
    step += "d.mkdir(parents=True); f=(d/'metrics.csv').open('w'); f.write('step,score\\n');"
    step += "[(f.write(f'{i},{v}\\n'),f.flush(),time.sleep(0.3 if v>0 else 2.0)) for i in range(1,6)]"
    folder = sweep(
        6,
        metric={"name": "score", "goal": "maximize"},
        parameters={"v": {"values": [6, 5, 4, 0, -1, -2]}},
        command=["${interpreter}", "-c", step, "${args}"],
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
    )
    trials = rows(folder / "trials.csv")
    assert trials[0]["state"] == "complete"
    pruned = [row["run"] for row in trials if row["state"] == "pruned"]
    assert pruned
    assert all(len(rows(folder / run / "metrics.csv")) < 5 for run in pruned)


def test_failing_runs_stop_the_sweep_and_say_where_to_look(sweep, capsys):
    command = ["${interpreter}", "-c", "raise SystemExit(7)", "${args}"]
    with pytest.raises(SystemExit, match="3 runs in a row failed"):
        sweep(9, command=command, method="random", parameters={"v": {"min": 0.0, "max": 1.0}})
    assert "ended with status 7" in capsys.readouterr().out


@pytest.fixture
def as_the_agent(tiny_model_dir, tmp_path, monkeypatch):
    """The words of a sweep file with the agent's variables set, made smaller at the end; and the run's folder."""

    def words(path: Path) -> tuple[list[str], dict[str, Scalar]]:
        file = read_sweep_file(path)
        values = {key: p.values[-1] if isinstance(p, Choices) else p.low for key, p in file.parameters.items()}
        smaller = [*SMALLER, "--trainer.callbacks=[]", f"--model.student.name={tiny_model_dir}"]
        smaller += ["--model.student.gguf_file=null", "--removability.max_items=2", "--data.batch_size=4"]
        return [*file.render(values, sys.executable), *smaller], values

    variables = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "r1", "SWEEPS_FOLDER": str(tmp_path)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    return words, tmp_path / "abc/r1"


@pytest.fixture
def wandb_disabled(monkeypatch):
    """Nothing is logged. W&B keeps its variables, and a run not finished, for its process: here it forgets both."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    yield
    wandb.finish()
    wandb.teardown()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_command_reaches_the_config(path, as_the_agent, wandb_disabled):
    words, run = as_the_agent
    command, values = words(path)
    assert command[:4] == ["/usr/bin/env", sys.executable, "-m", "cli"]
    main(command[4:])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["default_root_dir"] == str(run)
    for key, value in values.items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value
    summary = [json.loads(line) for line in (run / "removability/summary.jsonl").open()]
    assert summary[-1]["step"] == 2


def test_a_shipped_command_in_a_process_of_its_own(as_the_agent):
    words, run = as_the_agent
    done = subprocess.run(words(FILES[0])[0], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / "removability/summary.jsonl").is_file()
    assert [path.name.endswith("-r1") for path in run.glob("wandb/offline-run-*")] == [True]
