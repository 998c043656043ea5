"""Back-off at decoding time: worked by hand, on files, and what the report makes of it."""

from __future__ import annotations

import gzip
import math
import re
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from callbacks.back_off import back_off, candidate_thresholds, keeps_no_context
from callbacks.paired_records import PairedRecord
from callbacks.removability_files import read_records, read_summaries
from callbacks.removability_metrics import summarise, summarise_groups
from cli.main import main
from cli.report_comparison import compare
from cli.report_runs import read_runs
from tests.unit.made_runs import config_of, make_record, make_records, second_answer, write_run

# log q_x per token, right without, right with the context.
ITEMS = ((-0.1, True, False), (-0.2, True, True), (-0.3, False, True), (-2.0, False, True), (-3.0, True, False))


def scored(items=ITEMS) -> list[PairedRecord]:
    return [make_record(n, x, c, log_probability_no_context=value) for n, (value, x, c) in enumerate(items)]


@pytest.mark.parametrize(
    ("threshold", "kept", "right_with", "harmed"),
    [
        (-math.inf, [True] * 5, [True, True, False, False, True], 0),
        (-3.0, [True] * 5, [True, True, False, False, True], 0),  # at least: the edge itself is kept
        (-2.5, [True, True, True, True, False], [True, True, False, False, False], 1),
        (-0.3, [True, True, True, False, False], [True, True, False, True, False], 1),
        (math.nextafter(-0.3, 0.0), [True, True, False, False, False], [True, True, True, True, False], 1),
        (0.0, [False] * 5, [False, True, True, True, False], 2),
        (math.inf, [False] * 5, [False, True, True, True, False], 2),
    ],
)
def test_by_hand(threshold, kept, right_with, harmed):
    records = scored()
    backed_off = [back_off(record, threshold) for record in records]
    assert [keeps_no_context(record, threshold) for record in records] == kept
    assert [record.correct_with_context for record in backed_off] == right_with
    assert summarise(backed_off).num_harmed == harmed
    assert [r.correct_no_context for r in backed_off] == [r.correct_no_context for r in records]


@given(st.lists(st.tuples(st.floats(-9, 0), st.booleans(), st.booleans()), min_size=1), st.floats(-9, 1))
def test_every_item_is_answered_by_one_of_its_own_two_answers(items, threshold):
    for record in scored(items):
        answered = back_off(record, threshold)
        view = "no_context" if record.log_probability_no_context >= threshold else "with_context"
        for name in ("completion", "parsed", "reason", "length", "finished"):
            assert getattr(answered, f"{name}_with_context") == getattr(record, f"{name}_{view}")
            assert getattr(answered, f"{name}_no_context") == getattr(record, f"{name}_no_context")
        assert (answered.kl, answered.num_kl_tokens) == (None, 0)
        assert PairedRecord.from_json(answered.to_json()) == answered


def test_what_can_not_be_decided_is_refused():
    with pytest.raises(ValueError, match="threshold=nan"):
        back_off(scored()[0], math.nan)
    with pytest.raises(ValueError, match="'item0000' has no log_probability_no_context"):
        back_off(make_record(0, True, True), -1.0)
    with pytest.raises(ValueError, match="was sampled; back-off is for greedy decoding"):
        back_off(replace(scored()[0], further_no_context=second_answer(True)), -1.0)


def test_candidates_are_the_deciles_between_never_and_always():
    records = scored([(-n / 10, True, True) for n in range(11)])
    tenths = [-0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1]
    assert candidate_thresholds(records) == [-math.inf, *tenths, math.inf]
    assert candidate_thresholds(scored([(-0.5, True, True)] * 4)) == [-math.inf, -0.5, math.inf]


def likely(records, sure: float = -0.1):
    """Every second item has an answer that the model is sure of."""
    return [replace(r, log_probability_no_context=sure if n % 2 == 0 else -1.0) for n, r in enumerate(records)]


@pytest.fixture
def fit(tmp_path):
    """A run with two evaluations that kept log-probabilities, a control and a test, and one from before."""
    evaluations = {0: make_records(40, 10, 20, 30), 10: likely(make_records(50, 20, 10, 20)),
                   20: likely(make_records(60, 20, 10, 10))}  # fmt: skip
    run = write_run(tmp_path / "nca", evaluations, config_of("no_context_anchor", 0))
    write_run(run, {20: likely(make_records(40, 40, 5, 15))}, context="irrelevant")
    return write_run(run, {20: likely(make_records(50, 15, 5, 10))}, split="test", from_test=True)


