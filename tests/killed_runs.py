"""A run that is killed again and again, or that loses a rank: ``killed_runs.py FILE``.

FILE holds a JSON object; see `Plan`. Every sitting is a fit in processes forked from this one, which has imported
everything: importing takes longer than a sitting of a tiny model. Each is a process group, killed as a whole by SIGKILL
at a point that its number and the seed choose: in the midst of a step, an evaluation, or a checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.main import main

DEADLINE_S = 240.0


@dataclass(frozen=True)
class Plan:
    """The run, and how it is killed."""

    args: list[str]
    """Of ``fit``, without ``--ckpt_path``."""
    folder: str
    """The run's folder. Written beside it: killed.json, where each sitting ended."""
    num_ranks: int = 1
    num_kills: int = 10
    steps_between: int = 4
    """Kill number i comes when row i * steps_between of metrics.csv is there, and a random moment later."""
    longest_wait_s: float = 0.15
    """Longest of those moments."""
    seed: int = 0
    signals: Mapping[str, str] = field(default_factory=dict)
    """Signal to a rank alone, by the rank's number, in place of killing all; the others are left to end themselves."""


def run(plan: Plan) -> None:
    dice = random.Random(plan.seed)
    kills = []
    for number in range(1, plan.num_kills + 1):
        ranks = start(plan)
        wait_for(plan, number * plan.steps_between, ranks)
        time.sleep(dice.uniform(0.0, plan.longest_wait_s))
        row, began = last_step(plan), time.monotonic()
        codes = send(plan, ranks)
        kills.append({"row": row, "codes": codes, "seconds": time.monotonic() - began})
    codes = [os.waitpid(pid, 0)[1] for pid in start(plan)]
    assert codes == [0] * plan.num_ranks, codes
    Path(plan.folder).with_name("killed.json").write_text(json.dumps(kills))


def send(plan: Plan, ranks: list[int]) -> list[int]:
    """End a sitting; returns the ranks' exit codes, negative ones for signals."""
    if not plan.signals:
        os.killpg(ranks[0], signal.SIGKILL)
    for rank, name in plan.signals.items():
        os.kill(ranks[int(rank)], signal.Signals[name])
    codes = {}
    stopped = {int(rank) for rank, name in plan.signals.items() if name == "SIGSTOP"}
    for rank in sorted(range(len(ranks)), key=lambda rank: rank in stopped):
        if rank in stopped:
            os.kill(ranks[rank], signal.SIGKILL)
        codes[rank] = os.waitstatus_to_exitcode(os.waitpid(ranks[rank], 0)[1])
    return [codes[rank] for rank in range(len(ranks))]


def start(plan: Plan) -> list[int]:
    """Fork the ranks of one sitting, all in the process group of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: list[int] = []
    for rank in range(plan.num_ranks):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, ranks[0] if ranks else 0)
            os._exit(sit(plan, rank, port))
        ranks.append(pid)
        while os.getpgid(pid) != ranks[0]:
            time.sleep(0.001)
    return ranks


def sit(plan: Plan, rank: int, port: int) -> int:
    """One rank of one sitting; returns the exit code."""
    if plan.num_ranks > 1:
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only.rank = rank
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(plan.num_ranks), "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
        }  # fmt: skip
    try:
        main([*plan.args, "--ckpt_path", "auto"])
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def wait_for(plan: Plan, step: int, ranks: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while last_step(plan) < step:
        assert time.monotonic() < deadline, f"step {step} did not come"
        assert os.waitpid(ranks[0], os.WNOHANG) == (0, 0), "the sitting ended by itself"
        time.sleep(0.002)


def last_step(plan: Plan) -> int:
    path = Path(plan.folder, "metrics.csv")
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    return max((int(line.split(b",")[0]) for line in lines), default=0)


if __name__ == "__main__":
    run(Plan(**json.loads(Path(sys.argv[1]).read_text())))
