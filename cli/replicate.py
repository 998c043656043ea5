"""``python -m cli replicate FILE``: every run of a study, one after the other or a few at a time, over many sittings.

FILE names settings and methods, each with the flags that make it, and which of them are run with which seeds::

    fit: [--config, configs/quickstart.yaml]           flags of every run, before all others
    settings: {geography: [--data.context, geography_demonstrations]}
    methods: {opd: [--model.consistency, none]}
    runs:                                               in this order: by block, seed, setting, method
      - {settings: [geography], methods: [opd], seeds: [3, 4, 5]}

A run is ``python -m cli fit`` with these flags, in a folder of its own:

    WORK/SETTING/METHOD/seed=N/      the run's folder while it goes on, checkpoints and all; fit.log is what it printed
    KEPT/SETTING/METHOD/seed=N/      what is kept of a finished one: config.yaml, metrics.csv, and the records of its
                                     evaluations, compressed; `report` reads it as it reads a run

A run that is kept is not made again. One that was killed goes on from its last checkpoint. One that was kept, or begun,
under other flags than FILE's stops the study: its folder would hold the results of something else.

SIGTERM, SIGHUP and Ctrl-C end the runs in progress, each with a checkpoint, and then the study, with exit code 75. A
run outlives a study that is killed otherwise; it holds a lock on WORK/SETTING/METHOD/seed=N.lock, and while it does,
another study leaves this run alone.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from callbacks.durable_files import replace
from callbacks.run_checkpoint import PREEMPTED
from cli.checkpoints import last_checkpoint
from cli.locks import held_lock
from cli.stop_signals import handling_stop_signals

KEPT_FILES = ("config.yaml", "metrics.csv")
KEPT_FOLDERS = ("removability", "probes", "mechanism")
COMMAND_FILE = "command.txt"


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run of a study."""

    setting: str
    method: str
    seed: int
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder, below those of the study."""
        return f"{self.setting}/{self.method}/seed={self.seed}"


def read_study(path: Path) -> list[StudyRun]:
    """Read FILE; runs in their order, none twice.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the key that is missing, unknown, or of the wrong kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No study {path}; this project's is configs/replication/study.yaml.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.keys() != {"fit", "settings", "methods", "runs"}:
        raise ValueError(f"{path}: a study has the keys fit, settings, methods and runs, and no others.")
    try:
        fit = _flags("fit", content["fit"])
        settings = {name: _flags(f"settings.{name}", flags) for name, flags in content["settings"].items()}
        methods = {name: _flags(f"methods.{name}", flags) for name, flags in content["methods"].items()}
        runs = [run for block in content["runs"] for run in _runs_of(block, fit, settings, methods)]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return list({run.name: run for run in runs}.values())


def _flags(key: str, words: Any) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
        raise ValueError(f"{key} is {words!r}; it must be a list of words of a command line.")
    # YAML reads a bare true as a boolean, which would reach the command line as Python's True.
    return tuple(str(word).lower() if isinstance(word, bool) else str(word) for word in words)


def _runs_of(
    block: Mapping[str, Any],
    fit: tuple[str, ...],
    settings: Mapping[str, tuple[str, ...]],
    methods: Mapping[str, tuple[str, ...]],
) -> Iterator[StudyRun]:
    if block.keys() != {"settings", "methods", "seeds"}:
        raise ValueError(f"a block of runs has the keys settings, methods and seeds; found {sorted(block)}.")
    for key, names, known in (("settings", block["settings"], settings), ("methods", block["methods"], methods)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"runs name the {key} {unknown}; {key} has {sorted(known)}.")
    for seed in block["seeds"]:
        for setting in block["settings"]:
            for method in block["methods"]:
                flags = (*fit, *settings[setting], *methods[method], "--seed_everything", str(seed))
                yield StudyRun(setting, method, seed, flags)


