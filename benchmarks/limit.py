"""How close a whole step of OPD + NCA comes to what the machine gives a plain forward and backward.

    python -m benchmarks.limit                                          speed and peak memory at contexts 512 and 2,048
    python -m benchmarks.limit --output benchmarks/results              writes limit-cpu.json there

Speed: useful operations a second of our step (linear work on unique tokens, attended pairs that are needed, heads; a
backward pass counts two forwards) over those of a plain transformers forward + backward of the same number of suffix
tokens, alternating in one process. Our step includes the loss, clipping and the update, which count as no useful work.
A third in turn is our step without giving the heap's free pages back in its middle (`heap`), to see what that costs.

Memory: peak of a fresh process for one step, each with the student, its gradients, AdamW's two moments and a teacher:
ours, TRL's, the textbook's, and a plain forward + backward over one sequence of the same unique tokens, C + S, with
logits at the completions' positions only. The processes run one after the other; `--memory-only` leaves the times out,
for a machine that is not idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.measuring import GIB, Clock, add_common_options, process_peak_bytes, run_alone, table, write_result
from benchmarks.ours import Ours
from benchmarks.peers import TRL, Contestant, Textbook
from benchmarks.workload import Costs, Pass, Shape, causal_pairs, made_step, shared_passes, total
from lightning_modules.models import ModelSpec, load_model, load_tokenizer
from lightning_modules.teachers import Teacher, TeacherSpec

COEFFICIENT = 0.5
KINDS = ("plain", "ours OPD", "ours OPD + NCA", "TRL OPD", "textbook OPD", "textbook OPD + NCA")
BACKWARD_AS_FORWARDS = 2.0
"""Operations of a backward pass: gradients of inputs and of weights."""


class Plain:
    """Forward and backward of one sequence, logits at its last positions only."""

    name = "plain"
    num_micro_batches = 1

    def __init__(self, student: PreTrainedModel, num_tokens: int, num_logits: int) -> None:
        self.student, self.num_logits = student, num_logits
        self.ids = torch.randint(16, student.config.vocab_size, (1, num_tokens), device=student.device)

    def run(self, index: int) -> float:
        """See `peers.Contestant`."""
        logits = self.student(self.ids, use_cache=False, logits_to_keep=self.num_logits).logits
        loss = logits.float().logsumexp(-1).mean()
        loss.backward()
        return float(loss.detach())


def contestant(
    kind: str, student: PreTrainedModel, tokenizer: Any, shape: Shape, max_tokens: int, folder: Path
) -> Contestant:
    """The contestant of that name."""
    tokens = made_step(shape, len(tokenizer))
    coefficient = COEFFICIENT if kind.endswith("NCA") else 0.0
    if kind == "plain":
        unique = shape.context + shape.num_prompts * shape.suffix
        return Plain(student, unique, shape.num_prompts * shape.completion)
    if kind == "TRL OPD":
        return TRL(student, folder, tokenizer, shape, tokens, max_tokens)
    teacher = Teacher(TeacherSpec(), student, tokenizer)
    if kind.startswith("ours"):
        return Ours(student, teacher, shape, tokens, len(tokenizer), max_tokens, coefficient)
    return Textbook(student, teacher.network(student), shape, tokens, max_tokens, coefficient)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One step of ``case["kind"]`` in this process: its peak memory, and the seconds; or `speed`."""
    kind, shape = case["kind"], Shape(**case["shape"])
    if kind == "speed":
        return speed(case, shape, case["repetitions"])
    student, tokenizer = _load(case)
    with tempfile.TemporaryDirectory() as folder:
        if kind == "TRL OPD":  # builds its teacher from a folder
            student.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        one = contestant(kind, student, tokenizer, shape, case["max_tokens"], Path(folder))
        teacher = Teacher(TeacherSpec(), student, tokenizer) if kind == "plain" else None  # the others have one
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        with Clock(student.device) as clock:
            for index in range(min(one.num_micro_batches, 2)):  # more of them need no more
                one.run(index)
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
        del one, teacher
    return {"peak_bytes": process_peak_bytes(case["device"]), "seconds": clock.seconds}


