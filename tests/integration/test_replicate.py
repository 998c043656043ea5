"""`python -m cli replicate` end to end with a tiny model: made once, kept, reported, continued after a kill."""

from __future__ import annotations

import fcntl
import gzip
import signal
from pathlib import Path

import pytest
import yaml

from callbacks.run_checkpoint import PREEMPTED
from cli.checkpoints import last_checkpoint
from cli.main import main
from cli.replicate import Study, read_study
from tests.integration.conftest import ROOT
from tests.integration.test_faults import stopped_by


@pytest.fixture
def study(tmp_path, tiny_config, monkeypatch):
    """Writes a study, with changes of its top level."""
    monkeypatch.chdir(ROOT)  # python -m cli finds the checkout

    def write(**changes) -> Path:
        content = {
            "fit": ["--config", str(tiny_config), "--trainer.max_steps", 2],
            "settings": {"cities/some": ["--data.num_test", 24]},
            "methods": {"opd": ["--model.consistency", "none"], "nca": ["--model.consistency", "no_context_anchor"]},
            "runs": [{"settings": ["cities/some"], "methods": ["opd", "nca"], "seeds": [1]}],
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


def replicate(path: Path, *args: str) -> Path:
    kept = path.parent / "kept"
    main(["replicate", str(path), "--kept", str(kept), "--work", str(path.parent / "work"), *args])
    return kept


def test_runs_are_made_once_kept_and_reported(study, tmp_path, capsys):
    path = study()
    kept = replicate(path, "--jobs", "2")
    assert "2 to make" in capsys.readouterr().out
    run = kept / "cities/some/opd/seed=1"
    assert sorted(file.name for file in run.iterdir()) == ["command.txt", "config.yaml", "metrics.csv", "removability"]
    lines = gzip.decompress((run / "removability/step=000002.jsonl.gz").read_bytes()).splitlines()
    assert len(lines) == 4
    assert not (tmp_path / "work/cities/some/opd/seed=1").exists()

    written = (run / "metrics.csv").stat().st_mtime_ns
    replicate(path)
    assert "0 to make" in capsys.readouterr().out
    assert (run / "metrics.csv").stat().st_mtime_ns == written

    main(["report", str(run), str(kept / "cities/some/nca/seed=1"), "--output", str(tmp_path / "report")])
    capsys.readouterr()
    text = (tmp_path / "report/removability.md").read_text()
    assert "item by item" not in text, "the compressed records were not found"


def test_a_killed_run_goes_on_from_its_checkpoint(study, tmp_path, runs):
    path = study(runs=[{"settings": ["cities/some"], "methods": ["opd"], "seeds": [1]}])
    (run,) = read_study(path)
    folder = tmp_path / "work" / run.name
    main(["fit", *run.flags, "--trainer.max_steps", "1", "--trainer.default_root_dir", str(folder)])
    kept = replicate(path)
    main(["fit", *run.flags, "--trainer.default_root_dir", str(tmp_path / "whole")])
    losses = [[row["train/loss"] for row in runs.metrics(made)] for made in (kept / run.name, tmp_path / "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_saves_its_run_and_begins_no_other(study, tmp_path, tiny_config, runs, signum):
    path = study(fit=["--config", str(tiny_config), "--trainer.max_steps", 100000])
    folders = ("--kept", str(tmp_path / "kept"), "--work", str(tmp_path / "work"))
    folder = tmp_path / "work/cities/some/opd/seed=1"
    words = ["replicate", str(path), *folders]
    code, output, errors = stopped_by(signum, words, folder / "checkpoints/step=000003.ckpt")
    assert code == PREEMPTED, errors
    assert f"{signum.name}: stopped." in output
    assert last_checkpoint(folder).name == f"step={len(runs.metrics(folder)):06d}.ckpt"  # the run has ended
    assert not (tmp_path / "work/cities/some/nca/seed=1").exists()


def test_a_run_that_another_process_makes_is_left_alone(study, tmp_path, capsys):
    path = study(runs=[{"settings": ["cities/some"], "methods": ["opd"], "seeds": [1]}])
    (run,) = read_study(path)
    folder = tmp_path / "work" / run.name
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("of the other one\n")
    with (folder.parent / "seed=1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="1 runs failed"):
            replicate(path)
        assert f"another process makes it in {folder}" in capsys.readouterr().out
        assert (folder / "metrics.csv").read_text() == "of the other one\n"
    replicate(path)
    assert not folder.exists()


def test_a_run_that_another_study_has_kept_meanwhile_is_not_made_again(study, tmp_path):
    path = study(runs=[{"settings": ["cities/some"], "methods": ["opd"], "seeds": [1]}])
    late = Study(read_study(path), tmp_path / "kept", tmp_path / "work")
    missing = late.missing
    kept = replicate(path) / missing[0].name / "metrics.csv"
    written = kept.stat().st_mtime_ns
    late._make_one(missing[0], jobs=1)
    assert kept.stat().st_mtime_ns == written


def test_a_half_made_run_is_not_continued_under_other_flags(study, tmp_path):
    one = [{"settings": ["cities/some"], "methods": ["opd"], "seeds": [1]}]
    path = study(runs=one)
    (run,) = read_study(path)
    folder = tmp_path / "work" / run.name
    folder.mkdir(parents=True)
    (folder / "command.txt").write_text("python -m cli fit --model.consistency_coef 0.1\n")
    Study(read_study(path), tmp_path / "kept", tmp_path / "work")  # nothing to go on with: it would start again
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step=000001.ckpt").touch()
    with pytest.raises(ValueError, match=r"seed=1/command\.txt has other flags"):
        Study(read_study(path), tmp_path / "kept", tmp_path / "work")


def test_a_failed_run_is_named_and_nothing_of_it_is_kept(study, tmp_path):
    wrong = {"opd": ["--model.consistency", "nonsense"]}
    path = study(methods=wrong, runs=[{"settings": ["cities/some"], "methods": ["opd"], "seeds": [1]}])
    with pytest.raises(SystemExit, match="1 runs failed: cities/some/opd/seed=1"):
        replicate(path)
    assert not (tmp_path / "kept").exists()
    assert "nonsense" in (tmp_path / "work/cities/some/opd/seed=1/fit.log").read_text()


def test_runs_kept_under_other_flags_stop_the_study(study, tmp_path):
    path = study()
    (run,) = [run for run in read_study(path) if run.method == "opd"]
    folder = tmp_path / "kept" / run.name
    folder.mkdir(parents=True)
    (folder / "command.txt").write_text("python -m cli fit --model.consistency_coef 0.1\n")
    with pytest.raises(ValueError, match="other flags"):
        Study(read_study(path), tmp_path / "kept", tmp_path / "work")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "no others"),
        ({"methods": {"opd": "--model.consistency none"}}, "methods.opd is"),
        ({"runs": [{"settings": ["cities/some"], "methods": ["sft"], "seeds": [1]}]}, r"methods \['sft'\]"),
        ({"runs": [{"settings": ["cities/some"], "methods": ["opd"]}]}, "keys settings, methods and seeds"),
        ({"runs": 3}, "not iterable"),
    ],
)
def test_a_broken_study_is_refused(study, changes, message):
    with pytest.raises(ValueError, match=message):
        read_study(study(**changes))


def test_the_shipped_study_parses_and_lists(capsys):
    main(["replicate", str(ROOT / "configs/replication/study.yaml"), "--list", "--kept", str(ROOT / "nowhere")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) > 20
