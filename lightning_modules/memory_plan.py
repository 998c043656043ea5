"""How much memory a run takes on each GPU, by arithmetic: no weights, no GPU. ``python -m cli plan`` prints it.

What is alive together (n, m: parameters of student and teacher; b: bytes of a number; N GPUs):

    states        student, gradient, Adam's two moments, teacher, moving averages     below
    training      states + activations of ONE pass + buffers of the vocabulary + the teacher's kept contexts
    sampling      states without gradient + keys and values of the prompts sampled together (or vLLM's share)
    evaluation    the same, of the items answered together, with their contexts

States a GPU holds, with AdamW:

    single   b n  +  b n gradient  +  2 b n Adam
    ddp      the same + b n, the buckets in which gradients are exchanged
    zero1    2 n  +  2 n  +  16 n / N         DeepSpeed's own estimate, bf16: 4 gradient, 4 weights, 8 Adam in float32
    zero2    2 n  +  18 n / N
    zero3    4 x the largest layer  +  18 n / N, and 2 n during rollouts and evaluations, when the student is whole
             (another 2 m, the teacher, in `ProbeEvaluation`, which is not counted)
             offload_optimizer leaves 4 n, 2 n, and 4 x largest layer + 2 n / N; offload_parameters 4 x largest layer

Activations. A packed row keeps, of each token and layer of a Llama, Qwen2 or Qwen3 (H hidden, A heads x head size, K
key-value heads x head size, I width of the MLP), for the backward pass: both norms' inputs, normed values and outputs,
6 H; queries, keys, values, 2 K + A; attention's output, A; gate, its activation, up and their product, 4 I.
With gradient checkpointing: H of each layer, and all of the above of one layer. OPD and NCA are run one after the
other, so one pass counts, the longer one, with the context (also where OPD alone runs the shorter one only);
`symmetric` keeps both.

Not counted: the CUDA context, fragments, kernels' workspaces; `MARGIN` of the GPU's memory is left for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from lightning_modules.objective.chunked import BUFFERS_PER_CHUNK, tokens_per_chunk

GIB = 2**30
Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3"]

GPU_MEMORY_GIB = {
    "RTX4090": 24, "A10": 24, "L40S": 48, "A100-40": 40, "A100-80": 80, "H100": 80, "H200": 141, "B200": 180,
}  # fmt: skip
"""Memory by the makers' data sheets, in GB as they print it; what a driver offers is a few per cent less (`MARGIN`)."""
MARGIN = 0.1
"""Share of a GPU's memory that is left free. Not measured: no GPU."""
HOST_BUFFERS = 1.5
"""DeepSpeed's own allowance for its buffers in host memory (additional_buffer_factor)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model, from its config alone."""

    parameters: int
    largest_layer: int
    """Parameters of the module that has most of its own, as DeepSpeed counts: mostly the embedding."""
    hidden: int
    layers: int
    attention_width: int
    """Heads x head size."""
    key_value_width: int
    """Key-value heads x head size."""
    mlp_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any, model: Any) -> Shape:
        """Of a transformers config, and a model made of it (on the meta device, so that it has no weights)."""
        text = config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        own = {id(parameter): parameter.numel() for parameter in model.parameters()}
        largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
        return cls(
            sum(own.values()), largest, text.hidden_size, text.num_hidden_layers, text.num_attention_heads * head,
            heads * head, text.intermediate_size, text.vocab_size,
        )  # fmt: skip

    def keys_values(self, num_bytes: int) -> int:
        """Bytes of one token's keys and values, over all layers."""
        return 2 * self.layers * self.key_value_width * num_bytes

    def layer_activations(self, *, is_float32: bool) -> int:
        """Bytes that one layer keeps of one token for its backward pass."""
        rest = 2 * self.attention_width + 2 * self.key_value_width + 4 * self.mlp_width
        if is_float32:
            return 4 * (6 * self.hidden + rest)
        # Under bf16 the norms compute in float32, and hand a bf16 copy to the layers behind them.
        return 20 * self.hidden + 2 * rest


