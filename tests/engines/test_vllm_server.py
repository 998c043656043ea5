"""vLLM as a separate process: token ids out and back, weights over HTTP, and servers that can't train."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.adapters import LoRASpec, add_adapters
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.engines import EngineSpec, make_engine
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.rollout.sync_check import StaleWeightsError
from lightning_modules.rollout.vllm import VLLMSpec
from lightning_modules.rollout.vllm_server import VLLMServer
from lightning_modules.rollout.vllm_worker import QUALIFIED_NAME
from tests.engines.test_deepspeed import SETTINGS, TwoRanks, close
from tests.engines.test_vllm_lora import draw_adapters
from tests.integration.conftest import CONFIG, Runs

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")

ROOT = Path(__file__).parents[2]
PROMPTS = [[5, 6, 7, *range(20 + n, 20 + 2 * n)] for n in (1, 4, 9, 2)]
GREEDY, SAMPLED = SamplingSpec(12, temperature=0.0), SamplingSpec(12)


@contextmanager
def vllm_server(model: Path, log: Path, *args: str, **variables: str) -> Iterator[str]:
    """A vLLM server as a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    options = ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **variables}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options, "--generation-config", "vllm", *args],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:  # one whose engine was killed waits for its requests for ever
                process.kill()
                process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 600.0) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(log.read_text()[-3000:])


@contextmanager
def training_server(model: Path, log: Path) -> Iterator[str]:
    """A server that takes weights and adapters, as docs/engines.md starts it."""
    width = len(AutoTokenizer.from_pretrained(model))
    cut = ("--load-format", "dummy", "--hf-overrides", json.dumps({"vocab_size": width}))
    options = (*cut, "--worker-extension-cls", QUALIFIED_NAME, "--enable-lora", "--max-lora-rank", "8")
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with vllm_server(model, log, *options, **variables) as url:
        yield url


@pytest.fixture(scope="module")
def url(vllm_model_dir, tmp_path_factory):
    with training_server(vllm_model_dir, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture
def engine(url, vllm_model_dir):
    return engine_of(url, vllm_model_dir)


def server_flags(url: str) -> tuple[str, ...]:
    """Flags of a fit that samples on the server at `url`."""
    kind = ("--model.engine.kind", "vllm", "--model.engine.vllm.mode", "server")
    return (*kind, "--model.engine.vllm.server_url", url)


def engine_of(url, vllm_model_dir, lora=None):
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    if lora is not None:
        add_adapters(model, lora, "tiny")
    tokenizer = AutoTokenizer.from_pretrained(vllm_model_dir)
    return make_engine(EngineSpec("vllm", VLLMSpec("server", url)), model, tokenizer, 8)


@torch.no_grad()
def move(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))


def generate(engine, sampling, seed=0):
    with engine.current_weights():
        return engine.generate(PROMPTS, sampling, seed)


def test_the_server_follows_the_student(engine):
    before = generate(engine, GREEDY)
    assert before == HFRolloutEngine(engine.model, engine.tokenizer).generate(PROMPTS, GREEDY, 0)
    move(engine.model)
    after = generate(engine, GREEDY)
    assert after != before
    assert after == HFRolloutEngine(engine.model, engine.tokenizer).generate(PROMPTS, GREEDY, 0)
    assert engine.logprob_gap < 2e-5


def test_the_server_follows_adapters(url, vllm_model_dir, monkeypatch):
    """Of two trainers, one after the other: the second one finds the first one's base and adapters there."""
    sent: list[str] = []
    own = VLLMServer._call_workers
    monkeypatch.setattr(
        VLLMServer, "_call_workers", lambda self, method, **given: sent.append(method) or own(self, method, **given)
    )
    answers = []
    for modules in (["q_proj", "lm_head"], "all-linear"):
        engine = engine_of(url, vllm_model_dir, LoRASpec(r=3, alpha=12.0, target_modules=modules))
        if modules == "all-linear":
            move(engine.model)
        for seed in (1, 2):
            draw_adapters(engine.model, seed)
            answers.append(generate(engine, GREEDY))
            assert answers[-1] == HFRolloutEngine(engine.model, engine.tokenizer).generate(PROMPTS, GREEDY, 0)
            assert engine.logprob_gap < 2e-5
    assert len({str(answer) for answer in answers}) == 4
    assert sent.count("finish_new_weights") == 2
    assert sent.count("load_encoded_adapter") == 4


def test_full_parameters_after_adapters(engine):
    """The adapters stay on the server, and no request names them."""
    assert generate(engine, GREEDY) == HFRolloutEngine(engine.model, engine.tokenizer).generate(PROMPTS, GREEDY, 0)


