"""Methods at equal compute: cases by hand."""

from __future__ import annotations

import csv

from cli.report_comparison import compare
from cli.report_compute import compute_table
from cli.report_runs import read_runs
from cli.report_tables import tables_of
from tests.unit.made_runs import config_of, make_records, write_run

POOR, FAIR, GOOD = make_records(10, 10, 0, 20), make_records(20, 4, 0, 16), make_records(30, 1, 0, 9)


def run(folder, consistency, seed, seconds, steps=(0, 10, 20)):
    """A run whose steps take `seconds` each, an evaluation better than the one before it."""
    evaluations = dict(zip(steps, (POOR, FAIR, GOOD), strict=True))
    write_run(folder, evaluations, config_of(consistency, seed))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "throughput/step_s", "removability/harm"])
        for step in range(1, steps[-1] + 1):
            writer.writerow([step, seconds, ""])
            writer.writerow([step, "", 0.5])
    return folder


def table(*folders):
    (comparison,) = compare(read_runs(folders))
    return compute_table(comparison)


def test_a_dearer_method_is_shown_where_it_had_cost_as_much(tmp_path):
    opd = [run(tmp_path / f"opd{seed}", "none", seed, 1.0) for seed in (1, 2)]
    nca = run(tmp_path / "nca", "no_context_anchor", 1, 1.9)
    cheap = run(tmp_path / "cheap", "symmetric", 1, 0.25)
    shown = table(*opd, nca, cheap)
    found = {row[0]: dict(zip(shown.header, row, strict=True)) for row in shown.rows}
    assert [found[name]["step"] for name in ("none", "no_context_anchor x 0.5", "symmetric x 0.5")] == [
        "20",
        "10",
        "20",
    ]
    assert [row["cost of a step"] for row in found.values()] == ["1.00", "1.90", "0.25"]
    assert [row["share"] for row in found.values()] == ["100", "95", "25"]
    assert found["no_context_anchor x 0.5"]["both"].startswith("50.0")
    assert found["symmetric x 0.5"]["both"].startswith("75.0")
    (comparison,) = compare(read_runs([*opd, nca]))
    assert "At equal compute" in [table.title for table in tables_of(comparison)]


def test_what_has_no_times_or_nothing_within_the_budget_is_left_out(tmp_path):
    opd, nca = run(tmp_path / "opd", "none", 1, 1.0), run(tmp_path / "nca", "no_context_anchor", 1, 2.1)
    assert table(opd, nca) is None  # the second's first evaluation came after 21 s
    nca = run(tmp_path / "nca", "no_context_anchor", 1, 1.0)
    assert len(table(opd, nca).rows) == 2
    lines = (tmp_path / "nca/metrics.csv").read_text().splitlines(keepends=True)
    (tmp_path / "nca/metrics.csv").write_text("".join(lines[:3] + lines[5:]))  # a step is missing
    assert table(opd, nca) is None
    (tmp_path / "nca/metrics.csv").unlink()
    assert table(opd, nca) is None
    assert table(nca) is None