@dataclass(frozen=True, slots=True)
class Run:
    """What decides on the memory of a run."""

    student: Shape
    teacher: Shape | None
    """None: the student itself (``live``, or the base of its adapters), or elsewhere."""
    strategy: Strategy = "single"
    num_gpus: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    is_float32: bool = True
    """Arithmetic in float32; else bf16-mixed (single, ddp: float32 weights) or ZeRO's bf16 beside float32 weights."""
    tokens: int = 8_192
    """Tokens of the longest pass: ``max_tokens_per_micro_batch``."""
    completion_tokens: int = 8_192
    """Completion tokens of a micro-batch, at most."""
    gradient_checkpointing: bool = False
    keeps_both_passes: bool = False
    """The consistency is ``symmetric``."""
    moving_averages: int = 0
    """Float32 copies of the student: teacher ``ema``, ``ema_anchor``."""
    teacher_cache_tokens: int = 0
    """Context tokens whose keys and values the teacher keeps."""
    sampled_tokens: int = 0
    """Tokens, prompts included, that are sampled together on a GPU by transformers."""
    evaluated_tokens: int = 0
    """The same in an evaluation, with the contexts: a shared one is copied for each answer once decoding goes on."""
    vllm_bytes: int = 0
    """vLLM's share of the GPU: weights and KV cache."""
    trained_parameters: int | None = None
    """Of LoRA adapters; None: all of the student's."""
    teacher_head: int = 0
    """Parameters of the head of a teacher whose layers are elsewhere: it alone is beside the student."""
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes on each GPU by what they are, and in the memory of each host, all GPUs in one."""

    parts: dict[str, int]
    training: int
    sampling: int
    evaluation: int
    host: int

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return max(self.training, self.sampling, self.evaluation)


def model_states(run: Run) -> tuple[dict[str, int], int]:
    """Weights, gradient and optimizer of the student on one GPU, and bytes in host memory."""
    adapters = run.trained_parameters or 0
    n = run.student.parameters + adapters
    trained = adapters or n
    if run.strategy in ("single", "ddp"):
        states = {"parameters": 4 * n, "gradient": 4 * trained, "optimizer": 8 * trained}
        return states | ({"gradient buckets": 4 * trained} if run.strategy == "ddp" else {}), 0
    wide = 4 if run.is_float32 else 2
    # Gradient in float32, and the weights and Adam's moments of it; in host memory where the optimizer is offloaded.
    gradient, optimizer = (
        (0, 0) if run.offload_optimizer else (4 * trained // run.num_gpus, 12 * trained // run.num_gpus)
    )
    host = int((16 * trained + (2 * n if run.offload_parameters else 0)) * HOST_BUFFERS) if run.offload_optimizer else 0
    match run.strategy:
        case "zero1":
            gradient += wide * trained
        case "zero2":
            gradient += 0 if run.offload_optimizer else wide * trained // run.num_gpus
    parameters = wide * n
    if run.strategy == "zero3":
        parameters = 4 * run.student.largest_layer + (0 if run.offload_parameters else wide * n // run.num_gpus)
    return {"parameters": parameters, "gradient": gradient, "optimizer": optimizer}, host


def plan(run: Run) -> Plan:
    """What `run` takes."""
    parts, host = model_states(run)
    wide = 4 if run.is_float32 or run.strategy in ("single", "ddp") else 2
    computed = 4 if run.is_float32 else 2
    is_spread = run.strategy == "zero3"
    if run.teacher is not None:
        parts["teacher"] = wide * run.teacher.parameters // (run.num_gpus if is_spread else 1)
        parts["teacher's contexts"] = run.teacher_cache_tokens * run.teacher.keys_values(computed)
    if run.teacher_head:
        parts["teacher's head"] = wide * run.teacher_head
    if run.moving_averages:
        averaged = run.student.parameters if run.trained_parameters is None else run.trained_parameters
        parts["moving averages"] = 4 * averaged * run.moving_averages
    held = sum(parts.values())
    temporary = {"activations": activations(run), "vocabulary": vocabulary(run)}
    if is_spread:
        temporary["whole layers"] = 2 * 4 * run.student.largest_layer  # the heads of student and teacher
    of_token = run.student.keys_values(computed)
    sampler = {"KV cache": run.sampled_tokens * of_token}
    evaluator = {"KV cache, evaluation": run.evaluated_tokens * of_token}
    if is_spread:
        sampler["whole student"] = evaluator["whole student"] = wide * run.student.parameters
    asleep = {"vLLM": run.vllm_bytes} if run.vllm_bytes else {}
    resting = held - parts["gradient"] + run.vllm_bytes
    return Plan(
        parts | temporary | sampler | evaluator | asleep,
        held + sum(temporary.values()) + run.vllm_bytes,
        resting + sum(sampler.values()),
        resting + sum(evaluator.values()),
        host,
    )


def activations(run: Run) -> int:
    """Bytes kept for the backward pass of the longest pass, or of both where both are kept."""
    student = run.student
    layer = student.layer_activations(is_float32=run.is_float32)
    stream = (4 if run.is_float32 else 2) * student.hidden
    of_token = student.layers * stream + layer if run.gradient_checkpointing else student.layers * layer
    return run.tokens * of_token * (2 if run.keeps_both_passes else 1)


def vocabulary(run: Run) -> int:
    """Bytes of a chunk's buffers, of the gradient in the hidden states, and of that in the head, summed in float32."""
    student = run.student
    tokens = min(run.completion_tokens, tokens_per_chunk(torch.device(run.device), student.vocabulary))
    chunk = 4 * BUFFERS_PER_CHUNK * student.vocabulary * tokens
    head = 0 if run.trained_parameters is not None else 4 * student.vocabulary * student.hidden
    casts = 0 if run.is_float32 else 2 * 2 * student.vocabulary * student.hidden  # both heads in bf16
    return chunk + 4 * student.hidden * run.completion_tokens + head + casts


