"""The command line: ``python -m cli fit|validate|test|predict``, and the commands in `OTHER_COMMANDS`.

LightningCLI with four settings that are ours:

* YAML goes through OmegaConf, and ``${...}`` follows command-line overrides. Two parser settings are needed for that:
  mode ``omegaconf+`` (plain ``omegaconf`` resolves before the overrides and silently keeps the old values), and
  absolute references made relative, because under a subcommand the config is not the root.
* A run has one folder, ``trainer.default_root_dir``; everything it writes is in there (`save_config.RunFolder`).
* The paired evaluation and the checkpoints are always on, as ``--removability.*`` and ``--checkpoint.*``.
* ``--ckpt_path last`` finds the newest whole checkpoint of the run's folder, or stops; ``auto`` starts then.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# Imported for their names: YAML files may then say HFExport in place of callbacks.hf_export.HFExport.
from callbacks.csv_logger import RunCSVLogger
from callbacks.gradient_geometry import GradientGeometry
from callbacks.hf_export import HFExport
from callbacks.predictions import PredictionWriter
from callbacks.probes import ProbeEvaluation
from callbacks.removability import RemovabilityCallback
from callbacks.representations import RepresentationSimilarity
from callbacks.rollout_table import RolloutTable
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.token_positions import TokenPositions
from callbacks.view_sample import ViewSample
from callbacks.weight_changes import WeightChanges
from cli.checkpoints import last_checkpoint, last_checkpoint_or_start
from cli.errors import refusal
from cli.save_config import RunFolder, continue_wandb_run
from datamodules.base import ContextDataModule
from datamodules.classification import ClassificationDataModule
from datamodules.games import GameDataModule
from datamodules.geography import GeographyDataModule
from datamodules.language import LanguageDataModule
from datamodules.mathematics import MathDataModule
from datamodules.medical import MedicalDataModule
from datamodules.past_tense import PastTenseDataModule
from lightning_modules.context_distillation import ContextDistillation
from lightning_modules.strategies import ZeROStrategy

__all__ = [
    "ClassificationDataModule",
    "ContextDistillation",
    "GameDataModule",
    "GeographyDataModule",
    "GradientGeometry",
    "HFExport",
    "LanguageDataModule",
    "MathDataModule",
    "MedicalDataModule",
    "PastTenseDataModule",
    "PredictionWriter",
    "ProbeEvaluation",
    "RepresentationSimilarity",
    "RolloutTable",
    "RunCSVLogger",
    "TokenPositions",
    "ViewSample",
    "WeightChanges",
    "ZeROStrategy",
    "main",
]

OTHER_COMMANDS = ("back_off", "data", "evaluate", "export", "extract", "plan", "replicate", "report", "sweep")
"""Those that are no subcommands of LightningCLI: cli/NAME.py has NAME_cli(words)."""
FIT_COMMANDS = ("fit", "validate", "test", "predict")
"""LightningCLI's."""

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/unnamed",
    "max_epochs": -1,  # the training data are endless; trainer.max_steps ends a run
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,  # a fit is evaluated by removability.*, not by Lightning's validation loop
    "use_distributed_sampler": False,  # the DataModules shard by themselves, without padding
    "enable_model_summary": False,
}
CHECKPOINT_DEFAULTS = {
    "checkpoint.dirpath": "${..trainer.default_root_dir}/checkpoints",  # relative: see the docstring
    "checkpoint.filename": "step={step:06d}",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.every_n_train_steps": 50,
    "checkpoint.save_top_k": 1,
    "checkpoint.save_on_train_epoch_end": False,
}


class ContextDistillationCLI(LightningCLI):
    """LightningCLI with the paired evaluation, one folder per run, and resuming that can't silently start afresh."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--removability.*`` and ``--checkpoint.*``."""
        parser.add_lightning_class_args(RemovabilityCallback, "removability")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults(CHECKPOINT_DEFAULTS)

    def before_instantiate_classes(self) -> None:
        """Turn ``--ckpt_path last`` and ``auto`` into a path; outside a fit let the evaluation loops run."""
        config = self.config[self.subcommand]
        folder = config["trainer"]["default_root_dir"]
        if config.get("ckpt_path") == "last":
            config["ckpt_path"] = str(last_checkpoint(folder))
        elif config.get("ckpt_path") == "auto":
            found = last_checkpoint_or_start(folder)
            config["ckpt_path"] = None if found is None else str(found)
        _check_checkpoint(config.get("ckpt_path"), config["trainer"]["strategy"])
        if self.subcommand == "fit" and config.get("ckpt_path") is not None:
            continue_wandb_run(config["trainer"])
        if self.subcommand != "fit" and config["trainer"]["limit_val_batches"] == 0:
            config["trainer"]["limit_val_batches"] = None


