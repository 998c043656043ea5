"""A sampler that dies within a run, and one that has no room: the run ends with a message and can be continued."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from lightning_modules.context_distillation import ContextDistillation
from tests.engines.test_vllm_server import training_server
from tests.integration.conftest import CONFIG, Runs

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")

SERVER = ("--model.engine.kind", "vllm", "--model.engine.vllm.mode", "server", "--model.engine.vllm.server_url")


@pytest.fixture
def runs(vllm_model_dir, tmp_path) -> Runs:
    (tmp_path / "vllm.yaml").write_text(CONFIG.format(model=vllm_model_dir))
    return Runs(tmp_path, tmp_path / "vllm.yaml")


def test_a_kv_cache_without_room_names_the_settings(runs):
    with pytest.raises(ValueError, match=r"vLLM did not start: (.|\n)*engine\.vllm\.kv_cache_gib \(0\.0001\)"):
        runs.fit("run", "--model.engine.kind", "vllm", "--model.engine.vllm.kv_cache_gib", "0.0001")
    assert not (runs.root / "run/metrics.csv").exists()


@pytest.mark.parametrize(
    ("victim", "message"),
    [("server", "No vLLM server answers at"), ("engine", "has lost its engine, most likely for want of memory")],
)
def test_a_server_that_is_killed_within_a_run(runs, vllm_model_dir, tmp_path, monkeypatch, victim, message):
    """kill -9 after the first step. Without it the run goes on with another sampler, from that step's checkpoint.

    The engine alone is what a kernel without memory kills: it holds the weights and the KV cache.
    """
    own = ContextDistillation._log_step
    with training_server(vllm_model_dir, tmp_path / "log") as url:

        def log_step(self, *args):
            own(self, *args)
            for pid in processes_of(url, victim):
                os.kill(pid, signal.SIGKILL)

        monkeypatch.setattr(ContextDistillation, "_log_step", log_step)
        with pytest.raises(ConnectionError, match=rf"{message}(.|\n)*--ckpt_path last") as lost:
            runs.fit("run", *SERVER, url)
    assert url in str(lost.value)
    assert lost.value.__notes__[-1].startswith(f"The run's last checkpoint is {runs.root}/run/checkpoints/step=000001")
    monkeypatch.undo()
    run = runs.fit("run", "--ckpt_path", "last")
    assert [row["step"] for row in runs.metrics(run)] == ["1", "2", "3"]


def processes_of(url: str, victim: str) -> list[int]:
    """The engine that the server started, and the server itself where that is to die too."""
    (server,) = pids("-f", "--", f"--port {url.rsplit(':', 1)[1]} ")
    engines = pids("-P", str(server), "-f", "EngineCore")
    assert engines
    return [server, *engines] if victim == "server" else engines


def pids(*pattern: str) -> list[int]:
    found = subprocess.run(["pgrep", *pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split() if int(pid) != os.getpid()]
