"""Every file under configs/experiment/ trains: two steps with a tiny model of the architecture that it names."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from cli.main import main

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs/experiment").rglob("*.yaml"))
ARCHITECTURES = {"Llama": LlamaConfig, "Qwen2": Qwen2Config, "Qwen3": Qwen3Config}


@pytest.fixture(scope="module")
def tiny_models(tiny_model_dir, tmp_path_factory) -> dict[str, Path]:
    """A random one-layer model of each family, with the tiny tokenizer."""
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    folders = {}
    for family, config_class in ARCHITECTURES.items():
        folder = folders[family] = tmp_path_factory.mktemp(f"tiny-{family}")
        config = config_class(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def data_args(tmp_path_factory) -> dict[str, list[str]]:
    """Small files in each data set's own format, as arguments that replace the config's paths, by DataModule."""
    folder = tmp_path_factory.mktemp("data")
    medmcqa, mathematics = folder / "dev.json", folder / "problems.jsonl"
    subjects = ["heart", "kidney", "liver", "lung", "skin", "nerve", "bone", "eye", "ear", "gland", "vein", "muscle"]
    medmcqa.write_text(
        "".join(
            json.dumps(
                {"id": f"q{i}", "question": f"What does the {name} do in case number {i * 37}?", "cop": i % 4 + 1}
                | {f"op{letter}": f"{name} {letter} {i}" for letter in "abcd"}
                | {"choice_type": "single", "subject_name": "Anatomy", "topic_name": None, "exp": None}
            )
            + "\n"
            for i, name in enumerate(subjects)
        )
    )
    mathematics.write_text(
        "".join(
            json.dumps({"problem": f"How many {name}s have {i + 3} animals with {i} each?", "answer": str(i * (i + 3))})
            + "\n"
            for i, name in enumerate(subjects)
        )
    )
    texts = folder / "texts.jsonl"
    texts.write_text(
        "".join(
            json.dumps({"text": f"A sentence about the {name} and {i * 91} others", "label": ["no", "yes"][i % 2]})
            + "\n"
            for i, name in enumerate(subjects)
        )
    )
    source = {"format": "json_lines", "path": str(texts), "label_map": {"no": "no", "yes": "yes"}}
    return {
        "MedicalDataModule": ["--data.path", str(medmcqa), "--data.num_val=2", "--data.num_test=2"],
        "ClassificationDataModule": [f"--data.sources={json.dumps([source])}", "--data.num_val=2", "--data.num_test=2"],
        "GameDataModule": ["--data.num_seeds=40", "--data.num_val=2", "--data.num_test=2", "--data.max_turns=5"],
        "MathDataModule": ["--data.path", str(mathematics), "--data.num_val=2", "--data.num_test=2"],
    }


SMALLER = [
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.precision=32-true",
    "--trainer.enable_progress_bar=false",
    "--model.sampling.max_completion_length=3",
    "--data.batch_size=2",
    "--removability.every_n_steps=2",
    "--removability.at_start=false",
    "--removability.max_items=2",
    "--checkpoint.every_n_train_steps=2",
]


def arguments(path: Path, tiny_models: dict[str, Path], data_args: dict[str, list[str]], run: Path) -> list[str]:
    """What makes `path` run here in seconds."""
    text = path.read_text()
    family = next(family for family in ARCHITECTURES if re.search(rf"name: \S*{family}", text))
    data_class = re.search(r"class_path: (\w+DataModule)", text)[1]
    if data_class == "GameDataModule":
        pytest.importorskip("textarena")
    if data_class == "MathDataModule":
        pytest.importorskip("math_verify")
    args = [*SMALLER, *data_args[data_class], f"--model.student.name={tiny_models[family]}"]
    if "kind: model" in text:
        args += [f"--model.teacher.model.name={tiny_models[family]}", "--model.teacher.model.dtype=float32"]
    return ["--config", str(path), *args, f"--trainer.default_root_dir={run}"]


@pytest.mark.parametrize("consistency", ["none", "no_context_anchor"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_trains_two_steps(path, consistency, tiny_models, data_args, tmp_path):
    main(["fit", *arguments(path, tiny_models, data_args, tmp_path), f"--model.consistency={consistency}"])
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2
    assert (tmp_path / "checkpoints/step=000002.ckpt").is_file()


def test_the_best_checkpoint_on_validation_is_kept_and_can_be_tested(tiny_models, data_args, tmp_path):
    path = ROOT / "configs/experiment/medical_llama-3.2-3b.yaml"
    args = arguments(path, tiny_models, data_args, tmp_path)
    main(["fit", *args, "--trainer.max_steps=10"])
    (best,) = (tmp_path / "best").glob("*.ckpt")
    assert best.name == "step=000010.ckpt"
    main(["test", *args, "--ckpt_path", str(best)])
    lines = [json.loads(line) for line in (tmp_path / "removability/summary.jsonl").open()]
    assert [(line["split"], line["step"]) for line in lines][-1] == ("test", 10)


def test_the_paper_s_fourteen_settings_are_there():
    names = [path.stem for path in FILES]
    counts = {task: sum(name.startswith(task) for name in names) for task in ("medical", "safety", "mathematics")}
    assert counts == {"medical": 4, "safety": 4, "mathematics": 2}
    assert sum(name.startswith(("frozen_lake", "sokoban")) for name in names) == 4


def test_what_the_settings_share_is_the_same_in_every_file():
    """Each file stands alone, so nothing but this keeps them from drifting apart."""
    varies = ("name:", "dtype:", "kind: model", "model:", "teacher:", "chat_template_kwargs", "default_root_dir")
    varies += ("max_completion_length", "temperature", "batch_size", "evaluation:")

    def shared(path: Path) -> list[str]:
        head, tail = re.split(r"\ndata:\n.*?\nremovability:", path.read_text(), flags=re.DOTALL)
        lines = [line.split("#")[0].strip() for line in (head + tail).splitlines()]
        return [line for line in lines if line and not line.startswith(varies)]

    assert len(shared(FILES[0])) > 30
    assert all(shared(path) == shared(FILES[0]) for path in FILES)


STANDINGS = r"\[(stated|OPCD|read off|open)\]"
HYPERPARAMETERS = ("precision", "max_steps", "name", "system_message", "chat_template_kwargs", "max_completion_length",
                   "temperature", "evaluation:", "init_args: {lr", "consistency_coef", "support", "gradient_clip_norm",
                   "path", "sources", "env_options", "max_turns", "num_seeds", "num_val", "num_test", "batch_size",
                   "every_n_steps")  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_hyperparameter_says_where_it_comes_from(path):
    lines = [line.strip() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line.startswith(HYPERPARAMETERS)]
    assert len(lines) >= 14
    assert [line for line in lines if not re.search(STANDINGS, line)] == []


def test_nobody_published_the_mathematics_settings_but_opcd_s_data():
    for path in FILES:
        if path.stem.startswith("mathematics"):
            settings = re.split(r"\nmodel:|\nremovability:", path.read_text())[1]
            stated = re.findall(r"^ *(\S+): .*\[stated\]", settings, flags=re.M)
            assert stated == ["temperature", "consistency_coef", "support"]


def test_each_file_writes_where_its_name_says():
    for path in FILES:
        expected = f"default_root_dir: runs/{path.stem}/${{model.consistency}}/seed=${{seed_everything}}"
        assert expected in path.read_text()
