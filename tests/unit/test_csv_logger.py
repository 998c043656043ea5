"""metrics.csv through kills, full disks, new columns and resumed runs."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from callbacks import durable_files
from callbacks.csv_logger import RunCSVLogger


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_run(folder: Path, *steps: int) -> bytes:
    """Log one row per step and return the file."""
    logger = RunCSVLogger(str(folder))
    for step in steps:
        logger.log_metrics({"train/loss": step / 8}, step)
    return (folder / "metrics.csv").read_bytes()


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    logger = RunCSVLogger(str(tmp_path / "run"))
    logger.log_metrics({"train/loss": torch.tensor(0.5), "epoch": 0}, step=1)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "step,train/loss,epoch\n1,0.5,0\n"
    logger.log_metrics({"train/loss": float("nan")}, step=2)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "step,train/loss,epoch\n1,0.5,0\n2,nan,\n"


def test_nothing_is_created_before_the_first_row(tmp_path):
    logger = RunCSVLogger(str(tmp_path / "run"))
    logger.log_hyperparams({"learning_rate": 1e-6})
    logger.resume_from(10)
    logger.save()
    logger.finalize("success")
    assert files_in(tmp_path) == []


def test_the_run_folder_is_the_log_folder(tmp_path):
    logger = RunCSVLogger(str(tmp_path))
    assert logger.save_dir == logger.log_dir == str(tmp_path)
    assert (logger.name, logger.version) == ("", "")


def test_training_and_evaluation_rows_of_a_step_stay_apart(tmp_path):
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 0.5}, step=10)
    logger.log_metrics({"removability/harm": 0.1}, step=10)
    assert read_rows(tmp_path) == [
        {"step": "10", "train/loss": "0.5", "removability/harm": ""},
        {"step": "10", "train/loss": "", "removability/harm": "0.1"},
    ]


def test_new_columns_are_added_on_the_right(tmp_path):
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"b": 1.0}, step=1)
    logger.log_metrics({"c": 2, "a": 3}, step=2)
    logger.log_metrics({"a": 4, "b": 5}, step=None)
    assert (tmp_path / "metrics.csv").read_text() == "step,b,c,a\n1,1.0,,\n2,,2,3\n,5,,4\n"
    assert files_in(tmp_path) == ["metrics.csv"]


def test_a_name_with_a_comma_or_quote_comes_back(tmp_path):
    for value in (1, 2):  # the second logger reads the header that the first wrote
        RunCSVLogger(str(tmp_path)).log_metrics({'P("x", c)': value}, step=value)
    assert read_rows(tmp_path) == [{"step": "1", 'P("x", c)': "1"}, {"step": "2", 'P("x", c)': "2"}]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"step": 1}, "'step' is refused"),
        ({"a\nb": 1}, "must be one line"),
        ({"text": "hello"}, "'text' is 'hello'; metrics.csv takes numbers"),
        ({"many": torch.zeros(2)}, "tensors with one element"),
    ],
)
def test_what_a_cell_cannot_hold_is_refused_and_the_file_unchanged(tmp_path, metrics, message):
    before = write_run(tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        RunCSVLogger(str(tmp_path)).log_metrics(metrics, step=2)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_resumed_run_drops_later_rows_and_keeps_the_rest_to_the_byte(tmp_path):
    before = write_run(tmp_path, 1, 2, 3, 3, 4)
    logger = RunCSVLogger(str(tmp_path))
    logger.resume_from(3)
    assert (tmp_path / "metrics.csv").read_bytes() == before[: before.index(b"4,")]
    logger.log_metrics({"train/loss": 0.5}, step=4)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_resuming_keeps_rows_without_a_step(tmp_path):
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1}, step=None)
    logger.log_metrics({"a": 2}, step=9)
    RunCSVLogger(str(tmp_path)).resume_from(0)
    assert [row["a"] for row in read_rows(tmp_path)] == ["1"]


def test_a_second_logger_appends_even_without_resume(tmp_path):
    write_run(tmp_path, 1, 2)
    write_run(tmp_path, 3)
    assert [row["step"] for row in read_rows(tmp_path)] == ["1", "2", "3"]


@pytest.mark.parametrize("half", [b"3", b"3,0.37"])
@pytest.mark.parametrize("resumed", [True, False])
@pytest.mark.filterwarnings("error")  # a second warning would fail the test
def test_a_half_written_last_row_is_dropped_with_one_warning(tmp_path, half, resumed):
    whole = write_run(tmp_path, 1, 2)
    (tmp_path / "metrics.csv").write_bytes(whole + half)
    logger = RunCSVLogger(str(tmp_path))
    if resumed:
        with pytest.warns(UserWarning, match="half-written"):
            logger.resume_from(5)
        logger.log_metrics({"train/loss": 0.5}, step=3)
    else:
        with pytest.warns(UserWarning, match="half-written"):
            logger.log_metrics({"train/loss": 0.5}, step=3)
    assert (tmp_path / "metrics.csv").read_bytes() == whole + b"3,0.5\n"


@pytest.mark.parametrize("content", [b"", b"step,tra"])
def test_a_file_killed_within_its_header_starts_anew(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    logger = RunCSVLogger(str(tmp_path))
    if content:
        with pytest.warns(UserWarning, match="half-written"):
            logger.resume_from(5)
    logger.log_metrics({"a": 1}, step=6)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n6,1\n"


def test_a_file_of_another_program_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("loss,step\n0.5,1\n")
    with pytest.raises(ValueError, match="not a file of RunCSVLogger"):
        RunCSVLogger(str(tmp_path)).log_metrics({"loss": 1.0}, step=2)


def test_a_row_with_a_broken_step_is_named(tmp_path):
    before = write_run(tmp_path, 1, 2)
    (tmp_path / "metrics.csv").write_bytes(before.replace(b"\n2,", b"\n2x,"))
    with pytest.raises(ValueError, match=r"metrics\.csv, line 3: step '2x' is not a whole number"):
        RunCSVLogger(str(tmp_path)).resume_from(1)


def test_a_killed_process_loses_no_row(tmp_path):
    program = (
        "import os, signal\n"
        "from callbacks.csv_logger import RunCSVLogger\n"
        f"logger = RunCSVLogger({str(tmp_path)!r})\n"
        "for step in range(1, 4): logger.log_metrics({'a': step}, step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], timeout=100)
    assert finished.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_rows(tmp_path)] == ["1", "2", "3"]


def test_a_full_disk_says_what_to_do(tmp_path):
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1}, step=1)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")  # answers every write with the real ENOSPC
    with pytest.raises(OSError, match=r"before is kept.*resume") as raised:
        logger.log_metrics({"a": 2}, step=2)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "metrics.csv")


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_disk_full_while_the_header_grows_leaves_the_old_file(tmp_path, monkeypatch, fails):
    def full(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(durable_files.os, fails, full)
        with pytest.raises(OSError, match="before is kept") as raised:
            logger.log_metrics({"b": 2}, step=2)
    assert raised.value.errno == errno.ENOSPC
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n1,1\n"
    assert files_in(tmp_path) == ["metrics.csv"]
    logger.log_metrics({"b": 2}, step=2)  # after space was freed
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n1,1,\n2,,2\n"


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    before = write_run(tmp_path, 1, 2)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = RunCSVLogger(str(tmp_path))
    logger.resume_from(1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    assert (tmp_path / "metrics.csv").read_bytes() == before


class OneWeight(LightningModule):
    """Logs its loss labelled with completed optimizer steps, and continues its file when resumed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def on_train_start(self):
        if self.trainer.ckpt_path:
            self.logger.resume_from(self.trainer.global_step)

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).square().mean()
        self.log("train/loss", loss.detach())
        self.log("step", float(self.trainer.global_step + 1))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, max_steps: int, ckpt_path: str | None = None) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        log_every_n_steps=1,
        logger=RunCSVLogger(str(folder)),
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(OneWeight(), DataLoader(torch.ones(8)), ckpt_path=ckpt_path)


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_by_lightning_writes_the_file_of_an_uninterrupted_one(tmp_path):
    fit(tmp_path / "whole", max_steps=6)
    fit(tmp_path / "resumed", max_steps=5)  # rows for steps 1 to 5, checkpoints at 2 and 4
    checkpoint = tmp_path / "resumed" / "checkpoints" / "epoch=0-step=2.ckpt"
    fit(tmp_path / "resumed", max_steps=6, ckpt_path=str(checkpoint))
    whole = (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert [row["step"] for row in read_rows(tmp_path / "whole")] == ["1", "2", "3", "4", "5", "6"]
    assert (tmp_path / "resumed" / "metrics.csv").read_bytes() == whole
