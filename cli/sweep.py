"""``python -m cli sweep FILE --count N``: a W&B sweep without a server.

The file is W&B's own (``wandb sweep FILE`` and ``wandb agent`` take it as it is); here Optuna proposes the values: grid
in the file's order, random, or bayes as TPE, and `early_terminate` as Hyperband pruning. Each run is a process of its
own that gets the command the agent would write, with the agent's WANDB_SWEEP_ID and WANDB_RUN_ID, so that the config
sees no difference; runs that log to W&B do so offline. Under DDP a fit is still one run: its ranks share the id, and
Lightning's logger writes on rank zero only.

    SWEEPS/NAME/journal.log     every trial, appended to; the same command continues a sweep that was broken off
    SWEEPS/NAME/RUN_ID/         the run's folder, by configs/sweeps/run_folder.yaml
    SWEEPS/NAME/RUN_ID.log      what the run printed
    SWEEPS/NAME/trials.csv      one row per trial

The metric is read from the run's metrics.csv (`RunCSVLogger`); the last value counts, as in W&B's summary. What a kill
left unfinished is started again with the same values, in a folder of its own; points of a grid whose runs failed are
tried again in the next sitting. What is proposed follows from the seed, the number of the trial and the results so far:
sittings change nothing.

One sitting at a time: it holds a lock, and so does its run, also where the sitting itself is killed. SIGTERM, SIGHUP
and Ctrl-C end the run first, then the sitting, with exit code 75.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from callbacks.run_checkpoint import PREEMPTED
from cli.locks import held_lock
from cli.stop_signals import handling_stop_signals
from cli.sweep_file import Choices, Parameter, Scalar, SweepFile, read_sweep_file

if TYPE_CHECKING:
    import optuna

POLL_S = 0.5
"""Between looks at a run's metrics."""
GRACE_S = 60.0
"""For a pruned run to end by itself after SIGTERM."""
MAX_FAILURES = 3
"""Runs in a row that may fail before the sweep stops: the fault is then probably not in the values."""


