"""What a user's mistakes look like: one message that says what to do, and no frames of Lightning and jsonargparse."""

from __future__ import annotations

import sys

import pytest

from cli.errors import TRACEBACK, refusal
from cli.main import console, main
from datamodules import GeographyDataModule


@pytest.fixture
def console_error(runs, monkeypatch):
    """The message that ends ``python -m cli fit`` with some arguments."""

    def run(*args: str, command: str = "fit") -> str:
        monkeypatch.setattr(sys, "argv", ["python -m cli", *runs.args(command, "run", *args)])
        with pytest.raises(SystemExit) as ended:
            console()
        assert isinstance(ended.value.code, str)  # Python prints it and ends with status 1
        return ended.value.code

    return run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--data.context", "absent"), "error: No context 'absent': neither a file nor one of the names "),
        (("--model.student.name", "/absent"), "error: Could not load the tokenizer of model '/absent'"),
        (("--model.sampling.max_completion_length", "0"), "error: max_completion_length is 0; it must be at least 1."),
        (("--data.batch_size", "0"), "error: batch_size=0 must be an integer of at least 1."),
        (("--ckpt_path", "last"), "error: --ckpt_path last: no complete checkpoint in"),
        (("--ckpt_path", "absent.ckpt"), "error: --ckpt_path: there is no checkpoint absent.ckpt."),
    ],
)
def test_a_refusal_is_its_message(console_error, args, message):
    assert console_error(*args).startswith(message)


def test_a_test_without_its_checkpoint_says_nothing_of_continuing(console_error):
    assert "Continue" not in console_error("--ckpt_path", "absent.ckpt", command="test")


def test_the_corrected_command_runs_in_the_same_folder(runs, console_error):
    console_error("--model.student.name", "/absent")  # found out after the folder was made
    assert not [*(runs.root / "run").iterdir()]
    run = runs.fit("run", "--trainer.max_steps", "1")
    before = (run / "config.yaml").read_bytes()
    message = console_error("--trainer.max_steps", "2")
    assert "already holds a run. Continue it with --ckpt_path auto" in message
    assert "no checkpoint" not in message
    assert (run / "config.yaml").read_bytes() == before


def caught(call) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011
        call()
    return error.value


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch):
    assert refusal(caught(lambda: int("x"))) is None
    assert refusal(caught(lambda: {}["x"])) is None

    def mistaken(self, split):
        raise ValueError("of a caller's class")

    monkeypatch.setattr(GeographyDataModule, "examples", mistaken)
    assert refusal(caught(lambda: GeographyDataModule().examples("train"))) is None


def test_the_traceback_can_be_asked_for(monkeypatch):
    error = caught(lambda: GeographyDataModule(batch_size=0))
    error.add_note("A note.")
    assert refusal(error) == "error: batch_size=0 must be an integer of at least 1.\nA note."
    monkeypatch.setenv(TRACEBACK, "1")
    assert refusal(error) is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evalute", "'evalute' is no command. Did you mean evaluate?"),
        ("xyz", "'xyz' is no command. There are fit, validate, test, predict, back_off, data"),
    ],
)
def test_a_misspelt_command_is_told_from_all_commands(word, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_flag_does_not_print_every_flag(runs, capsys):
    with pytest.raises(SystemExit):
        runs.fit("run", "--model.consistency", "nca")
    errors = capsys.readouterr().err
    assert "'no_context_anchor'" in errors
    assert errors.count("\n") < 8
