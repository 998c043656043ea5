"""Servers that refuse, are slow, or have lost their engine, and what a server says it can read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightning_modules.rollout.engines import EngineSpec
from lightning_modules.rollout.vllm import VLLMSpec
from lightning_modules.vllm_http import VLLMClient


@contextmanager
def stand_in(health: int, answer: int | None) -> Iterator[str]:
    """A server whose engine is in some state: `health` and `answer` are statuses, None: it never answers."""
    released = threading.Event()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(health if self.path == "/health" else 200, b'{"data": [{"id": "m", "max_model_len": 64}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if answer is None:
                released.wait(timeout=30)
            self._answer(answer or 200, b'{"detail": "reason"}')

        def _answer(self, status, content):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            released.set()
            server.shutdown()


@pytest.mark.parametrize("answer", [None, 500])
def test_a_server_whose_engine_is_dead_is_not_waited_for(answer, monkeypatch):
    """vLLM's server outlives its engine, and keeps open what the engine will never answer."""
    monkeypatch.setattr("lightning_modules.vllm_http.WATCH_EVERY_S", 0.05)
    with (
        stand_in(health=503, answer=answer) as url,
        pytest.raises(ConnectionError, match=r"has lost its engine.*want of memory.*--ckpt_path last"),
    ):
        VLLMClient(url, "engine.vllm.server_url").post("/v1/completions", {})


def test_a_server_that_refuses_or_is_slow_is_not_taken_for_dead(monkeypatch):
    monkeypatch.setattr("lightning_modules.vllm_http.WATCH_EVERY_S", 0.05)
    with stand_in(health=200, answer=500) as url, pytest.raises(RuntimeError, match=r"/x answered 500: .*reason"):
        VLLMClient(url, "engine.vllm.server_url").post("/x", {})
    with stand_in(health=200, answer=None) as url:
        client, answers = VLLMClient(url, "engine.vllm.server_url"), []
        asking = threading.Thread(target=lambda: answers.append(client.post("/x", {})))
        asking.start()
        asking.join(timeout=0.5)
        assert asking.is_alive()
    asking.join(timeout=10)
    assert answers == [{"detail": "reason"}]


def test_the_shorter_limit_counts():
    assert EngineSpec().max_length() is None
    assert EngineSpec("vllm", VLLMSpec(max_model_len=100)).max_length() == 100
    with stand_in(health=200, answer=200) as url:
        assert EngineSpec("vllm", VLLMSpec("server", url)).max_length() == 64
        assert EngineSpec("vllm", VLLMSpec("server", url, max_model_len=50)).max_length() == 50
