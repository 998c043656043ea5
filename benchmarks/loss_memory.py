"""Peak memory and time of the objective, from hidden states to their gradients: fused and reference.

    python -m benchmarks.loss_memory
    python -m benchmarks.loss_memory --hidden_sizes 1024 --tokens 512 --repetitions 1        the smallest
    python -m benchmarks.loss_memory --device cuda --dtype bfloat16 --output benchmarks/results

OPD + NCA over the full vocabulary of V entries (Qwen's by default), as training runs it: OPD, its backward pass, NCA,
its backward pass. Given are the hidden states (T, H) of the three views and two heads, the student's and the teacher's.
`memory_gib` is the peak beyond them AND the gradients in the hidden states (and in the head where it is
trained). Each case has a process of its own. `time_ratio` is fused over reference, both in this run, where both fit;
`seconds` are medians over the repetitions. The reference is run where its logits would take at most
half of the free memory, and never above --reference_tokens.

The fused objective projects the student's no-context view twice, once for each term, where the reference does once: six
products with a head in place of five, so that 1.2 is the ratio of the products alone. That is the price of having one
pass of the student in memory at a time (`step_gradient`). What this does not show: a whole training step, in which the
models' own passes weigh more, and one projection little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import GIB, PeakMemory, available_bytes, machine, run_alone, table, write_result
from lightning_modules.objective.chunked import Projection, tokens_per_chunk
from lightning_modules.objective.consistency import Consistency, ObjectiveSettings, ViewLogits
from lightning_modules.objective.fused import consistency_term, distillation

REFERENCE_BUFFERS = 16
"""float32 buffers of (tokens x vocabulary) that the reference is expected to hold: decides only whether it is tried."""


def main() -> None:
    """Measure every case, print the table."""
    args = _parser().parse_args()
    if args.case is not None:
        print(json.dumps(measure(json.loads(args.case))))
        return
    common = {
        "vocab_size": args.vocab_size,
        "device": args.device,
        "dtype": args.dtype,
        "consistency": args.consistency,
    }
    cases = []
    for hidden_size in args.hidden_sizes:
        for num_tokens in args.tokens:
            # The small sizes tell the time; the large ones are there for their memory.
            repetitions = args.repetitions if num_tokens <= args.reference_tokens else 1
            case = common | {"hidden_size": hidden_size, "num_tokens": num_tokens, "repetitions": repetitions}
            cases.append(case | {"implementation": "fused", "trains_head": False})
            if num_tokens <= args.reference_tokens and _reference_fits(case):
                cases.append(case | {"implementation": "reference", "trains_head": False})
        for num_tokens in {args.tokens[0]: None, args.tokens[-1]: None}:
            once = common | {"hidden_size": hidden_size, "num_tokens": num_tokens, "repetitions": 1}
            cases.append(once | {"implementation": "fused", "trains_head": True})
    results: list[dict[str, Any]] = []
    for case in cases:
        results.append(case | run_alone("benchmarks.loss_memory", case))
        print(table([_row(results[-1], results)]).splitlines()[-1], flush=True)
    print("\n" + table([_row(result, results) for result in results]))
    print(json.dumps(machine(args.device)))
    if args.output is not None:
        print(write_result(args.output, "loss_memory", args.device, {"cases": results}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of hidden states and heads"
    )
    parser.add_argument("--vocab_size", type=int, default=151_936)
    parser.add_argument("--hidden_sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 8192])
    parser.add_argument("--reference_tokens", type=int, default=512, help="most tokens that the reference is run with")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--consistency", choices=["no_context_anchor", "symmetric"], default="no_context_anchor")
    parser.add_argument("--output", type=Path, help="folder for loss_memory-DEVICE.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


def _reference_fits(case: dict[str, Any]) -> bool:
    needed = REFERENCE_BUFFERS * 4 * case["num_tokens"] * case["vocab_size"]
    return needed <= available_bytes(case["device"]) // 2


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One case in this process: seconds of each repetition, and the peak."""
    device, dtype = torch.device(case["device"]), getattr(torch, case["dtype"])
    torch.manual_seed(0)
    shape = (case["num_tokens"], case["hidden_size"])
    views = [torch.randn(shape, device=device, dtype=dtype) for _ in range(3)]
    heads = [nn.Linear(case["hidden_size"], case["vocab_size"], bias=False, device=device, dtype=dtype) for _ in "12"]
    for head in heads:
        nn.init.normal_(head.weight, std=case["hidden_size"] ** -0.5)
        head.requires_grad_(False)
    heads[0].requires_grad_(case["trains_head"])
    gradients = 2 * views[0].nbytes + (heads[0].weight.nbytes if case["trains_head"] else 0)
    peak = PeakMemory(case["device"])
    seconds = []
    for _ in range(case["repetitions"]):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for view in views[:2]:
            view.grad = None
            view.requires_grad_()
        heads[0].weight.grad = None
        _run(case, views, heads)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": seconds,
        "memory_bytes": peak.bytes() - gradients,
        "tokens_per_chunk": tokens_per_chunk(device, case["vocab_size"]),
        "gradient_norm": float(views[0].grad.float().norm()) if views[0].grad is not None else None,
    }


def _run(case: dict[str, Any], views: list[Tensor], heads: list[nn.Module]) -> None:
    consistency: Consistency = case["consistency"]
    settings = ObjectiveSettings(consistency)
    example_T = torch.zeros(case["num_tokens"], dtype=torch.long, device=views[0].device)
    q_x, q_c, f = (Projection(hidden, heads[i], case["vocab_size"]) for hidden, i in zip(views, (0, 0, 1), strict=True))
    scale = 1.0 / case["num_tokens"]
    if case["implementation"] == "reference":
        logits = ViewLogits(q_x.logits(), f.constant().logits(), q_c.logits())
        (scale * settings.token_terms(logits, example_T).loss_T(0.5).sum()).backward()
        return
    first = distillation(q_x, f, settings)
    if consistency == "symmetric":
        second = consistency_term(first, q_x, q_c, f, None, example_T, settings)
        (scale * (first.loss + 0.5 * second.loss)).backward()
        return
    (scale * first.loss).backward()
    second = consistency_term(first, q_x.constant(), q_c, f, None, example_T, settings)
    (scale * 0.5 * second.loss).backward()


def _row(result: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = statistics.median(result["seconds"])
    same = ("hidden_size", "num_tokens", "trains_head")
    reference = [
        statistics.median(other["seconds"])
        for other in results
        if other["implementation"] == "reference" and all(other[key] == result[key] for key in same)
    ]
    return {
        "implementation": result["implementation"],
        "H": result["hidden_size"],
        "T": result["num_tokens"],
        "head": "trained" if result["trains_head"] else "frozen",
        "memory_gib": result["memory_bytes"] / GIB,
        "seconds": seconds,
        "ms_per_token": 1e3 * seconds / result["num_tokens"],
        "time_ratio": seconds / reference[0] if reference else None,
    }


if __name__ == "__main__":
    main()
