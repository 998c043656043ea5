"""`RunCheckpoint`: a run that is preempted, loses its disk or another process keeps a checkpoint to continue from.

It is Lightning's ModelCheckpoint with these differences:

* the last step has a checkpoint, whatever the schedule;
* a checkpoint has its name only when it is whole (`checkpoint_io.WholeFileIO`; for folders `ZeROStrategy` does it);
* SIGTERM, which is how schedulers announce preemption, and SIGUSR1 under SLURM: the current step is finished, a
  checkpoint written, and the process ends with exit code 75. Lightning's own handlers would stop without one, or save
  in the midst of an update;
* an error that ends a fit says which checkpoint to continue from, and a lost process is named as that.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.checkpoint_io import UNFINISHED, WholeFileIO
from callbacks.durable_files import disk_full_explained
from lightning_modules.strategies import zero_stage

PREEMPTED = 75
"""Exit code of a run that was told to stop and can be continued: EX_TEMPFAIL of sysexits.h, "try again later"."""

_LOST_PEER = re.compile(
    r"Connection (closed|reset) by peer|Connection refused|Timed out waiting|Broken pipe|"
    r"Socket Timeout|[Ww]atchdog|NCCL communicator was aborted|remote process exited|"
    r"connection has been lost|Application timeout|timed out connecting|connection timed out|Read error|"
    r"recvValue|sendBytes",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say where another process died or does not answer."""
_TORCH_WRITER = re.compile(r"inline_container|PytorchStreamWriter|file write failed|unexpected pos")


class Preempted(SystemExit):
    """The run was told to stop, has saved its state and ends."""


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that saves on SIGTERM and never leaves half a checkpoint; its arguments are ModelCheckpoint's.

    Raises:
        ValueError: from `setup`, if nothing would ever be saved by the schedule.
        Preempted: after the step in which the signal came. Its exit code is `PREEMPTED` on rank 0, and 0 on other
            ranks, whose parent would otherwise kill rank 0 before it is done.
        OSError: if a checkpoint can't be written; earlier ones are kept.
    """

    _signal: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """As ModelCheckpoint's; write files our way, and remove what a killed run left half there."""
        super().setup(trainer, pl_module, stage)
        if not pl_module.automatic_optimization and self._every_n_train_steps < 1 and self.save_top_k != 0:
            raise ValueError(
                "checkpoint.every_n_train_steps must be at least 1: in manual optimization Lightning saves by nothing "
                "else, neither by train_time_interval nor by every_n_epochs. checkpoint.save_top_k 0 saves nothing."
            )
        strategy = trainer.strategy
        if not zero_stage(strategy) and type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = WholeFileIO()
        if stage == "fit" and trainer.is_global_zero:
            for unfinished in Path(str(self.dirpath)).glob(f"*{UNFINISHED}"):
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning, which gives them back when the fit ends."""
        super().on_train_start(trainer, pl_module)
        self._signal = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
            if "SLURM_JOB_ID" in os.environ:
                signal.signal(signal.SIGUSR1, self._note)
        self._stop_if_told(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the schedule says so, and where a signal has come."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:
            self._save_the_end(trainer)
        self._stop_if_told(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save where something else than max_steps has ended the fit."""
        super().on_train_end(trainer, pl_module)
        self._save_the_end(trainer)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum

    def _stop_if_told(self, trainer: L.Trainer) -> None:
        # Any rank's signal stops all of them, at the same step.
        if not trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            return
        self._save_now(trainer)
        if trainer.is_global_zero:
            name = signal.Signals(self._signal).name if self._signal is not None else "A signal on another rank"
            saved = f"saved {self._last_checkpoint_saved}" if trainer.global_step > 0 else "no step was made"
            words = f"{name}: {saved}. Continue with --ckpt_path auto. Exit code {PREEMPTED}."
            print(words, file=sys.stderr, flush=True)
        raise Preempted(PREEMPTED if trainer.is_global_zero else 0)

    def _save_the_end(self, trainer: L.Trainer) -> None:
        """The last step's state, which a schedule that does not divide the number of steps would leave out."""
        if self.save_top_k != 0 and not self._should_skip_saving_checkpoint(trainer):
            self._save_now(trainer)

    def _save_now(self, trainer: L.Trainer) -> None:
        if trainer.global_step > 0 and self._last_global_step_saved != trainer.global_step:
            candidates = self._monitor_candidates(trainer)
            if self.monitor is None and self.save_top_k != 0:
                self._save_topk_checkpoint(trainer, candidates)  # the one before goes, as in the schedule
            else:
                self._save_checkpoint(trainer, self.format_checkpoint_name(candidates))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        with _writing_explained(Path(filepath)):
            super()._save_checkpoint(trainer, filepath)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say how to go on, under the error itself."""
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, Preempted):
            return
        if trainer.world_size > 1 and _LOST_PEER.search(str(exception)):
            exception.add_note(
                f"Rank {trainer.global_rank} of {trainer.world_size} has lost another process of this run: it died "
                "(killed, out of memory, an error of its own: look into its output), or did not answer within the "
                "strategy's timeout (docs/faults.md)."
            )
        saved = self._last_checkpoint_saved or str(getattr(trainer, "ckpt_path", None) or "")
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if saved:
            exception.add_note(f"The run's last checkpoint is {saved}. Continue with --ckpt_path last.")
        elif trainer.global_step > 0:  # before the first step there is nothing to go on with
            exception.add_note("The run had no checkpoint yet. Start it again with --ckpt_path auto.")


@contextmanager
def _writing_explained(path: Path) -> Iterator[None]:
    """Explain a failed write: a full disk by its errno, and what torch says of one in DeepSpeed's folders."""
    with disk_full_explained(path):
        try:
            yield
        except RuntimeError as error:
            if not _TORCH_WRITER.search(str(error)):
                raise
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                f"{path} could not be written; {free / 2**20:.0f} MiB are free there. Earlier checkpoints are kept. "
                "Free space (old checkpoints are the largest files of a run) and continue with --ckpt_path last."
            ) from error
