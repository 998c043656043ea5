"""One of two CPU ranks that make run after run through the command line in one process group: ``two_ranks.py FILE``.

FILE holds a JSON list of jobs; see `Job`. Importing everything costs more than all runs of a tiny model together, so
one pair of processes makes them all.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cli.main import main
from lightning_modules.context_distillation import ContextDistillation, NonFiniteLossError
from lightning_modules.scoring import ViewScorer
from lightning_modules.step_gradient import StepGradient

RANK = int(os.environ["RANK"])


class Crash(Exception):
    """What ends a run as a kill would: after an update, before its row and its checkpoint are written."""


@dataclass(frozen=True)
class Job:
    """One command, and what happens to it on the way."""

    args: list[str]
    folder: str
    """The run's folder. Written there: micro_batches.rank<N>, one count per step, and error.txt."""
    crash_at: int | None = None
    """Completed steps at which every rank crashes."""
    poison_at: int | None = None
    """Completed steps at which rank 1 alone gets a gradient that is not a number, from a loss that is one."""
    fails: bool = False
    """Errors are wanted; they are written to error.txt, with whether the student's weights are as before the step."""


def run(job: Job) -> None:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    before: dict[str, Any] = {}

    def log_step(own, self, *rest, **named):
        if self.trainer.global_step == job.crash_at:
            raise Crash
        own(self, *rest, **named)

    def plan(own, self, *args):
        batches = own(self, *args)
        with (folder / f"micro_batches.rank{RANK}").open("a") as file:
            file.write(f"{len(batches)}\n")
        return batches

    def add(own, self, rollouts, coef, scale, backward):
        if job.poison_at is not None and before["trainer"].global_step == job.poison_at:
            before.setdefault("weights", weights(self.scorer.student))
            scale = float("nan") if RANK == 1 else scale
        return own(self, rollouts, coef, scale, backward)

    def on_train_start(own, self):
        before["trainer"], before["student"] = self.trainer, self.student
        own(self)

    replaced = [
        (ContextDistillation, "_log_step", log_step),
        (ViewScorer, "plan", plan),
        (StepGradient, "add", add),
        (ContextDistillation, "on_train_start", on_train_start),
    ]
    owns = [getattr(owner, name) for owner, name, _ in replaced]
    for (owner, name, new), own in zip(replaced, owns, strict=True):
        setattr(owner, name, bind(new, own))
    try:
        main(job.args)
    except Crash:
        pass
    except (ValueError, RuntimeError, NonFiniteLossError) as error:
        if not job.fails:
            raise
        unchanged = "weights" in before and all(
            torch.equal(a, b) for a, b in zip(before["weights"], weights(before["student"]), strict=True)
        )
        (folder / f"error.rank{RANK}.txt").write_text(f"{type(error).__name__}: {error}\nunchanged: {unchanged}\n")
    finally:
        for (owner, name, _), own in zip(replaced, owns, strict=True):
            setattr(owner, name, own)


def bind(new, own):
    """A function, not a partial: only functions become methods."""
    return lambda *args, **named: partial(new, own)(*args, **named)


def weights(student: nn.Module) -> list[torch.Tensor]:
    """What this rank holds of them."""
    return [getattr(parameter, "ds_tensor", parameter).detach().clone() for parameter in student.parameters()]


if __name__ == "__main__":
    for values in json.loads(Path(sys.argv[1]).read_text()):
        print("JOB", values, flush=True)
        run(Job(**values))
