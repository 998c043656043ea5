"""What happens when something outside the run goes wrong: it ends with a message that helps, and can be continued."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.checkpoint_io import WholeFileIO
from callbacks.run_checkpoint import PREEMPTED, Preempted, RunCheckpoint
from cli.checkpoints import last_checkpoint
from lightning_modules.context_distillation import ContextDistillation
from tests.integration.conftest import ROOT


@contextmanager
def after_step(step: int, what) -> Iterator[None]:
    """Have something happen in the midst of a run, before the checkpoint of a step is written."""
    own = ContextDistillation._log_step

    def log_step(self, *args):
        own(self, *args)
        if self.trainer.global_step == step:
            what()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextDistillation, "_log_step", log_step)
        yield


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_preemption_saves_the_step_and_ends_with_its_own_exit_code(runs, weights_equal, capfd, monkeypatch, signum):
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # SIGUSR1 means something there alone
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # as in an interactive job: Lightning starts the process itself
    whole = runs.fit("whole")
    seldom = ("--checkpoint.every_n_train_steps", "50", "--checkpoint.save_top_k", "1")
    before = signal.getsignal(signum)
    with after_step(2, lambda: os.kill(os.getpid(), signum)), pytest.raises(Preempted) as stopped:
        runs.fit("run", *seldom)
    assert stopped.value.code == PREEMPTED == 75
    assert signal.getsignal(signum) == before
    run = runs.root / "run"
    message = capfd.readouterr().err
    assert f"{signum.name}: saved {run}/checkpoints/step=000002.ckpt. Continue with --ckpt_path auto." in message
    runs.fit("run", "--ckpt_path", "auto")
    assert runs.metrics(run) == runs.metrics(whole)
    weights_equal(runs.weights(run, 3), runs.weights(whole, 3), exactly=True)


def test_the_last_step_has_a_checkpoint_whatever_the_schedule(runs):
    seldom = ("--checkpoint.every_n_train_steps", "2", "--checkpoint.save_top_k", "1")
    run = runs.fit("run", *seldom)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step=000003.ckpt"]
    metrics = runs.metrics(run)
    runs.fit("run", *seldom, "--ckpt_path", "auto")  # what the launch scripts say: there is nothing left to do
    assert runs.metrics(run) == metrics
    assert not [*runs.root.glob("run.unsaved*")]
    stopped = runs.fit("stopped", *seldom, "--trainer.callbacks+=tests.integration.test_faults.StopsEarly")
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step=000001.ckpt"]
    none = runs.fit("none", "--checkpoint.save_top_k", "0")
    assert not [*none.glob("checkpoints/*")]


class StopsEarly(Callback):
    """Ends a fit after its first step, as EarlyStopping may."""

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.should_stop = True


def test_a_schedule_that_would_never_save_is_refused(runs):
    words = ("--checkpoint.every_n_train_steps", "null", "--checkpoint.train_time_interval", "00:00:01")
    with pytest.raises(ValueError, match=r"every_n_train_steps must be at least 1"):
        runs.fit("run", *words)


def test_a_run_that_was_stopped_after_its_last_step_still_exports(runs):
    export = "--trainer.callbacks+=HFExport"
    with after_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Preempted):
        runs.fit("run", export)
    run = runs.root / "run"
    assert not (run / "export").exists()
    runs.fit("run", export, "--ckpt_path", "auto")
    assert (run / "export/model.safetensors").is_file()
    untrained = runs.fit("untrained", export, "--trainer.max_steps", "0")
    assert not (untrained / "export").exists()


def test_a_checkpoint_from_a_url_runs_no_code_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    torch.save({"state_dict": _Touches(tmp_path / "touched")}, tmp_path / "served/evil.ckpt")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            WholeFileIO().load_checkpoint(f"http://127.0.0.1:{server.server_port}/evil.ckpt")
        server.shutdown()
    assert not (tmp_path / "touched").exists()


class _Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("words", [
    "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete",
    "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:43231",
    "[../gloo/transport/tcp/pair.cc] Application timeout caused pair closure",
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)",
])  # fmt: skip
def test_a_lost_process_is_told_by_what_torch_says(words):
    trainer = SimpleNamespace(
        world_size=2, global_rank=0, global_step=0, ckpt_path=None, state=SimpleNamespace(fn=None)
    )
    error = RuntimeError(words)
    RunCheckpoint().on_exception(trainer, None, error)
    assert "Rank 0 of 2 has lost another process of this run" in error.__notes__[0]


def test_a_real_sigterm_of_a_real_process(runs):
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *runs.args("fit", "run", "--trainer.max_steps", "100000")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = runs.root / "run"
    wait_for(run / "checkpoints/step=000003.ckpt", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED
    assert "SIGTERM: saved" in errors
    assert "Traceback" not in errors
    assert last_checkpoint(run).name == f"step={len(runs.metrics(run)):06d}.ckpt"


def stopped_by(signum: int, words: list[str], once: Path) -> tuple[int, str, str]:
    """Run ``python -m cli``, send it a signal once a file is there; its exit code, and what it printed to both."""
    if signal.getsignal(signum) is signal.SIG_IGN:
        pytest.skip("the signal is ignored here, as in a shell's background, and so by what is started")
    command = [sys.executable, "-m", "cli", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(once, process)
        process.send_signal(signum)
        output, errors = process.communicate(timeout=60)
    finally:
        process.terminate()  # where a check failed
    return process.returncode, output, errors


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def small_disk(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the kernel's own refusal, with the errno changed to a full disk's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB: the tiny model's checkpoint fits, two do not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(runs, disk):
    """The disk is really full: the kernel says so in the midst of the second checkpoint."""
    whole = runs.fit("whole")
    size = (whole / "checkpoints/step=000001.ckpt").stat().st_size
    (disk / "ballast").write_bytes(b"x" * (4 * 2**20 - size - size // 2 - 65_536))
    runs.root = disk
    with pytest.raises(OSError, match=r"No space left on device.*resume from the run's last checkpoint") as stopped:
        runs.fit("run")
    run = disk / "run"
    assert "step=000002.ckpt" in str(stopped.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step=000001.ckpt"]
    (note,) = stopped.value.__notes__
    assert note.startswith(f"The run's last checkpoint is {run}/checkpoints/step=000001.ckpt. Continue with")
    (disk / "ballast").unlink()
    runs.fit("run", "--ckpt_path", "last", "--checkpoint.save_top_k", "1")
    assert runs.metrics(run) == runs.metrics(whole)


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder/a.ckpt"
    WholeFileIO().save_checkpoint({"weights": torch.ones(1000)}, path)
    before = path.read_bytes()
    with small_disk(100_000), pytest.raises(OSError, match="File too large"):
        WholeFileIO().save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    with pytest.raises(TypeError, match="storage_options"):
        WholeFileIO().save_checkpoint({}, path, storage_options={})


def test_what_a_kill_left_half_written_is_removed(runs):
    run = runs.fit("run", "--trainer.max_steps", "1")
    (run / "checkpoints/step=000002.ckpt.unfinished").write_bytes(b"half")
    (run / "checkpoints/step=000003.ckpt.unfinished").mkdir()
    runs.fit("run", "--ckpt_path", "last", "--trainer.max_steps", "2")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step=000001.ckpt", "step=000002.ckpt"]


def test_an_error_says_where_to_go_on(runs):
    def fail():
        raise KeyError("anything")

    with after_step(1, fail), pytest.raises(KeyError) as first:
        runs.fit("early")
    assert first.value.__notes__ == ["The run had no checkpoint yet. Start it again with --ckpt_path auto."]
    with after_step(2, fail), pytest.raises(KeyError) as second:
        runs.fit("late")
    assert second.value.__notes__ == [
        f"The run's last checkpoint is {runs.root}/late/checkpoints/step=000001.ckpt. Continue with --ckpt_path last."
    ]
    with after_step(2, fail), pytest.raises(KeyError) as third:
        runs.fit("late", "--ckpt_path", "last")
    assert third.value.__notes__ == second.value.__notes__


def test_the_state_of_a_run_with_a_monitor_is_saved_too(runs, capfd):
    """The best checkpoints are one thing, the one to continue from another."""
    monitor = ("--checkpoint.monitor", "loss", "--checkpoint.every_n_train_steps", "50")
    with after_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Preempted):
        runs.fit("run", *monitor)
    assert last_checkpoint(runs.root / "run").name == "step=000002.ckpt"
    assert RunCheckpoint().state_key.startswith("RunCheckpoint")