def test_a_server_without_room_for_the_adapters_is_named(url, vllm_model_dir):
    engine = engine_of(url, vllm_model_dir, LoRASpec(r=9))
    draw_adapters(engine.model, 1)
    with pytest.raises(RuntimeError, match=r"takes no adapters .*--enable-lora and --max-lora-rank of at least 9"):
        generate(engine, GREEDY)


def test_seeded_and_never_padding(engine):
    with torch.no_grad():  # a padding column that would win every draw
        embedding = engine.model.get_input_embeddings().weight
        embedding[len(engine.tokenizer) :] = 20 * embedding[: len(embedding) - len(engine.tokenizer)]
    first, again, other = (generate(engine, SAMPLED, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert max(token for completion in first for token in completion.token_ids) < len(engine.tokenizer)


def test_another_trainer_on_the_same_server_stops(engine):
    with engine.current_weights():
        move(engine.model)  # as if somebody else's weights had arrived in between
        with pytest.raises(StaleWeightsError):
            engine.generate(PROMPTS, SAMPLED, 0)


def test_training_as_with_transformers(url, vllm_model_dir, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=vllm_model_dir))
    runs = Runs(tmp_path, tmp_path / "config.yaml")
    greedy = ("--model.sampling.temperature", "0")
    hf = runs.metrics(runs.fit("hf", *greedy))
    vllm = runs.metrics(runs.fit("vllm", *greedy, *server_flags(url)))
    for own, theirs in zip(vllm, hf, strict=True):
        assert float(own["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=1e-4)


def test_two_ranks_share_the_server(url, vllm_model_dir, tmp_path):
    """Weights are replaced when both ranks are done with the old ones, though they have other numbers of items."""
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=vllm_model_dir))
    one = Runs(tmp_path / "one", tmp_path / "config.yaml")
    theirs = one.metrics(one.fit("run", *SETTINGS))
    ranks = TwoRanks(Runs(tmp_path, tmp_path / "config.yaml"), "ddp")
    ranks.job("fit", "run", *server_flags(url))
    ranks.job("fit", "lost", *server_flags(url), "--model.student.lora.r", "9", fails=True)
    ranks.start()
    close(ranks.runs.metrics(tmp_path / "run"), theirs, rel=1e-4)
    errors = [(tmp_path / f"lost/error.rank{rank}.txt").read_text() for rank in (0, 1)]
    assert "RuntimeError: The vLLM server at" in errors[0]
    assert "Rank zero could not send the student's weights to vLLM. RuntimeError: The vLLM server at" in errors[1]


def test_a_server_with_another_vocabulary_does_not_train(engine):
    generate(engine, GREEDY)
    engine._backend.vocab_size -= 1
    with pytest.raises(RuntimeError, match=r"--hf-overrides '\{\"vocab_size\": "):
        generate(engine, GREEDY)


def test_a_server_with_fixed_weights_does_not_train(vllm_model_dir):
    """A stand-in for a server without the development endpoints: it lists its model, and knows no more."""

    class FixedWeights(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(200, b'{"data": [{"id": "model"}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(404, b'{"detail": "Not Found"}')

        def _answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(vllm_model_dir)
    with ThreadingHTTPServer(("127.0.0.1", 0), FixedWeights) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        engine = make_engine(EngineSpec("vllm", VLLMSpec("server", url)), model, tokenizer, 8)
        try:
            with pytest.raises(RuntimeError, match=r"takes no weights .*404.*VLLM_SERVER_DEV_MODE=1"):
                generate(engine, GREEDY)
        finally:
            server.shutdown()


def test_a_prompt_beyond_the_servers_window_stops_before_the_first_step(url, vllm_model_dir, tmp_path):
    """The model reads 2,048 tokens, the server was started for 1,024."""
    context = tmp_path / "long.txt"
    context.write_text("continent " * 1200)
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=vllm_model_dir))
    runs = Runs(tmp_path, tmp_path / "config.yaml")
    own = ("--data.init_args.context", str(context), "--model.views.context_slot", "system")
    with pytest.raises(ValueError, match=r"Item 'geonames:.*model positions 1024 less max_completion_length"):
        runs.fit("run", *own, *server_flags(url))
    assert not (tmp_path / "run/metrics.csv").exists()


def test_a_missing_server_is_named(vllm_model_dir):
    model = AutoModelForCausalLM.from_pretrained(vllm_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(vllm_model_dir)
    engine = make_engine(EngineSpec("vllm", VLLMSpec("server", "http://127.0.0.1:1")), model, tokenizer, 8)
    with pytest.raises(ConnectionError, match=r"No vLLM server answers at http://127\.0\.0\.1:1"):
        generate(engine, GREEDY)
