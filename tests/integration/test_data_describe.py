"""``data describe`` as a user meets it: only the data of a config, its numbers in three forms, and clear refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cli.datasheet import Datasheet, describe
from cli.datasheet_markdown import to_markdown
from cli.main import main
from datamodules import ClassificationDataModule, Example, GeographyDataModule, Message, safety_mix
from datamodules.base import Split

DATA = Path("/work/shared/data")
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8").replace("### ", "## ")

ROWS = [f"{first} {middle} {last} {number},{number % 3 // 2}"
        for number, (first, middle, last) in enumerate(
            (f, m, z) for f in ("north", "plain", "quiet") for m in ("harbour", "garden", "kitchen", "windmill")
            for z in ("stories", "journeys", "melodies", "recipes", "puzzles"))]  # fmt: skip
CONFIG = """
seed_everything: 3
trainer: {{max_steps: "not looked at"}}
model: {{nonsense: true, views: {{context_slot: user}}}}
data:
  class_path: ClassificationDataModule
  init_args:
    context: safety_system_prompt
    sources: [{{format: table, name: titles, path: "{table}", label_map: {{"1": "yes", "0": "no"}}, licence: made up}}]
    num_val: 10
    num_test: 20
    max_bad_share: 0.1
    seed: ${{seed_everything}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    table = tmp_path / "titles.csv"
    table.write_text("\n".join(["text,label", *ROWS, "one more,7"]))
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(table=table))
    return path


