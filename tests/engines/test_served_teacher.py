"""A teacher on a vLLM server: the numbers of the same teacher beside the student, and servers that are not one."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_modules.models import ModelSpec
from lightning_modules.packing import completion_hidden_states, lay_out
from lightning_modules.served_teacher import ServedTeacher
from tests.engines.test_deepspeed import SETTINGS, TwoRanks, close
from tests.engines.test_vllm_server import vllm_server
from tests.integration.conftest import CONFIG, Runs

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")

POOLING = ("--runner", "pooling", "--convert", "embed", "--pooler-config", '{"task": "token_embed"}')


@pytest.fixture(scope="module")
def url(vllm_model_dir, tmp_path_factory):
    with vllm_server(vllm_model_dir, tmp_path_factory.mktemp("pooling") / "log", *POOLING) as url:
        yield url


def test_hidden_states_are_the_models_own(url, vllm_model_dir):
    served = ServedTeacher(url, ModelSpec(str(vllm_model_dir)))
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    prompts, completions = [[5, 6, 7, 20], [5, 6, 7, *range(30, 60)], [5, 6, 9]], [[8, 9], [10], [11, 12, 13]]
    shared = lay_out([prompts[0], prompts[1]], completions[:2], [5, 6, 7], 0, "cpu")
    ragged = lay_out(prompts, completions, [], 0, "cpu")
    for batch in (shared, ragged):
        with torch.no_grad():
            local = completion_hidden_states(model, batch)
        torch.testing.assert_close(served.completion_hidden_states(batch), local, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(served.head.weight, model.get_output_embeddings().weight)


def test_training_as_with_the_teacher_beside_the_student(url, vllm_model_dir, tiny_model_dir, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=tiny_model_dir))
    runs = Runs(tmp_path, tmp_path / "config.yaml")
    other = ("--model.teacher.kind", "model", "--model.teacher.model.name", str(vllm_model_dir))
    method = ("--model.consistency", "teacher_no_context_anchor", "--model.max_tokens_per_micro_batch", "400")
    local = runs.metrics(runs.fit("local", *other, *method))
    served = runs.metrics(runs.fit("served", *other, *method, "--model.teacher.server_url", url))
    close(served, local, rel=1e-4)


def test_two_ranks_ask_the_server(url, vllm_model_dir, tiny_model_dir, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=tiny_model_dir))
    other = ("--model.teacher.kind", "model", "--model.teacher.model.name", str(vllm_model_dir))
    one = Runs(tmp_path / "one", tmp_path / "config.yaml")
    local = one.metrics(one.fit("run", *other, *SETTINGS))
    ranks = TwoRanks(Runs(tmp_path, tmp_path / "config.yaml"), "zero3")
    ranks.job("fit", "run", *other, "--model.teacher.server_url", url)
    ranks.start()
    close(ranks.runs.metrics(tmp_path / "run"), local, rel=1e-4)


def test_the_server_of_another_model_is_named(url, tiny_model_dir):
    with pytest.raises(RuntimeError, match=r"it runs '.*', which is not the model of teacher\.model\.name"):
        ServedTeacher(url, ModelSpec(str(tiny_model_dir)))
