"""``python -m cli report`` on synthetic runs whose numbers follow Figure 1 of arXiv:2606.11627."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from callbacks.paired_records import PairedRecord
from callbacks.removability_files import append_summary
from callbacks.removability_metrics import RemovabilitySummary, summarise_groups
from cli.report import ReportPaths, report, report_cli
from cli.report_comparison import compare
from cli.report_curves import drawn_settings
from cli.report_notes import comparison_notes
from cli.report_numbers import as_csv, evaluation_numbers
from cli.report_runs import read_runs
from cli.report_tables import print_tables, to_markdown

# Step: (accuracy without, accuracy with, harm) in %. Accuracies: averages over the paper's 12 settings, read off.
OPD = {0: (52, 62, 8), 10: (58, 58, 22), 20: (63, 58, 25), 50: (68, 63, 19), 80: (67, 66, 13), 100: (68, 66, 12)}
NCA = {0: (52, 62, 8), 10: (59, 61, 9), 20: (63, 62, 8), 50: (67, 65, 6), 80: (68, 69, 3), 100: (70, 69, 2)}


def summaries_of(without: int, with_: int, harm: int, num_items: int = 200) -> dict[str, RemovabilitySummary]:
    """Summaries of `num_items` items in two groups, with the given percentages."""
    num_right, num_right_with = num_items * without // 100, num_items * with_ // 100
    num_harmed = num_right * harm // 100
    return summarise_groups(
        [
            PairedRecord(
                id=str(number),
                group="unseen_country" if number % 4 == 0 else "seen_country",
                answer="Asia",
                completion_no_context="It is in Asia.",
                completion_with_context="Asia",
                parsed_no_context=None,
                parsed_with_context=None,
                reason_no_context="correct" if number < num_right else "wrong",
                reason_with_context="correct" if num_harmed <= number < num_harmed + num_right_with else "wrong",
                length_no_context=16,
                length_with_context=20,
                finished_no_context=True,
                finished_with_context=True,
                kl=0.5,
                num_kl_tokens=16,
            )
            for number in range(num_items)
        ]
    )


def make_run(folder: Path, curve: dict[int, tuple[int, int, int]], config: str = "", num_items: int = 200) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.yaml").write_text(config)
    for step, (without, with_, harm) in curve.items():
        summaries = summaries_of(without, with_, harm, num_items)
        append_summary(folder / "removability" / "summary.jsonl", step, "val", summaries, elapsed_s=2.0)
    return folder


def make_opd_and_nca(folder: Path) -> list[Path]:
    opd = make_run(folder / "opd", OPD, "model:\n  consistency: none\n  consistency_coef: 0.5\n")
    nca = make_run(folder / "nca", NCA, "model:\n  consistency: no_context_anchor\n  consistency_coef: 0.5\n")
    return [opd, nca]


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return make_opd_and_nca(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> ReportPaths:
    """A report that several tests read."""
    folder = tmp_path_factory.mktemp("written")
    return report(make_opd_and_nca(folder), folder / "new" / "report")


def test_writes_figures_in_three_formats_and_tables(written):
    names = {path.name for path in written.png.parent.iterdir()}
    stems = ("removability", "removability-regimes", "removability-flips", "removability-lengths")
    assert {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "pdf")} < names
    assert {"removability.csv", "removability.md", "removability.tex", "removability-statistics.csv"} < names
    assert "removability-layers.png" not in names  # no run measured them
    assert {path.name for path in written.figures} == {name for name in names if name[-3:] in ("png", "svg", "pdf")}
    height, width = imread(written.png).shape[:2]
    assert (width, height) == (1720, 740)  # 8.6 x 3.7 inches at 200 dots
    assert "<svg" in written.svg.read_text()


def test_prints_the_method_the_curve_and_the_comparison(runs, capsys):
    histories = read_runs(runs)
    print_tables(histories, compare(histories))
    printed = capsys.readouterr().out
    assert "nca: no_context_anchor x 0.5" in printed
    assert "24.6 (31/126)" in printed
    assert "11.8 [7.4, 18.3] (16/136)" in printed


def test_a_long_curve_is_left_to_the_files(tmp_path, capsys):
    histories = read_runs([make_run(tmp_path / "long", dict.fromkeys(range(30), (50, 50, 10)))])
    print_tables(histories, compare(histories))
    assert "Every evaluation" not in capsys.readouterr().out


def test_markdown_has_one_row_per_run_and_step_and_the_last_step_by_group(written):
    text = written.markdown.read_text()
    every, last = text.split("## Last step")
    assert "![Accuracy without and with the context, and harm, over optimizer steps](removability.png)" in every
    assert "| opd | none |" in every
    assert every.count("| opd | val |") == every.count("| nca | val |") == 6
    assert "| opd | val | 20 | 200 | 63.0 | 58.0 | 47.5 | 24.6 (31/126) |" in every
    assert "| nca | all | val | 100 | 200 | 70.0 |" in last
    for group in ("all", "seen_country", "unseen_country"):
        assert last.count(f"| opd | {group} | val | 100 |") == 1
    assert "| 0.5000 | 16.0 | 20.0 | +25.0 |" in last


def test_csv_has_every_number_by_run_step_and_group(written):
    with open(written.csv, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 6 * 3
    row = next(row for row in rows if (row["run"], row["step"], row["group"]) == ("nca", "100", "all"))
    assert (row["consistency"], row["consistency_coef"], row["elapsed_s"]) == ("no_context_anchor", "0.5", "2.0")
    assert float(row["accuracy_no_context"]) == 0.7
    assert float(row["harm"]) == int(row["num_harmed"]) / int(row["num_correct_no_context"]) == 2 / 140


def test_the_same_numbers_give_the_same_files(runs, written, tmp_path):
    again = report(runs, tmp_path / "again")
    for one, other in zip(written.figures, again.figures, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert written.statistics.read_bytes() == again.statistics.read_bytes()


def test_withheld_harm_is_a_dash_in_tables_and_empty_in_csv(tmp_path):
    run = make_run(tmp_path / "few", {0: (30, 60, 50), 10: (40, 60, 50)}, num_items=40)
    histories = read_runs([run])
    assert "| few | val | 0 | 40 | 30.0 | 60.0 | 15.0 | - (6/12) |" in to_markdown(histories, compare(histories), [])
    assert {row["harm"] for row in csv.DictReader(io.StringIO(as_csv(evaluation_numbers(histories))))} == {""}


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ("", "unknown"),
        ("model: {", "unknown"),
        ("trainer: {}", "unknown"),
        ("model: 3", "unknown"),
        ("model: {consistency: null}", "unknown"),
        ("model: {consistency: none, consistency_coef: 0.5}", "none"),
        ("model: {consistency: symmetric}", "symmetric"),
        ("model: {consistency: symmetric, consistency_coef: 1}", "symmetric x 1"),
        ("model: {consistency: none, rollouts: {sampler: student, context_share: 0.0}}", "none"),
        ("model: {consistency: none, rollouts: {sampler: teacher}, beta: 0.0}", "off_policy_cd"),
        ("model: {consistency: none, rollouts: {sampler: teacher}, beta: 1.0}", "off_policy_cd beta 1.0"),
        ("model: {consistency: none, rollouts: {sampler: teacher}, distillation: cross_entropy}", "sft"),
        ("model: {consistency: none, rollouts: {context_share: 0.25}}", "context_dropout 0.25"),
        (
            "model: {consistency: symmetric, consistency_coef: 1, rollouts: {sampler: teacher}, beta: 0}",
            "off_policy_cd + symmetric x 1",
        ),
        ("model: {class_path: a.B, init_args: {consistency: dual_opd, consistency_coef: 0.1}}", "dual_opd x 0.1"),
    ],
)
def test_method_is_read_from_the_config_where_it_says_so(tmp_path, config, method):
    (run,) = read_runs([make_run(tmp_path / "run", {0: (50, 50, 0)}, config)])
    assert run.method == method
    assert any("method unknown" in note for note in comparison_notes([run], compare([run]))) == (method == "unknown")


def test_comparable_runs_need_no_notes(runs):
    assert comparison_notes(read_runs(runs), compare(read_runs(runs))) == []


def test_different_item_counts_and_last_steps_are_said_in_the_footer(runs, tmp_path, capsys):
    other = make_run(tmp_path / "small", {0: (50, 60, 10), 10: (60, 60, 10)}, "model: {consistency: none}", 100)
    histories = read_runs([*runs, other])
    print_tables(histories, compare(histories))
    for text in (to_markdown(histories, compare(histories), []), capsys.readouterr().out.replace("\n", " ")):
        assert "NOT evaluated on the same items" in text
        assert "opd, nca on val (200 items); small on val (100 items). The figures have a panel for each." in text
        assert "last evaluations are at different steps: opd, nca at 100; small at 10." in text


def test_a_test_evaluation_beside_the_curve_is_tabulated_and_not_drawn(runs):
    path = runs[0] / "removability" / "summary.jsonl"
    append_summary(path, 100, "test", summaries_of(60, 60, 10, 500), elapsed_s=9.0)
    (run,) = read_runs(runs[:1])
    assert [line.split for line in run.last_lines] == ["val", "test"]
    ((panel, (curve,)),) = drawn_settings(compare([run]))
    assert (panel.split, curve.steps) == ("val", tuple(OPD))
    assert comparison_notes([run], compare([run])) == [
        "opd was evaluated on several item sets; the figures show val (200 items), and only tables test (500 items)."
    ]


def test_a_repeated_evaluation_counts_once_and_is_said(runs):
    path = runs[0] / "removability" / "summary.jsonl"
    append_summary(path, 20, "val", summaries_of(80, 80, 0), elapsed_s=2.0)
    (run,) = read_runs(runs[:1])
    assert [line.step for line in run.lines] == list(OPD)
    assert run.lines[2].summaries["all"].accuracy_no_context == 0.8
    assert comparison_notes([run], compare([run])) == [
        "opd was evaluated more than once at step 20; the later evaluation counts."
    ]


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    names = ("seed0/nca", "seed1/nca", "opd")
    folders = [make_run(tmp_path / name, {0: (50, 50, 0)}) for name in names]
    assert tuple(run.label for run in read_runs(folders)) == names


@pytest.mark.filterwarnings("error")
def test_many_runs_and_odd_names_make_a_report(tmp_path, capsys):
    folders = [make_run(tmp_path / f"_[bold]|$\\{number}$", {0: (50, 50, 10)}) for number in range(9)]
    text = report(folders, tmp_path / "report").markdown.read_text()
    assert "| _[bold]\\|$\\8$ | val | 0 |" in text
    assert capsys.readouterr().out.count("_[bold]|$\\8$") == 1 + 1 + 1 + 3  # method, step, setting, three notes


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a run folder"):
        report([tmp_path / "nowhere"], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_run_without_evaluations_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"summary\.jsonl is missing"):
        report([tmp_path], tmp_path / "report")
    (tmp_path / "removability").mkdir()
    (tmp_path / "removability" / "summary.jsonl").touch()
    with pytest.raises(ValueError, match=r"summary\.jsonl holds no evaluation"):
        report([tmp_path], tmp_path / "report")


def test_a_run_given_twice_is_refused(runs):
    with pytest.raises(ValueError, match="opd is given 2 times"):
        read_runs([runs[0], runs[0].parent / "nca" / ".." / "opd"])


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No run given"):
        report([], tmp_path / "report")


def test_command_line(runs, tmp_path, capsys):
    assert report_cli([str(runs[0]), str(runs[1]), "--output", str(tmp_path / "report")]) == 0
    assert f"Written: {tmp_path / 'report' / 'removability.png'}" in capsys.readouterr().out


def test_command_line_ends_with_a_message_instead_of_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        report_cli([str(tmp_path / "nowhere")])
    assert raised.value.code == 2
    assert "nowhere is not a run folder" in capsys.readouterr().err


def test_needs_no_display(runs, tmp_path):
    program = f"from cli.report import report_cli; report_cli([{str(runs[0])!r}, '--output', {str(tmp_path / 'r')!r}])"
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    finished = subprocess.run([sys.executable, "-c", program], env=environment, timeout=100, capture_output=True)
    assert finished.returncode == 0, finished.stderr.decode()
