"""`RunFolder`: one folder per run, one resolved config in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from callbacks.csv_logger import RunCSVLogger

WANDB_ID = "wandb_id.txt"
"""In the run's folder."""


def continue_wandb_run(trainer: Any) -> None:
    """Have a resumed fit's WandbLogger log to the run that was interrupted, unless an id is given already.

    Args:
        trainer: the config's section; changed in place.
    """
    path = Path(trainer["default_root_dir"]) / WANDB_ID
    if not path.exists() or "WANDB_RUN_ID" in os.environ:
        return
    loggers = trainer["logger"] if isinstance(trainer["logger"], list) else [trainer["logger"]]
    for logger in loggers:
        if str(getattr(logger, "class_path", "")).endswith("WandbLogger"):
            options = logger.init_args
            if options.get("id") is None and options.get("version") is None:
                options["id"] = path.read_text().strip()


class RunFolder(SaveConfigCallback):
    """Save the resolved config once per run, on disk and in the loggers; refuse to write over another run.

    RUN is ``trainer.default_root_dir``. A resumed fit (``--ckpt_path``) keeps the first config.yaml and writes its
    own as config.resumed.yaml; metrics of steps that will be repeated are cut off. The id of the run on W&B is kept in
    RUN/wandb_id.txt, and a resumed fit goes on under it. A fit that fails before it wrote anything else takes its
    config away again, so that the corrected command is not refused.

    Raises:
        FileExistsError: if a fresh fit is pointed at a folder that holds a run.
    """

    written: Path | None = None
    """The config that this process wrote for a new run."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the folder and save the config, before anything is loaded."""
        if stage != "fit" or self.already_saved:
            return
        folder = Path(trainer.default_root_dir)
        path = folder / "config.yaml"
        resuming = self.config.get("ckpt_path") is not None
        taken = trainer.strategy.broadcast(path.exists() if trainer.is_global_zero else False)
        if taken and not resuming:
            raise FileExistsError(
                f"{folder} already holds a run. Continue it with --ckpt_path auto, choose another folder with "
                "--trainer.default_root_dir, or delete it."
            )
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            name = "config.resumed.yaml" if taken else "config.yaml"
            self.parser.save(self.config, folder / name, skip_none=False, overwrite=True, multifile=False)
            self.written = None if taken else folder / name
            self.save_config(trainer, pl_module, stage)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and logger.version is not None:
                    (folder / WANDB_ID).write_text(logger.version)
        self.already_saved = True

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hand the config to the loggers, as nested plain values."""
        config = self.config.as_dict()
        for logger in trainer.loggers:
            logger.log_hyperparams(
                {key: config[key] for key in ("model", "data", "trainer", "seed_everything") if key in config}
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the config away where it is all that there is of the run."""
        if self.written is not None and [*self.written.parent.iterdir()] == [self.written]:
            self.written.unlink()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut off the metrics that a resumed run will write again."""
        for logger in trainer.loggers:
            if trainer.global_step > 0 and isinstance(logger, RunCSVLogger):
                logger.resume_from(trainer.global_step)