def memory(common: dict[str, Any], shape: Shape) -> dict[str, int | str]:
    """Peak bytes of each kind, each in a fresh process; why not, where one failed."""
    peaks: dict[str, int | str] = {}
    for kind in KINDS:
        try:
            alone = run_alone("benchmarks.limit", common | {"kind": kind, "shape": vars(shape)})
            peaks[kind] = alone["peak_bytes"]
        except RuntimeError as error:
            peaks[kind] = "out of memory" if "failed with -9" in str(error) else str(error)[-200:]
    return peaks


def speed(common: dict[str, Any], shape: Shape, repetitions: int) -> dict[str, float]:
    """Useful operations a second of our step and of a plain pass, medians of alternating turns."""
    student, tokenizer = _load(common)
    costs = Costs.of(student)
    teacher, vocab_size = Teacher(TeacherSpec(), student, tokenizer), len(tokenizer)
    tokens = made_step(shape, vocab_size)
    ours = Ours(student, teacher, shape, tokens, vocab_size, common["max_tokens"], COEFFICIENT)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    n, suffix = shape.num_prompts, shape.suffix
    ids = torch.randint(16, vocab_size, (n, suffix), device=student.device)

    def step() -> float:
        with Clock(student.device) as clock:
            for index in range(ours.num_micro_batches):
                ours.run(index)
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return clock.seconds

    steps, kept, plains = [], [], []
    for repetition in range(repetitions + 1):
        turn = [step()]
        with patch("lightning_modules.step_gradient.give_back_free_heap"):
            turn.append(step())
        with Clock(student.device) as plain:
            student(ids, labels=ids, use_cache=False).loss.backward()
        student.zero_grad()
        if repetition:
            steps.append(turn[0])
            kept.append(turn[1])
            plains.append(plain.seconds)
    trained = 1.0 + BACKWARD_AS_FORWARDS
    useful = total(shared_passes(shape, True, ours.num_micro_batches), costs, trained)
    plain_useful = Pass(n * suffix, n * causal_pairs(suffix), n * suffix, True).operations(costs, trained)
    step_s, plain_s = statistics.median(steps), statistics.median(plains)
    return {
        "step_s": step_s,
        "step_keeping_heap_s": statistics.median(kept),
        "plain_s": plain_s,
        "step_operations_per_s": useful / step_s,
        "plain_operations_per_s": plain_useful / plain_s,
        "share": useful / step_s / (plain_useful / plain_s),
    }


def _speed_lines(measured: dict[str, float] | None) -> list[str]:
    if measured is None:
        return ["speed not measured"]
    trimmed = measured["step_s"] / measured["step_keeping_heap_s"]
    return [
        f"useful operations a second of our step over a plain pass's: {measured['share']:.2f}",
        f"seconds over those of a step that keeps its heap: {trimmed:.2f}",
    ]


def _load(common: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    spec = ModelSpec(common["model"], gguf_file=common["gguf_file"] or None, dtype=common["dtype"])
    return load_model(spec).to(common["device"]).train(), load_tokenizer(spec)


def main(args: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument("--shape", default="16,80,32", help="prompts, tokens of a prompt, tokens of a completion")
    parser.add_argument("--context", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--output", type=Path, help="folder for limit-DEVICE.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.case is not None:
        print(json.dumps(measure(json.loads(options.case))))
        return
    common = {name: getattr(options, name) for name in ("model", "gguf_file", "dtype", "device", "max_tokens")}
    cases = []
    for context in options.context:
        shape = Shape(*map(int, options.shape.split(",")), context)
        measured = None
        if not options.memory_only:  # a process of its own: this one must leave the memory to the others
            case = common | {"kind": "speed", "shape": vars(shape), "repetitions": options.repetitions}
            measured = run_alone("benchmarks.limit", case)
        peaks = memory(common, shape)
        cases.append({"shape": vars(shape), "speed": measured, "peak_bytes": peaks})
        print(f"\ncontext {context}", *_speed_lines(measured), sep="; ", end="\n\n")
        plain = peaks["plain"]
        rows = [
            {
                "step": kind,
                "peak GiB": peak if isinstance(peak, str) else peak / GIB,
                "over plain": peak / plain if isinstance(peak, int) and isinstance(plain, int) else None,
            }
            for kind, peak in peaks.items()
        ]
        print(table(rows), flush=True)
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name not in ("output", "gguf_file", "case")}
        print(write_result(options.output, "limit", options.device, {"settings": settings, "cases": cases}))


if __name__ == "__main__":
    main()