class Study:
    """Makes the runs of a study that are not kept yet."""

    def __init__(self, runs: Sequence[StudyRun], kept: Path, work: Path) -> None:
        """Compare what is kept with the plan.

        Raises:
            ValueError: if a run was kept, or begun, by other flags.
        """
        self.runs, self.kept, self.work = runs, kept, work
        self.stopped_by: int | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()
        for run, place in itertools.product(runs, (kept, work)):
            path = place / run.name / COMMAND_FILE
            counts = place is kept or any((path.parent / "checkpoints").glob("*.ckpt"))  # what would be gone on with
            if counts and path.exists() and path.read_text(encoding="utf-8") != _command_text(run):
                raise ValueError(
                    f"{path} has other flags than the study's file gives {run.name} now. Move its folder away to make "
                    "the run again, or undo the change."
                )

    @property
    def missing(self) -> list[StudyRun]:
        """Runs that are not kept."""
        return [run for run in self.runs if not (self.kept / run.name / COMMAND_FILE).exists()]

    def make(self, jobs: int, deadline: float | None = None) -> list[StudyRun]:
        """Make what is missing, `jobs` runs side by side; return those that failed or, after a signal, are not made.

        Args:
            jobs: processes; each gets an equal share of the cores.
            deadline: `time.monotonic` from which on no run is begun; None: until all are made.
        """

        def one(run: StudyRun) -> bool:
            if self.stopped_by is not None:
                return False
            return (deadline is not None and time.monotonic() > deadline) or self._make_one(run, jobs)

        missing = self.missing
        with handling_stop_signals(self._stop), ThreadPoolExecutor(jobs) as pool:
            made = list(pool.map(one, missing))
        return [run for run, is_made in zip(missing, made, strict=True) if not is_made]

    def _stop(self, signum: int) -> None:
        """Hand a stop signal on to the runs, which save a checkpoint; no further run is begun."""
        self.stopped_by = signum
        for process in list(self._processes):
            process.terminate()

    def _make_one(self, run: StudyRun, jobs: int) -> bool:
        folder = self.work / run.name
        try:
            with held_lock(folder.parent / f"{folder.name}.lock") as lock:
                if (self.kept / run.name / COMMAND_FILE).exists():  # by another study, since this one began
                    return True
                return self._make_locked(run, folder, jobs, lock)
        except BlockingIOError:
            print(f"{run.name}: another process makes it in {folder}; let it end, or end it.", flush=True)
            return False

    def _make_locked(self, run: StudyRun, folder: Path, jobs: int, lock: tuple[int, ...]) -> bool:
        try:
            resume = ["--ckpt_path", str(last_checkpoint(folder))]
        except FileNotFoundError:
            shutil.rmtree(folder, ignore_errors=True)
            resume = []
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / COMMAND_FILE, _command_text(run).encode())
        command = [sys.executable, "-m", "cli", "fit", *run.flags, "--trainer.default_root_dir", str(folder), *resume]
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "TOKENIZERS_PARALLELISM": "false"}
        started = time.monotonic()
        with (folder / "fit.log").open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches it as the signal that leaves a checkpoint.
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=lock,  # it lives as long as the run
            )
        self._processes.add(process)
        if self.stopped_by is not None:  # the signal came before the process was noted
            process.terminate()
        status = process.wait()
        self._processes.discard(process)
        if status != 0:
            print(f"{run.name}: ended with status {status}, see {folder / 'fit.log'}", flush=True)
            return False
        self._keep(run, folder)
        print(f"{run.name}: made in {time.monotonic() - started:.0f} s", flush=True)
        return True

    def _keep(self, run: StudyRun, folder: Path) -> None:
        """Copy what is worth keeping, its command last; then the run's folder, which has checkpoints, may go."""
        kept = self.kept / run.name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for name in KEPT_FILES:
            shutil.copyfile(folder / name, kept / name)
        for path in sorted(path for name in KEPT_FOLDERS for path in (folder / name).glob("*.jsonl")):
            target = kept / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            if "step=" in path.name:  # records, the bulk
                content = gzip.compress(path.read_bytes(), mtime=0)  # no time in it: equal records, equal files
                target.with_name(path.name + ".gz").write_bytes(content)
            else:
                shutil.copyfile(path, target)
        replace(kept / COMMAND_FILE, _command_text(run).encode())
        shutil.rmtree(folder)


def _command_text(run: StudyRun) -> str:
    return " ".join(("python -m cli fit", *run.flags)) + "\n"


def replicate_cli(args: Sequence[str]) -> None:
    """Parse the arguments of ``python -m cli replicate`` and make the runs; a failed run gives status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m cli replicate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="such as configs/replication/study.yaml")
    parser.add_argument("--kept", type=Path, default=Path("docs/replication/runs"))
    parser.add_argument("--work", type=Path, default=Path("runs/replication"))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--minutes", type=float, help="begin no run after so many; default: make all")
    parser.add_argument("--list", action="store_true", help="say which runs are kept and which are missing, make none")
    options = parser.parse_args(args)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1.")
    try:
        study = Study(read_study(options.file), options.kept, options.work)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    missing = {run.name for run in study.missing}
    if options.list:
        for run in study.runs:
            print("missing" if run.name in missing else "kept   ", run.name)
        return
    print(f"{len(study.runs)} runs, {len(missing)} to make", flush=True)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    failed = study.make(options.jobs, deadline)
    if study.stopped_by is not None:
        name = signal.Signals(study.stopped_by).name
        print(f"{name}: stopped. Runs in progress left checkpoints; the same command goes on with them.", flush=True)
        sys.exit(PREEMPTED)
    if failed:
        sys.exit(f"error: {len(failed)} runs failed: {', '.join(run.name for run in failed)}. The others are kept.")
