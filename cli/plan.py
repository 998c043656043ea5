"""``python -m cli plan --config CONFIG --gpu H100 --num_gpus 8``: does the run fit, and what would make it fit?

Arithmetic over the config (`lightning_modules.memory_plan`): the model's config.json is read, no weights, no data. What
the config does not say is taken from options: how long prompts and contexts are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser, Namespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cli.config_sections import parsed, run_command, section_of, student_spec_of
from lightning_modules.adapters import add_adapters, is_adapter
from lightning_modules.memory_plan import (
    GIB,
    GPU_MEMORY_GIB,
    MARGIN,
    Run,
    Shape,
    Strategy,
    largest_tokens,
    plan,
    suggestion,
    usable_bytes,
)
from lightning_modules.models import LoadErrors, ModelSpec, model_location

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def plan_cli(args: Sequence[str]) -> int:
    """Run the command with the words after ``plan``; returns the exit status."""
    return run_command(plan_parser(), args, print_plan)


def plan_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(prog="python -m cli plan", description="Memory of a run on each GPU, by arithmetic.")
    parser.add_argument("--config", type=Path, required=True, help="YAML of a fit")
    parser.add_argument("--gpu", type=str, default="H100", help=f"one of {', '.join(GPU_MEMORY_GIB)}")
    parser.add_argument(
        "--memory_gb", type=float | None, default=None, help="of a GPU that is none of them, in 1e9 bytes"
    )
    parser.add_argument("--num_gpus", type=int, default=1, help="GPUs of the run, all nodes together")
    parser.add_argument("--strategy", type=Strategy, default="single", help="whose parts are printed; all are totalled")
    parser.add_argument("--offload_optimizer", type=bool, default=False, help="as in configs/strategy/zero*.yaml")
    parser.add_argument("--offload_parameters", type=bool, default=False, help="stage 3 only")
    parser.add_argument("--prompt_tokens", type=int, default=128, help="of a question, without the context")
    parser.add_argument("--context_tokens", type=int, default=512, help="of the privileged context")
    parser.add_argument("--model", type=str | None, default=None, help="another student than the config's")
    return parser


def print_plan(options: Namespace) -> None:
    """Print the parts of one strategy, the totals of all, and whether they fit."""
    if options.num_gpus < 1:
        raise ValueError(f"--num_gpus is {options.num_gpus}; it must be at least 1.")
    gpu_bytes = usable_bytes(options.gpu) if options.memory_gb is None else int(options.memory_gb * 1e9 * (1 - MARGIN))
    run = run_of(options, gpu_bytes)
    chosen = plan(run)
    student = run.student.parameters
    print(f"{student / 1e9:.3g} billion parameters, {options.num_gpus} GPUs, {gpu_bytes / GIB:.1f} GiB of each to use")
    print(f"micro-batches of {run.tokens} tokens, {run.completion_tokens} of them completions\n")
    print(f"{options.strategy}: GiB on each GPU")
    for name, size in chosen.parts.items():
        print(f"  {name:<20} {size / GIB:8.2f}")
    print(f"  {'peak in training':<20} {chosen.training / GIB:8.2f}")
    print(f"  {'peak in sampling':<20} {chosen.sampling / GIB:8.2f}")
    print(f"  {'peak in evaluation':<20} {chosen.evaluation / GIB:8.2f}")
    if chosen.host:
        print(f"  {'host memory, all':<20} {chosen.host / GIB:8.2f}")
    print(f"\n{'strategy':<10} {'GiB a GPU':>10} {'fits':>6}   largest max_tokens_per_micro_batch")
    for strategy in STRATEGIES:
        other = replace(
            run,
            strategy=strategy,
            offload_optimizer=run.offload_optimizer and strategy.startswith("zero"),
            offload_parameters=run.offload_parameters and strategy == "zero3",
        )
        peak, tokens = plan(other).peak, largest_tokens(other, gpu_bytes)
        print(f"{strategy:<10} {peak / GIB:>10.2f} {'yes' if peak <= gpu_bytes else 'no':>6}   {tokens or 'none fits'}")
    if chosen.peak > gpu_bytes:
        print(f"\n{options.strategy} does not fit. Try: {suggestion(run, gpu_bytes)}.")
    print("\nArithmetic, not a measurement: docs/scale.md says how far it was from runs.")


def run_of(options: Namespace, gpu_bytes: int) -> Run:
    """What the config and the options say of memory."""

    def value(key: str, default: Any) -> Any:
        found = section_of(options.config, key)
        return default if found is None else found

    student = student_spec_of(options.config)
    if options.model is not None:
        student = ModelSpec(options.model)
    precision = str(value("trainer.precision", "32-true"))
    shape, kind = shape_of(student), value("model.teacher.kind", "frozen")
    teacher = _teacher_shape(options, kind, student, shape)
    is_elsewhere = teacher is not None and any(
        value(f"model.teacher.{key}", None) is not None for key in ("device", "server_url")
    )
    consistency = value("model.consistency", "no_context_anchor")
    batch = -(-int(value("data.init_args.batch_size", 16)) * int(value("model.num_generations", 1)) // options.num_gpus)
    completion = int(value("model.sampling.max_completion_length", 512))
    whole_step = options.context_tokens + batch * (options.prompt_tokens + completion)
    tokens = min(int(value("model.max_tokens_per_micro_batch", None) or whole_step), whole_step)
    uses_vllm = value("model.engine.kind", "hf") == "vllm" and value("model.engine.vllm.mode", "colocate") == "colocate"
    cached = int(value("model.teacher_cache_tokens", 32_768))
    at_most = int(value("model.rollout_batch_size", 64))
    together, evaluated = min(batch, at_most), min(int(value("data.init_args.eval_batch_size", 32)), at_most)
    answer = options.prompt_tokens + int(value("model.evaluation.max_completion_length", completion))
    return Run(
        shape,
        None if is_elsewhere else teacher,
        strategy=options.strategy,
        num_gpus=options.num_gpus,
        offload_optimizer=options.offload_optimizer,
        offload_parameters=options.offload_parameters,
        is_float32=not precision.startswith("bf16"),
        tokens=tokens,
        completion_tokens=min(batch * completion, tokens),
        gradient_checkpointing=bool(value("model.gradient_checkpointing", False)),
        keeps_both_passes=consistency == "symmetric",
        moving_averages=(kind == "ema") + (consistency == "ema_anchor"),
        teacher_cache_tokens=0 if is_elsewhere else min(cached, options.context_tokens),
        trained_parameters=None if student.lora is None else adapter_parameters(student),
        teacher_head=teacher.vocabulary * teacher.hidden if is_elsewhere and teacher is not None else 0,
        sampled_tokens=0 if uses_vllm else together * (options.prompt_tokens + completion),
        evaluated_tokens=0 if uses_vllm else evaluated * (options.context_tokens + answer),
        vllm_bytes=_vllm_bytes(value, shape, gpu_bytes, 4 if precision.startswith("32") else 2) if uses_vllm else 0,
    )


def _vllm_bytes(value: Callable[[str, Any], Any], shape: Shape, gpu_bytes: int, width: int) -> int:
    """What vLLM takes: its share of the whole memory, of which `gpu_bytes` lacks the margin, or a given cache."""
    cache_gib = value("model.engine.vllm.kv_cache_gib", None)
    if cache_gib is not None:
        return width * shape.parameters + int(float(cache_gib) * GIB)
    return int(float(value("model.engine.vllm.gpu_memory_utilization", 0.3)) * gpu_bytes / (1 - MARGIN))


def _teacher_shape(options: Namespace, kind: str, student: ModelSpec, shape: Shape) -> Shape | None:
    """Sizes of a teacher that has weights of its own and does not move; the base of adapters is the student's."""
    if kind == "model":
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(ModelSpec, "model")
        section = section_of(options.config, "model.teacher.model")
        return shape_of(parsed(parser, {"model": section}, options.config).model)
    return None if kind in ("live", "ema") or student.lora is not None else shape


def shape_of(spec: ModelSpec) -> Shape:
    """Sizes of a model without its weights.

    Raises:
        OSError: if its config can't be found.
    """
    model = _without_weights(spec)
    return Shape.of(model.config, model)


def adapter_parameters(spec: ModelSpec) -> int:
    """Parameters of the LoRA adapters that `spec` puts into its model.

    Raises:
        ValueError: if target modules are not in the model.
    """
    assert spec.lora is not None
    model = _without_weights(spec)
    with torch.device("meta"):
        add_adapters(model, spec.lora, spec.name)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name))


def _without_weights(spec: ModelSpec) -> PreTrainedModel:
    gguf = {} if spec.gguf_file is None else {"gguf_file": spec.gguf_file}
    with LoadErrors(spec, "config"):
        config = AutoConfig.from_pretrained(model_location(spec), revision=spec.revision, **gguf)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