class SweepRunner:
    """Runs one sweep file."""

    def __init__(self, path: Path, sweeps: Path, seed: int = 0) -> None:
        """Open the study under ``sweeps / path.stem``, or create it.

        Args:
            path: the sweep file.
            sweeps: folder of all sweeps; runs see it as the environment variable SWEEPS_FOLDER.
            seed: of the proposals.

        Raises:
            ImportError: without Optuna.
            FileNotFoundError: if there is no such file.
            ValueError: if the file can't be understood, or the folder holds a sweep of another file.
        """
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ImportError('python -m cli sweep needs Optuna: pip install -e ".[sweep]".') from error
        self.file, self.name, self.sweeps = read_sweep_file(path), path.stem, sweeps
        self.folder = sweeps / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self._lock: tuple[int, ...] = ()
        self.failed: list[Mapping[str, Scalar]] = []
        """Values of the runs of this sitting that gave no value."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = JournalFileBackend(str(self.folder / "journal.log"))
        early = self.file.early_terminate
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name=self.name,
            pruner=optuna.pruners.NopPruner()
            if early is None
            else optuna.pruners.HyperbandPruner(min_resource=early.min_iter, reduction_factor=early.eta),
            direction=self.file.goal,
            load_if_exists=True,
        )
        signature = repr(self.file)
        if self.study.user_attrs.setdefault("file", signature) != signature:
            raise ValueError(
                f"{self.folder} holds a sweep of another version of {path}; rename the file or the folder."
            )
        self.study.set_user_attr("file", signature)

    def run(self, count: int) -> None:
        """Run trials until `count` (at most the file's run_cap) are finished in all sittings together, or the grid is.

        Raises:
            BlockingIOError: if another sitting, or a run that one has left behind, is at it.
            RuntimeError: if `MAX_FAILURES` runs in a row fail.
        """
        with held_lock(self.folder / "lock") as self._lock:
            self._run(count)

    def _run(self, count: int) -> None:
        self._requeue_interrupted()
        count = count if self.file.run_cap is None else min(count, self.file.run_cap)
        failures = 0
        while self._num_finished() < count and (trial := self._next_trial()) is not None:
            if self._run_trial(trial):
                failures = 0
            else:
                failures += 1
                self.failed.append(dict(trial.params))
            self._write_table()
            if failures == MAX_FAILURES:
                raise RuntimeError(
                    f"{MAX_FAILURES} runs in a row failed; see {self.folder}/*.log. Finished trials are kept, and the "
                    "same command goes on."
                )
        self._write_table()

    def _requeue_interrupted(self) -> None:
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params)

    def _num_finished(self) -> int:
        from optuna.trial import TrialState

        return len(self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def _next_trial(self) -> optuna.Trial | None:
        """The next trial; None where the grid is done."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        if self.file.method == "grid" and not any(trial.state == TrialState.WAITING for trial in trials):
            tried = [trial.params for trial in trials if trial.state != TrialState.FAIL] + self.failed
            left = [values for values in self.file.grid() if values not in tried]
            if not left:
                return None
            self.study.enqueue_trial(left[0])
        self.study.sampler = self._sampler(len(trials))
        return self.study.ask()

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """What proposes trial `number`: its draws are its own, so that no sitting starts them again."""
        import optuna

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.file.method == "bayes":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _run_trial(self, trial: optuna.Trial) -> bool:
        """Run it to its end, or prune it; whether it gave a value."""
        from optuna.trial import TrialState

        values = {name: suggest(trial, name, parameter) for name, parameter in self.file.parameters.items()}
        run_id = f"{self.name}-{trial.number:04d}"
        print(f"{run_id}: " + ", ".join(f"{name}={value}" for name, value in values.items()), flush=True)
        environment = {
            "WANDB_MODE": "offline",
            **os.environ,
            "WANDB_SWEEP_ID": self.name,
            "WANDB_RUN_ID": run_id,
            "SWEEPS_FOLDER": str(self.sweeps),
        }
        metrics = self.folder / run_id / "metrics.csv"
        reported: dict[int, float] = {}
        pruned = False
        with (self.folder / f"{run_id}.log").open("wb") as log:
            command = self.file.render(values, sys.executable)
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=self._lock
            )
            try:
                while process.poll() is None and not pruned:
                    time.sleep(POLL_S)
                    pruned = self._report(trial, metrics, reported)
            finally:
                _end(process)
        self._report(trial, metrics, reported)
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            print(f"{run_id}: pruned at {_last(reported):.4g}")
            return True
        if process.returncode != 0 or not reported or math.isnan(_last(reported)):
            self.study.tell(trial, state=TrialState.FAIL)
            why = f"its {self.file.metric} is not a number" if reported else f"logged no {self.file.metric}"
            if process.returncode != 0:
                why = f"ended with status {process.returncode}"
            print(f"{run_id}: {why}, see {self.folder / run_id}.log")
            return False
        self.study.tell(trial, _last(reported))
        print(f"{run_id}: {self.file.metric} {_last(reported):.4g}")
        return True

    def _report(self, trial: optuna.Trial, metrics: Path, reported: dict[int, float]) -> bool:
        """Hand new evaluations to the pruner, numbered from 1; whether it wants the run to end."""
        for step, value in read_metric(metrics, self.file.metric):
            if step not in reported:
                reported[step] = value
                trial.report(value, len(reported))
                if self.file.early_terminate is not None and trial.should_prune():
                    return True
        return False

    def _write_table(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        with (self.folder / "trials.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "state", self.file.metric, *self.file.parameters])
            for trial in trials:
                value = "" if trial.value is None else trial.value
                values = [trial.params.get(name, "") for name in self.file.parameters]
                writer.writerow([f"{self.name}-{trial.number:04d}", trial.state.name.lower(), value, *values])


def suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Scalar:
    """A value for one parameter."""
    if isinstance(parameter, Choices):
        return cast(Scalar, trial.suggest_categorical(name, parameter.values))
    if parameter.is_integer:
        return trial.suggest_int(name, int(parameter.low), int(parameter.high))
    return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.is_log, step=parameter.q)


def read_metric(path: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of one column of a metrics.csv that may still be written; empty where there is none yet."""
    if not path.exists():
        return []
    content = path.read_bytes()
    rows = csv.DictReader(content[: content.rfind(b"\n") + 1].decode().splitlines())  # a line may be half-written
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]


def _last(reported: Mapping[int, float]) -> float:
    return reported[max(reported)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have the process ended: asked first, then killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def sweep_cli(args: Sequence[str]) -> None:
    """Parse the arguments of ``python -m cli sweep`` and run it; usage errors exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m cli sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="W&B sweep file, such as those in configs/sweeps/")
    parser.add_argument("--count", type=int, required=True, help="finished trials, over all sittings")
    parser.add_argument("--folder", type=Path, default=Path("runs/sweeps"), help="of all sweeps")
    parser.add_argument("--seed", type=int, default=0, help="of the proposals")
    options = parser.parse_args(args)
    if options.count < 1:
        parser.error(f"--count is {options.count}; it must be at least 1.")
    try:
        runner = SweepRunner(options.file, options.folder, options.seed)
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.error(str(error))
    try:
        with handling_stop_signals(_interrupt):
            runner.run(options.count)
    except BlockingIOError:
        sys.exit(f"error: another sitting of this sweep, or a run that one has left behind, is at {runner.folder}.")
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr, flush=True)
        sys.exit(PREEMPTED)
    _print_best(runner.file, runner.study)


def _interrupt(signum: int) -> None:
    raise KeyboardInterrupt


def _print_best(file: SweepFile, study: optuna.Study) -> None:
    from optuna.trial import TrialState

    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if complete:
        values = ", ".join(f"{name}={value}" for name, value in study.best_params.items())
        print(f"best of {len(complete)}: {file.metric} {study.best_value:.4g} with {values}")
