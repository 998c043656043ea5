"""What a step of OPD + NCA costs as context, batch, completion and vocabulary grow, one at a time.

    python -m benchmarks.scaling --output benchmarks/results       writes scaling-cpu.json and scaling-cpu.svg there

The body is SmolLM2-135M's (its config with random weights; times do not depend on the values). Each point is the median
of its turns, beside the seconds that the counted operations (`workload`) take at the speed of a plain pass of the base
shape, and the slope of both since the point before. The plain pass is timed at every point; its speed, and what a
backward pass costs beside it, are the medians over the points of an axis, so that the counted line bends only where the
arithmetic does. Where the measured line leaves the counted one, something other than arithmetic costs time; the slope
itself changes where another term takes over:

    context      P linear work of its tokens, then P^2 attention within it; suffixes attend to it, linear
    batch        linear: suffixes share one context
    completion   linear work and logits; its square within each example only
    vocabulary   the projections of the completion's tokens, three forward and two or more back; the update of the head
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from benchmarks.measuring import Clock, add_common_options, table, write_result
from benchmarks.ours import Ours
from benchmarks.step import COEFFICIENT, plain_pass
from benchmarks.workload import Costs, Shape, made_step, shared_passes, total
from lightning_modules.models import ModelSpec, load_tokenizer, model_location
from lightning_modules.teachers import Teacher, TeacherSpec

BASE = Shape(num_prompts=8, prompt=80, completion=32, context=512)
AXES: dict[str, tuple[int, ...]] = {
    "context": (0, 128, 512, 1024, 2048, 4096),
    "num_prompts": (2, 4, 8, 16, 32),
    "completion": (8, 32, 128, 256),
    "vocabulary": (8_192, 49_152, 151_936),
}
SHOWN = ("value", "micro_batches", "median_s", "counted_s", "ms_per_unit", "counted_ms_per_unit")


def measure(config: PreTrainedConfig, shape: Shape, options: argparse.Namespace, tokenizer: Any) -> dict[str, float]:
    """Median seconds of a whole step and of its update, its counted operations, and a plain pass timed beside it."""
    torch.manual_seed(0)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype))
    student = student.to(options.device).train()
    tokens = made_step(shape, config.vocab_size)
    teacher = Teacher(TeacherSpec(), student, tokenizer)
    ours = Ours(student, teacher, shape, tokens, config.vocab_size, options.max_tokens, COEFFICIENT)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    steps, updates = [], []
    for repetition in range(options.repetitions + 1):
        with Clock(student.device) as scores:
            for index in range(ours.num_micro_batches):
                ours.run(index)
        with Clock(student.device) as update:
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if repetition:
            steps.append(scores.seconds + update.seconds)
            updates.append(update.seconds)
    trained_forwards, forward_s, operations = plain_pass(student, BASE, options.repetitions)
    passes, costs = shared_passes(shape, True, ours.num_micro_batches), Costs.of(student)
    scored = total(passes, costs, trained_forwards=0.0)
    return {
        "median_s": statistics.median(steps),
        "update_s": statistics.median(updates),
        "micro_batches": ours.num_micro_batches,
        "scored_operations": scored,
        "trained_operations": total(passes, costs, trained_forwards=1.0) - scored,
        "plain_operations_per_s": operations / forward_s,
        "trained_forwards": trained_forwards,
    }


def with_counted_seconds(points: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The points, each with the seconds that its counted operations and its update should take."""
    speed = statistics.median(point["plain_operations_per_s"] for point in points)
    trained_forwards = statistics.median(point["trained_forwards"] for point in points)
    rows = []
    for point in points:
        operations = point["scored_operations"] + trained_forwards * point["trained_operations"]
        rows.append({**point, "counted_s": operations / speed + point["update_s"]})
    return rows


def with_slopes(points: Sequence[dict[str, float]]) -> list[dict[str, float | None]]:
    """The points, each with the milliseconds that one more unit costs since the point before it, and should cost."""
    rows: list[dict[str, float | None]] = [{**points[0], "ms_per_unit": None, "counted_ms_per_unit": None}]
    for before, point in itertools.pairwise(points):
        per_unit = 1e3 / (point["value"] - before["value"])
        rows.append(
            {
                **point,
                "ms_per_unit": per_unit * (point["median_s"] - before["median_s"]),
                "counted_ms_per_unit": per_unit * (point["counted_s"] - before["counted_s"]),
            }
        )
    return rows


def plot(cases: dict[str, list[dict[str, float]]], path: Path) -> None:
    """One panel per axis, measured and counted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(cases), figsize=(4 * len(cases), 3.4), layout="constrained")
    for panel, (axis, points) in zip(panels, cases.items(), strict=True):
        values = [point["value"] for point in points]
        panel.plot(values, [point["median_s"] for point in points], "o-", label="measured")
        panel.plot(values, [point["counted_s"] for point in points], "--", label="counted operations")
        panel.set(xlabel=axis.replace("num_prompts", "prompts"), ylabel="seconds a step", ylim=(0, None))
        panel.legend(frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def main(args: list[str] | None = None) -> None:
    """Measure every axis, print the tables, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument("--axis", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--output", type=Path, help="folder for scaling-DEVICE.json and .svg")
    options = parser.parse_args(args)
    spec = ModelSpec(options.model, gguf_file=options.gguf_file or None)
    tokenizer = load_tokenizer(spec)
    gguf = {"gguf_file": spec.gguf_file} if spec.gguf_file else {}
    config = AutoConfig.from_pretrained(model_location(spec), **gguf)
    cases: dict[str, list[dict[str, float]]] = {}
    for axis in options.axis:
        points: list[dict[str, float]] = []
        for value in AXES[axis]:
            changed, shape = copy.deepcopy(config), BASE
            if axis == "vocabulary":
                changed.vocab_size = value
            else:
                shape = replace(BASE, **{axis: value})
            points.append({"value": value, **measure(changed, shape, options, tokenizer)})
        cases[axis] = with_counted_seconds(points)
        rows = [{name: row[name] for name in SHOWN} for row in with_slopes(cases[axis])]
        print(f"\n{axis}\n\n" + table(rows), flush=True)
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name not in ("output", "gguf_file")}
        result = {"settings": settings, "base": vars(BASE), "axes": cases}
        path = write_result(options.output, "scaling", options.device, result)
        plot(cases, path.with_suffix(".svg"))
        print(path)


if __name__ == "__main__":
    main()
