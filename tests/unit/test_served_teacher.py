"""A teacher on a server: what is read from its files here, and what is refused before anything runs."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, LlamaForCausalLM

from lightning_modules.models import ModelSpec
from lightning_modules.served_teacher import ServedTeacher, _config_of, _head_of
from lightning_modules.teachers import Teacher, TeacherSpec

NOBODY = "http://127.0.0.1:1"


def head_of(folder, dtype="float32"):
    spec = ModelSpec(str(folder), dtype=dtype)
    return _head_of(spec, _config_of(spec))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_the_head_is_the_models_own(tied, shard_size, tmp_path):
    config = LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    head = head_of(tmp_path)
    assert torch.equal(head.weight, model.get_output_embeddings().weight)
    assert not head.weight.requires_grad
    assert head_of(tmp_path, "bfloat16").weight.dtype is torch.bfloat16


def test_a_head_that_is_not_there(tiny_model_dir, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"head of model .*model\.safetensors"):
        head_of(tmp_path)


def test_models_whose_head_is_not_known_to_be_plain(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of type 'gpt2'; types that are known .*llama.*qwen3"):
        _config_of(ModelSpec(str(tmp_path)))
    with pytest.raises(ValueError, match=r"teacher\.model\.gguf_file"):
        _config_of(ModelSpec("m", gguf_file="m.gguf"))


@pytest.mark.parametrize("other", [{"kind": "frozen"}, {"kind": "model", "model": ModelSpec("m"), "device": "cpu"}])
def test_settings_that_do_not_fit_together(other):
    with pytest.raises(ValueError, match=r"teacher\.server_url is 'http.*kind 'model'"):
        TeacherSpec(server_url=NOBODY, **other)


def test_a_missing_server_is_named(tiny_model_dir):
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    spec = TeacherSpec("model", ModelSpec(str(tiny_model_dir)), server_url=NOBODY)
    with pytest.raises(ConnectionError, match=r"No vLLM server answers at .* \(teacher\.server_url\)"):
        Teacher(spec, student, AutoTokenizer.from_pretrained(tiny_model_dir))


class Answers(BaseHTTPRequestHandler):
    """A stand-in for servers that are not what is needed: it lists a model, and answers `/pooling` as it was told."""

    status, content, kind = 200, b"", "application/octet-stream"

    def do_GET(self):
        self._answer(200, b'{"data": [{"id": "other", "max_model_len": 64}]}', "application/json")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.status, self.content, self.kind)

    def _answer(self, status, content, kind):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_samples_only(server, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(Answers, "status", 404)
    with pytest.raises(RuntimeError, match=r"gives no hidden states .*404.*--runner pooling"):
        ServedTeacher(server, ModelSpec(str(tiny_model_dir)))


def test_a_server_of_another_width(server, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(Answers, "content", bytes(3 * 64 * 4))
    with pytest.raises(RuntimeError, match=r"192 numbers for 3 tokens of 32: it runs 'other', which is not"):
        ServedTeacher(server, ModelSpec(str(tiny_model_dir)))


def test_states_that_are_scaled(server, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(Answers, "content", torch.nn.functional.normalize(torch.ones(3, 32)).numpy().tobytes())
    with pytest.raises(RuntimeError, match="length 1"):
        ServedTeacher(server, ModelSpec(str(tiny_model_dir)))


def test_a_clusters_proxy_is_not_asked_for_this_machine(server, tiny_model_dir, monkeypatch):
    monkeypatch.setenv("http_proxy", NOBODY)
    monkeypatch.setattr(Answers, "content", bytes(3 * 32 * 4))
    assert ServedTeacher(server, ModelSpec(str(tiny_model_dir))).name == "other"


def test_an_answer_of_another_kind(server, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(Answers, "content", b'{"data": []}')
    monkeypatch.setattr(Answers, "kind", "application/json")
    with pytest.raises(RuntimeError, match="without hidden states in bytes"):
        ServedTeacher(server, ModelSpec(str(tiny_model_dir)))


def test_it_does_not_sample_and_says_what_it_can_read(server, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(Answers, "content", bytes(3 * 32 * 4))
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    spec = TeacherSpec("model", ModelSpec(str(tiny_model_dir)), server_url=server)
    teacher = Teacher(spec, student, AutoTokenizer.from_pretrained(tiny_model_dir))
    assert teacher.max_length(student) == 64
    assert not teacher.state_dict()
    with pytest.raises(ValueError, match=r"teacher\.server_url is set.*rollouts\.sampler"):
        teacher.network(student)
