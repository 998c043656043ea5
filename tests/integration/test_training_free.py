"""Baselines without training, through the command line: back-off at decoding time, and the untrained model."""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks.removability_files import read_records, read_summaries
from cli.main import main
from cli.report_comparison import compare
from cli.report_runs import read_runs


def evaluate_untrained(config: Path, output: Path, *args: str) -> Path:
    main(["evaluate", "--config", str(config), "--output", str(output), "--device", "cpu", "--split", "val",
          "--max_items", "4", "--following", "false", "--general", "false", *args])  # fmt: skip
    return output


def test_fit_back_off_report(runs, tmp_path, capsys):
    args = ("--removability.at_start", "true", "--removability.controls", '[{"kind": "irrelevant"}]')
    run = runs.fit("run", "--model.consistency", "none", *args)
    records = read_records(run / "removability/step=000003.jsonl")
    threshold = sorted(record.log_probability_no_context for record in records)[2]  # two of the four are kept
    main(["back_off", str(run)])
    assert "kept" in capsys.readouterr().out
    main(["back_off", str(run), f"--threshold={threshold!r}", "--output", str(tmp_path / "backed_off")])
    for step in (0, 3):
        name = f"removability/step={step:06d}.irrelevant.jsonl"
        assert len(read_records(tmp_path / "backed_off" / name)) == 4
    answered = read_records(tmp_path / "backed_off/removability/step=000003.jsonl")
    for before, after in zip(records, answered, strict=True):
        kept = before.log_probability_no_context >= threshold
        given = before.completion_no_context if kept else before.completion_with_context
        assert after.completion_with_context == given
    assert any(r.completion_no_context != r.completion_with_context for r in records)
    main(["report", str(run), str(tmp_path / "backed_off"), "--output", str(tmp_path / "report")])
    name = f"none + back_off {threshold:g}"
    text = (tmp_path / "report/removability.md").read_text()
    assert text.split("Differences to distillation alone")[1].count(f"| {name} | 1 | 3 |") == 1


def test_the_untrained_model_by_evaluate_and_by_a_fit_of_no_steps_is_one_method(runs, tmp_path):
    none = runs.fit("none", "--model.consistency", "none", "--removability.at_start", "true")
    still = runs.fit("still", "--trainer.max_steps", "0")
    short = evaluate_untrained(runs.config, tmp_path / "short")  # the config leaves the context's name to its default
    whole = evaluate_untrained(none / "config.yaml", tmp_path / "whole")
    at_start = read_records(none / "removability/step=000000.jsonl")
    start = [(record.completion_no_context, record.completion_with_context) for record in at_start]
    for run in (still, short, whole):
        (line,) = read_summaries(run / "removability/summary.jsonl")
        assert (line.step, line.split) == (0, "val")
        (records,) = (read_records(path) for path in (run / "removability").glob("*step=000000.jsonl"))
        assert [(r.completion_no_context, r.completion_with_context) for r in records] == start
        (comparison,) = compare(read_runs([none, run]))
        method = comparison.methods[1]
        assert (method.name, method.step, method.difference_step) == ("untrained", 0, 0)
        assert "accuracy_with_context" in method.differences
        assert not [note for note in comparison.notes if "also differ" in note]


@pytest.mark.parametrize(
    ("args", "untrained"),
    [((), True), (("--step", "3"), False), (("--model.name", "MODEL"), True), (("--model.name", "OTHER"), False)],
)
def test_only_the_config_s_own_student_at_step_0_is_untrained(runs, tmp_path, tiny_model_dir, args, untrained):
    (tmp_path / "trained").symlink_to(tiny_model_dir)
    places = {"MODEL": str(tiny_model_dir), "OTHER": str(tmp_path / "trained")}
    run = evaluate_untrained(runs.config, tmp_path / "out", *(places.get(word, word) for word in args))
    (read,) = read_runs([run])
    assert read.config.untrained == untrained
    assert read.method == ("untrained" if untrained else "unknown")


def test_another_context_is_another_setting(runs, tmp_path):
    run = evaluate_untrained(runs.config, tmp_path / "out", "--context", "geography_demonstrations_paraphrase")
    (read,) = read_runs([run])
    assert read.config.context == "geography_demonstrations_paraphrase"