def test_a_run_is_rebuilt_without_decoding_anything(fit, tmp_path, capsys):
    zipped = fit / "removability/step=000010.jsonl"
    before = {path.name: read_records(path) for path in (fit / "removability").glob("*step*")}
    (zipped.parent / f"{zipped.name}.gz").write_bytes(gzip.compress(zipped.read_bytes()))
    zipped.unlink()
    output = tmp_path / "backed_off"
    main(["back_off", str(fit), "--threshold", "-0.5", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "Left out: val, step 0 has items without log_probability_no_context." in printed
    names = {path.name for path in (output / "removability").iterdir()}
    expected = {"step=000010.jsonl", "step=000020.jsonl", "step=000020.irrelevant.jsonl", "test-step=000020.jsonl"}
    assert names == {*expected, "summary.jsonl"}
    lines = read_summaries(output / "removability/summary.jsonl")
    assert {(line.split, line.step, line.context) for line in lines} == {
        ("val", 10, "original"), ("val", 20, "original"), ("val", 20, "irrelevant"), ("test", 20, "original")
    }  # fmt: skip
    for line in lines:
        name = f"step={line.step:06d}.jsonl" if line.context == "original" else "step=000020.irrelevant.jsonl"
        name = f"test-{name}" if line.split == "test" else name
        records = read_records(output / "removability" / name)
        assert records == [back_off(record, -0.5) for record in before[name]]
        assert line.summaries == summarise_groups(records)
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config.pop("back_off") == {"threshold": -0.5, "run": str(fit)}
    assert config == yaml.safe_load((fit / "config.yaml").read_text())


def test_the_report_names_it_and_compares_it(fit, tmp_path):
    none = write_run(tmp_path / "none", {20: likely(make_records(50, 30, 10, 10))}, config_of("none", 0))
    folders = [none, fit]
    for name, run, threshold in (("a", none, "-0.3"), ("b", fit, "-0.3"), ("c", fit, "-inf")):
        main(["back_off", str(run), f"--threshold={threshold}", "--output", str(tmp_path / name)])
        folders.append(tmp_path / name)
    val, *_ = (c for c in compare(read_runs(folders)) if c.split == "val")
    by_name = {method.name: method for method in val.methods}
    assert list(by_name) == [
        "none", "no_context_anchor x 0.5", "none + back_off -0.3", "no_context_anchor x 0.5 + back_off -0.3",
        "no_context_anchor x 0.5 + back_off -inf",
    ]  # fmt: skip
    backed_off = [back_off(record, -0.3) for record in read_records(none / "removability/step=000020.jsonl")]
    gain = summarise(backed_off).accuracy_with_context - 0.6
    assert by_name["none + back_off -0.3"].differences["accuracy_with_context"].value == pytest.approx(gain)
    never = by_name["no_context_anchor x 0.5 + back_off -inf"]
    assert never.summaries[0].harm == 0.0
    assert never.differences["harm"].value == pytest.approx(-30 / 80)
    assert not any("also differ" in note for note in val.notes)


def test_without_a_threshold_a_table_to_choose_from(fit, capsys):
    main(["back_off", str(fit)])
    header, *rows = capsys.readouterr().out.splitlines()[1:]  # the first line says what is left out
    assert header.split() == ["evaluation", "threshold", "items", "kept", "without", "with", "both", "harm"]
    # 60 both, 20 harmed, 10 helped, 10 neither; every second item is sure at -0.1, the others at -1.
    assert [row.split()[3:] for row in rows] == [
        ["-inf", "100", "100.0", "80.0", "80.0", "80.0", "0.0", "(0/80)"],
        ["-1", "100", "100.0", "80.0", "80.0", "80.0", "0.0", "(0/80)"],
        ["-0.55", "100", "50.0", "80.0", "75.0", "70.0", "12.5", "(10/80)"],
        ["-0.1", "100", "50.0", "80.0", "75.0", "70.0", "12.5", "(10/80)"],
        ["inf", "100", "0.0", "80.0", "70.0", "60.0", "25.0", "(20/80)"],
    ]
    main(["back_off", str(fit), "--split", "test"])
    assert "test, step 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--threshold", "-0.3"], "give --threshold and --output, or neither"),
        (["RUN", "--threshold", "nan", "--output", "OUT"], "threshold=nan"),
        (["RUN", "--threshold", "-0.3", "--output", "RUN"], "exists; name a folder that does not"),
        (["DONE", "--threshold", "-0.3", "--output", "OUT"], "is already under back-off"),
        (["OLD", "--threshold", "-0.3", "--output", "OUT"], "No evaluation of .*OLD holds the log-probability"),
        (["OLD", "--split", "test"], "No test evaluation of .*OLD holds the log-probability"),
        (["NOWHERE"], "is not a run folder"),
    ],
)
def test_errors_end_with_a_message_and_write_nothing(fit, tmp_path, capsys, words, message):
    write_run(tmp_path / "OLD", {20: make_records(50, 30, 10, 10)}, config_of("none", 0))
    main(["back_off", str(fit), "--threshold", "-0.3", "--output", str(tmp_path / "DONE")])
    fit.rename(tmp_path / "RUN")
    words = [str(tmp_path / word) if word.isupper() else word for word in words]
    with pytest.raises(SystemExit) as stopped:
        main(["back_off", *words])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "OUT").exists()