@pytest.mark.filterwarnings("ignore:1 of 61 rows are bad")
def test_numbers_as_printed_and_as_saved(
    config: Path, tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new/folder"
    assert main(["data", "describe", "--config", str(config), "--tokenizer", str(tiny_model_dir),
                 "--output", str(output)]) is None  # fmt: skip
    markdown = (output / "datasheet.md").read_text("utf-8")
    assert markdown in capsys.readouterr().out
    assert "| titles | made up | 30 | 10 | 20 |" in markdown
    assert "Malformed rows, left out: 1; label outside the label map: 1." in markdown
    sheet = json.loads((output / "datasheet.json").read_text("utf-8"))
    numbers = {split: values["groups"]["all"] for split, values in sheet["splits"].items()}
    assert {split: group["num_items"] for split, group in numbers.items()} == {"train": 30, "val": 10, "test": 20}
    assert sum(group["answers"]["yes"] for group in numbers.values()) == 20
    for group in numbers.values():
        assert group["constant_answer"] == "no"
        assert group["constant_accuracy"] == group["answers"]["no"] / group["num_items"]
    assert all(overlap["num_near"] == 0 for overlap in sheet["overlaps"])
    for values in sheet["splits"].values():
        assert values["groups"].keys() == {"all", "titles"}
        longer = values["with_context_tokens"]["min"] - values["no_context_tokens"]["min"]
        assert longer >= values["context_words"]["min"] > 150


def test_without_a_tokenizer_there_are_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "geography.yaml"
    path.write_text("data: {class_path: GeographyDataModule, init_args: {num_train: 60, num_val: 24, num_test: 24}}")
    main(["data", "describe", "--config", str(path)])
    printed = capsys.readouterr().out
    assert re.search(r"\| train \| 6 / 6(\.5)? / \d+ \| 60 / 60 / 60 \| - \| - \|", printed)
    assert "CC BY 4.0 (GeoNames)" in printed


@pytest.mark.parametrize(
    ("words", "row"),
    [
        (("--data.num_val", "30"), "| val | all | 30 |"),
        (("--data.init_args.num_val=30", "--data.num_train", "48"), "| train | all | 48 |"),
        (("--data", "OtherDataModule", "--data.num_val", "36"), "# OtherDataModule"),
    ],
)
def test_the_command_line_overrides_the_config(
    words: tuple[str, ...], row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "geography.yaml"
    path.write_text("data: {class_path: GeographyDataModule, init_args: {num_train: 60, num_val: 24, num_test: 24}}")
    main(["data", "describe", "--config", str(path), *words])
    assert row in capsys.readouterr().out


class OtherDataModule(GeographyDataModule):
    """Stands for another class of data."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data.num_vals", "30"), "num_vals"),
        (("--data.num_val", "1"), "num_val=1 must be an integer"),
        (("--tokeniser", "x"), "unrecognized arguments: --tokeniser x"),
        (("--data.num_val", "30", "--tokeniser", "x"), "unrecognized arguments: --tokeniser x"),
    ],
)
def test_faulty_overrides_end_with_a_message(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "geography.yaml"
    path.write_text("data: {class_path: GeographyDataModule}")
    with pytest.raises(SystemExit) as ended:
        main(["data", "describe", "--config", str(path), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_copies_across_splits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def example(number: int, city: str) -> Example:
        return Example(str(number), (Message(role="user", content=f"Where is {city} now?"),), None, "here")

    long = "the old town with its very long name beside the river"
    splits: dict[Split, list[Example]] = {
        "train": [example(0, long), example(1, "Lima")],
        "val": [example(2, "LIMA!"), example(3, "Oslo")],
        "test": [example(4, f"{long}s"), example(5, "Oslo"), example(6, "Lima")],
    }
    monkeypatch.setattr(GeographyDataModule, "load_splits", lambda self: splits)
    monkeypatch.setattr(GeographyDataModule, "summary", lambda self: "")
    overlaps = describe(GeographyDataModule(), None).overlaps
    found = {(overlap.split, overlap.earlier): (overlap.num_exact, overlap.num_near) for overlap in overlaps}
    assert found == {("val", "train"): (1, 1), ("test", "train"): (1, 2), ("test", "val"): (2, 2)}


def test_games_are_compared_by_board_and_have_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def example(number: int, board: str) -> Example:
        return Example(str(number), (Message(role="user", content=f"Play.\n{board}\nMove."),), None, "win", "game")

    splits: dict[Split, list[Example]] = {
        "train": [example(0, "| |G|")],
        "val": [example(1, "|G| |"), example(2, "| |G|")],
        "test": [example(3, "|.|G|")],
    }
    monkeypatch.setattr(GeographyDataModule, "load_splits", lambda self: splits)
    monkeypatch.setattr(GeographyDataModule, "summary", lambda self: "")
    monkeypatch.setattr(GeographyDataModule, "environment", lambda self, example: object())
    sheet = describe(GeographyDataModule(), None)
    assert [(overlap.num_exact, overlap.num_near) for overlap in sheet.overlaps] == [(1, None), (0, None), (0, None)]
    markdown = to_markdown(sheet)
    assert "| val | all | 2 | - | - |" in markdown
    assert "| val | train | 1 | - |" in markdown


def documented_counts(sheet: Datasheet) -> str:
    return to_markdown(sheet).split("## Items\n")[1].split("## Lengths")[0]


def test_the_documented_counts_of_geography_are_the_real_ones() -> None:
    assert documented_counts(describe(GeographyDataModule(), None)) in DOCUMENTED


@pytest.mark.skipif(not (DATA / "hatecheck").is_dir(), reason=f"the real data are not in {DATA}")
def test_the_documented_counts_of_the_safety_mix_are_the_real_ones() -> None:
    paths = ("tweeteval_offensive", "hatecheck/test_suite_cases.csv", "ethos/Ethos_Dataset_Binary.csv")
    mix = safety_mix(*(str(DATA / path) for path in paths))
    sheet = describe(ClassificationDataModule(mix), None)
    assert documented_counts(sheet) in DOCUMENTED
    assert [(overlap.num_exact, overlap.num_near) for overlap in sheet.overlaps] == [(0, 0)] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}", "has no key data"),
        ("- a list", "is no YAML mapping"),
        ("data: {class_path: GeographyDataModul}", "GeographyDataModul"),
        ("data: {class_path: GeographyDataModule, init_args: {num_trains: 4}}", "num_trains"),
        ("data: {class_path: GeographyDataModule, init_args: {seed: '${nowhere}'}}", "nowhere"),
        ("data: {class_path: GeographyDataModule, init_args: {num_val: 1}}", "num_val=1 must be an integer"),
        (
            "data: {class_path: GeographyDataModule, init_args: {seed: '${seed_everything}'}}",
            "'seed_everything' not found. A file that is put over another one is read with it",
        ),
        (None, "No such file"),
    ],
)
def test_faulty_configs_end_with_a_message(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "faulty.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["data", "describe", "--config", str(path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