def _check_checkpoint(path: str | None, strategy: Any) -> None:
    """Refuse a file that is not there, and DeepSpeed's folders where DeepSpeed is not asked for.

    Raises:
        FileNotFoundError: naming the checkpoint.
        ValueError: naming the checkpoint; Lightning would say that it can't open a folder.
    """
    if path is not None and path.endswith(".ckpt") and "://" not in path and not Path(path).exists():
        raise FileNotFoundError(
            f"--ckpt_path: there is no checkpoint {path}. A run's are in RUN/checkpoints; "
            "--ckpt_path last takes the newest."
        )
    if path is not None and Path(path).is_dir() and "ZeRO" not in str(strategy):
        raise ValueError(
            f"{path} is a folder, written by ZeROStrategy. Continue it with the configs/strategy/zero*.yaml that "
            "it was written with, or start from its weights: python -m cli export, then --model.student.name FOLDER."
        )


def _quiet_expected_warnings() -> None:
    """Silence warnings about what is meant to be so; everything else stays loud."""
    expected = (
        "Using ModelCheckpoint with manual optimization",  # the state after the step is the one that resumes exactly
        r"Found \d+ module\(s\) in eval mode",  # the teacher
        "LightningCLI's args parameter is intended",
        ".*does not have many workers",  # text from memory: nothing to load in parallel
        "Checkpoint directory .* exists and is not empty",  # a resumed run; RunFolder refuses any other
        ".*isinstance\\(treespec, LeafSpec\\)",
    )
    for message in expected:
        warnings.filterwarnings("ignore", message=message)


def main(args: ArgsType = None) -> ContextDistillationCLI | None:
    """Run one command; `args` defaults to the command line's."""
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list) and words and words[0] in OTHER_COMMANDS:
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        # Imported when asked for: matplotlib, Optuna and the like are not needed elsewhere.
        getattr(import_module(f"cli.{words[0]}"), f"{words[0]}_cli")(words[1:])
        return None
    if isinstance(words, list):
        _check_command(words)
    _quiet_expected_warnings()
    jsonargparse.set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True,
        docstring_parse_attribute_docstrings=True,  # the line under a dataclass field is its help
    )
    return ContextDistillationCLI(
        ContextDistillation,
        ContextDataModule,
        subclass_mode_data=True,
        save_config_callback=RunFolder,
        save_config_kwargs={"save_to_log_dir": False},
        auto_configure_optimizers=False,
        trainer_defaults=TRAINER_DEFAULTS,
        parser_kwargs=_parser_kwargs(),
        args=args,
    )


def _parser_kwargs() -> dict[str, Any]:
    # The full usage, every flag on 140 lines, would stand before each error; --help lists them anyway.
    usage = {name: {"usage": f"python -m cli {name} --config FILE ... [--KEY VALUE ...]"} for name in FIT_COMMANDS}
    return {
        "parser_mode": "omegaconf+",
        "prog": "python -m cli",
        "description": "Distil removable contexts and measure whether they are. Also: python -m cli "
        f"{'|'.join(OTHER_COMMANDS)} --help",
        **usage,
    }


def _check_command(words: list[str]) -> None:
    """Refuse a first word that is no command; LightningCLI would name its own four only."""
    if words and not words[0].startswith("-") and words[0] not in FIT_COMMANDS:
        known = (*FIT_COMMANDS, *OTHER_COMMANDS)
        meant = difflib.get_close_matches(words[0], known, n=1)
        hint = f"Did you mean {meant[0]}?" if meant else f"There are {', '.join(known)}."
        print(f"python -m cli: error: {words[0]!r} is no command. {hint}", file=sys.stderr)
        sys.exit(2)


def console() -> None:
    """Entry point of ``python -m cli`` and of the console script: `main`, and errors as a user should see them."""
    try:
        main()
    except Exception as error:
        message = refusal(error)
        if message is None:
            raise
        sys.exit(message)
