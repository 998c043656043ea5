"""How far `cli plan`'s arithmetic is from the memory that a step takes here.

    python -m benchmarks.plan                                     SmolLM2-135M's shape, float32, on this machine
    python -m benchmarks.plan --output benchmarks/results         writes plan-cpu.json there

One micro-batch of OPD + NCA (scores, loss, backward, AdamW with its moments; completions given) in a fresh process for
each case. Weights are random, which changes no size. Peak of the process above what it held before the models were
made. Sampling is not run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measuring import GIB, PeakMemory, add_common_options, machine, table, write_result
from benchmarks.ours import Ours
from benchmarks.workload import Shape as StepShape
from benchmarks.workload import made_step
from lightning_modules.memory_plan import Run, Shape, plan
from lightning_modules.models import ModelSpec, model_location
from lightning_modules.teachers import Teacher, TeacherSpec

CASES = (
    # prompts, tokens of a prompt, of a completion, of the context; budget of a micro-batch; gradient checkpointing
    ((4, 80, 32, 512), 10_240, False),
    ((4, 80, 32, 512), 736, False),
    ((4, 80, 32, 512), 10_240, True),
    ((8, 60, 20, 168), 10_240, False),  # half of the quickstart's step
)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One micro-batch in this process; the peak, and what was predicted."""
    config = case.pop("config")
    step = StepShape(*case["shape"])
    peak = PeakMemory("cpu")
    student = AutoModelForCausalLM.from_config(config).train()
    if case["checkpointing"]:
        student.gradient_checkpointing_enable()
    teacher = Teacher(TeacherSpec(), student, cast(Any, None))  # a frozen copy needs no tokenizer
    made = made_step(step, config.vocab_size)
    ours = Ours(student, teacher, step, made, config.vocab_size, case["max_tokens"], 0.5)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, fused=True)
    for parameter in student.parameters():  # a step of nothing: Adam's moments are there from now on
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    ours.run(0)  # further micro-batches need no more
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    # The longest micro-batch, as the plan is asked about it: the budget, or the whole step where that is less.
    whole = step.context + step.num_prompts * step.suffix
    per_batch = -(-step.num_prompts // ours.num_micro_batches)
    tokens = min(case["max_tokens"], whole, step.context + per_batch * step.suffix)
    shape = Shape.of(config, student)
    run = Run(
        shape,
        shape,
        tokens=tokens,
        completion_tokens=per_batch * step.completion,
        gradient_checkpointing=case["checkpointing"],
        teacher_cache_tokens=step.context,
        device="cpu",
    )
    predicted = plan(run)
    return {
        "peak_bytes": peak.bytes(),
        "predicted_bytes": predicted.training,
        "parts": predicted.parts,
        "tokens": tokens,
        "num_micro_batches": ours.num_micro_batches,
    }


def main() -> None:
    """Run every case, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument("--output", type=Path, help="folder for plan-cpu.json")
    options = parser.parse_args()
    place = model_location(ModelSpec(options.model, options.gguf_file))
    config = AutoConfig.from_pretrained(place, gguf_file=options.gguf_file)
    results = []
    # A process for each case, forked before anything is computed: none inherits another's memory.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for shape, max_tokens, checkpointing in CASES:
            case = {"shape": shape, "max_tokens": max_tokens, "checkpointing": checkpointing}
            results.append(case | pool.apply(measure, (case | {"config": config},)))
            print(results[-1], flush=True)
    rows = [
        {
            "prompts x (prompt + completion), context": "{} x ({} + {}), {}".format(*result["shape"]),
            "tokens": result["tokens"],
            "checkpointing": result["checkpointing"],
            "measured GiB": result["peak_bytes"] / GIB,
            "predicted GiB": result["predicted_bytes"] / GIB,
            "error": f"{100 * (result['predicted_bytes'] / result['peak_bytes'] - 1):+.0f} %",
        }
        for result in results
    ]
    print(json.dumps(machine("cpu")))
    print(table(rows))
    if options.output:
        write_result(options.output, "plan", "cpu", {"results": results})


if __name__ == "__main__":
    main()
