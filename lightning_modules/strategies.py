"""`ZeROStrategy`: DeepSpeed ZeRO 1, 2 and 3 through Lightning, on GPUs and, for tests and dry runs, on CPU processes.

Lightning's DeepSpeedStrategy refuses CPUs; DeepSpeed itself runs there over gloo. Three of its methods are overridden
for CPUs, under the Lightning versions that they were written for. On GPUs all of that is Lightning's own.

What else differs from Lightning's class, everywhere:

* frozen parameters (the teacher) are never written into a checkpoint;
* a checkpoint folder appears under its name as a whole or not at all;
* checkpoints are loaded with torch's weights-only unpickler, which runs no code;
* a gradient that is not finite is never applied, in bf16 neither;
* offloaded optimizers may be any of torch's.

Under ZeRO-3 every forward is a collective: all ranks must run the same layers in the same order, or they wait for each
other for ever (DeepSpeed issue 8262). Training steps do: `ContextDistillation` gives every rank as many micro-batches,
of the same passes. Sampling and evaluation can't: completions, games and shares of a split end at different times.
They run inside `whole_weights`, where each rank holds a copy and nothing is exchanged.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from lightning_modules.checkpoint_folders import seal
from lightning_modules.spread_weights import LayerHooks, gathered
from lightning_modules.zero_checkpoints import read_states, read_zero_checkpoint, weights_only_loading

LIGHTNING_VERSIONS = ((2, 6), (2, 7))
"""From the first, below the second: releases whose DeepSpeedStrategy the CPU overrides were written for."""


class ZeROStrategy(DeepSpeedStrategy):
    """DeepSpeed ZeRO: what every rank keeps a share of, in place of a copy.

    Args:
        stage: 1: the optimizer's state; 2: gradients too; 3: parameters too.
        offload_optimizer: keep the optimizer's state in host memory and step there.
        offload_parameters: keep the shares of the parameters in host memory (stage 3 only).
        bucket_size: elements that are reduced or gathered at once; more is faster and takes more memory.
        overlap_comm: exchange gradients while the backward pass goes on.
        persistence_threshold: parameters of at most so many elements stay whole on every rank (stage 3 only).
        timeout: how long a rank waits for the others before it takes them for lost.

    Raises:
        ValueError: if parameters are to be offloaded below stage 3.
        MisconfigurationException: if DeepSpeed is not installed.
        ImportError: on CPUs under a Lightning that this was not written for.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        bucket_size: int = 200_000_000,
        overlap_comm: bool = True,
        persistence_threshold: int = 100_000,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        if offload_parameters and stage != 3:
            raise ValueError(f"offload_parameters is true at stage {stage}; only stage 3 has parameters to offload.")
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            reduce_bucket_size=bucket_size,
            allgather_bucket_size=bucket_size,
            overlap_comm=overlap_comm,
            logging_batch_size_per_gpu=1,  # for DeepSpeed's log only; its own guess needs a loader with a batch sampler
            exclude_frozen_parameters=True,
            timeout=timeout,
        )
        assert isinstance(self.config, dict)
        # Without it DeepSpeed refuses torch's optimizers under offload; its own CPU Adam needs a compiler.
        self.config["zero_force_ds_cpu_optimizer"] = False
        if stage == 3:
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = persistence_threshold
        self._holds_whole_weights = False

    @property
    def stage(self) -> int:
        """Of ZeRO: 1, 2 or 3."""
        assert isinstance(self.config, dict)
        return int(self.config["zero_optimization"]["stage"])

    # ---------------------------------------------------------------------------------------------------- CPU ranks

    @property
    def root_device(self) -> torch.device:
        """The rank's device; DeepSpeed wants an index even of a CPU."""
        device: torch.device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """As Lightning's, but for its refusal of CPUs."""
        if isinstance(self.accelerator, CPUAccelerator):
            _check_lightning(version("lightning"))
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """As Lightning's, but for its check of device indices, which CPU ranks don't have."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        import deepspeed.ops
        from deepspeed.accelerator import get_accelerator

        if get_accelerator().device_name() != "cpu":
            raise ValueError(
                "trainer.accelerator is cpu, but DeepSpeed has chosen another device; set the environment variable "
                "DS_ACCELERATOR=cpu before the command."
            )
        # DeepSpeed's table of what it can build: without this entry it compiles C++ at the start of the first run.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    # ------------------------------------------------------------------------------------------------- any device

    @property
    def precision_plugin(self) -> Precision:
        """As Lightning's, but for batches of text."""
        plugin: Precision = super().precision_plugin
        return plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if isinstance(plugin, DeepSpeedPrecision):
            plugin = _TextPrecision(plugin.precision)  # type: ignore[arg-type]  # typed wider than it can be
        self._precision_plugin = plugin

    # ----------------------------------------------------------------------------------------------------- ZeRO-3

    @contextmanager
    def whole_weights(self, model: nn.Module) -> Iterator[None]:
        """See the function of this name; stage 3 only."""
        if self._holds_whole_weights:
            yield
            return
        hooks = LayerHooks(self.model)
        with gathered(model):
            hooks.remove()
            self._holds_whole_weights = True
            try:
                yield
            finally:
                self._holds_whole_weights = False
                hooks.restore()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """As Lightning's; from_pretrained learns of ZeRO-3 by an object that must live as long as the models do."""
        if self.stage == 3:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            self._init_config_if_needed()
            self._transformers_config = HfDeepSpeedConfig(self.config)
        with super().model_sharded_context():
            yield

    def setup(self, trainer: L.Trainer) -> None:
        """As Lightning's, with DeepSpeed's check of gradients on in bf16 (elsewhere it always is)."""
        assert isinstance(self.config, dict)
        if str(self.precision_plugin.precision).startswith("bf16"):
            self.config.setdefault("bf16", {"enabled": True})["check_grad_overflow"] = True
        super().setup(trainer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write the folder beside its place; it gets its name when every rank has written its share."""
        target = Path(self.broadcast(str(filepath)))
        unfinished = target.with_name(target.name + ".unfinished")
        if self.is_global_zero:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, unfinished, storage_options)  # ends with a barrier of DeepSpeed's
        if self.is_global_zero:
            seal(unfinished)
            replaced = target.with_name(target.name + ".replaced.unfinished")
            if target.exists():  # the step that a run continued from; to remove it first takes as long as it is large
                target.rename(replaced)
            unfinished.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load every rank's share.

        Raises:
            ValueError: if the checkpoint is a file, which another strategy wrote.
        """
        if Path(checkpoint_path).is_file():
            raise ValueError(
                f"{checkpoint_path} is a file, written without DeepSpeed; ZeROStrategy continues its own folders only. "
                "Continue with the strategy that wrote it, or start from its weights: python -m cli export, then "
                "--model.student.name FOLDER."
            )
        with weights_only_loading():
            assert self.lightning_module is not None
            if self.stage == 3 and self.lightning_module.trainer.state.fn != TrainerFn.FITTING:
                return self._load_to_evaluate(Path(self.broadcast(str(checkpoint_path))))
            loaded: dict[str, Any] = super().load_checkpoint(checkpoint_path)
        return loaded

    def _load_to_evaluate(self, folder: Path) -> dict[str, Any]:
        """What DeepSpeed can't do: load into an engine of stage 3 that has no optimizer. Rank 0 reads the weights."""
        import deepspeed

        assert self.lightning_module is not None
        weights = read_zero_checkpoint(folder) if self.is_global_zero else {}
        for name, parameter in self.lightning_module.named_parameters():
            if parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    if self.is_global_zero:
                        parameter.data.copy_(weights[name])
        return read_states(folder)


def zero_stage(strategy: object) -> int:
    """ZeRO stage of a trainer's strategy; 0 where it is another one."""
    return strategy.stage if isinstance(strategy, ZeROStrategy) else 0


@contextmanager
def whole_weights(strategy: object, model: nn.Module) -> Iterator[None]:
    """Have the parameters of `model` whole on every rank and its forwards free of collectives (ZeRO-3; else nothing).

    All ranks must enter and leave it together; in a block that is inside another one, nothing happens. Modules beside
    `model` stay spread over the ranks and can't be run, and nothing may be trained.
    """
    if not isinstance(strategy, ZeROStrategy) or strategy.stage < 3:
        yield
        return
    with strategy.whole_weights(model):
        yield


class _TextPrecision(DeepSpeedPrecision):
    """Batches are text: there is nothing to cast, and Lightning refuses to look for tensors in frozen dataclasses."""

    def convert_input(self, data: Any) -> Any:
        return data


def _check_lightning(installed: str) -> None:
    number = tuple(int(part) for part in installed.split(".")[:2])
    first, end = LIGHTNING_VERSIONS
    if not first <= number < end:
        raise ImportError(
            f"ZeROStrategy on CPUs overrides methods of lightning {'.'.join(map(str, first))}; {installed} is "
            "installed. Install that version, or use strategy ddp on CPUs."
        )