def usable_bytes(gpu: str) -> int:
    """What a run may take of a GPU.

    Raises:
        ValueError: if the GPU is none of `GPU_MEMORY_GIB`.
    """
    if gpu not in GPU_MEMORY_GIB:
        raise ValueError(f"--gpu is {gpu!r}; known are {', '.join(GPU_MEMORY_GIB)}, or give --memory_gb.")
    return int(GPU_MEMORY_GIB[gpu] * 10**9 * (1.0 - MARGIN))


def largest_tokens(run: Run, usable: int, most: int = 2**20) -> int:
    """The largest ``max_tokens_per_micro_batch`` up to `most` that fits, in steps of 256; 0: none does."""

    def fits(tokens: int) -> bool:
        return plan(with_tokens(run, tokens)).peak <= usable

    low, high = 0, most // 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(256 * middle) else (low, middle - 1)
    return 256 * low


def with_tokens(run: Run, tokens: int) -> Run:
    """The run with another budget of a micro-batch."""
    return replace(run, tokens=tokens, completion_tokens=min(run.completion_tokens, tokens))


def suggestion(run: Run, usable: int, smallest: int = 1_024) -> str:
    """The first change, from the mildest on, that makes a run fit with micro-batches of at least `smallest` tokens."""
    changes: list[tuple[str, Callable[[Run], Run]]] = [
        ("leave it", lambda r: r),
        ("set model.gradient_checkpointing true", lambda r: replace(r, gradient_checkpointing=True)),
    ]
    ladder: list[tuple[str, dict[str, Any]]] = [
        ("configs/strategy/zero2.yaml", {"strategy": "zero2"}),
        ("configs/strategy/zero2.yaml with offload_optimizer", {"strategy": "zero2", "offload_optimizer": True}),
        ("configs/strategy/zero3.yaml", {"strategy": "zero3"}),
        ("configs/strategy/zero3.yaml with offload_optimizer and offload_parameters",
         {"strategy": "zero3", "offload_optimizer": True, "offload_parameters": True}),
    ]  # fmt: skip
    for words, values in ladder:
        changes.append((f"gradient checkpointing and {words}", _changed(values)))
    for words, change in changes:
        changed = change(run)
        tokens = largest_tokens(changed, usable, max(run.tokens, smallest))
        if tokens >= min(smallest, run.tokens):
            return f"{words}, with model.max_tokens_per_micro_batch at most {tokens}"
    return "more GPUs under ZeRO-3, larger ones, a smaller model, or LoRA"


def _changed(values: dict[str, Any]) -> Callable[[Run], Run]:
    return lambda run: replace(run, gradient_checkpointing=True, **values)
