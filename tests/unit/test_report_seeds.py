"""What another seed changes: cases by hand."""

from __future__ import annotations

import pytest

from cli.report_comparison import compare
from cli.report_runs import read_runs
from cli.report_seeds import lost_between_seeds, seed_table
from cli.report_tables import tables_of
from tests.unit.made_runs import config_of, make_records, write_run

# Items 0..39. Right without the context: 0..29, 0..23, 0..31.
FIRST, SECOND, THIRD = make_records(26, 4, 0, 10), make_records(20, 4, 6, 10), make_records(28, 4, 0, 8)


def comparison(tmp_path, *evaluations, consistency="none"):
    folders = [tmp_path / f"{consistency}{seed}" for seed in range(len(evaluations))]
    for seed, (folder, records) in enumerate(zip(folders, evaluations, strict=True)):
        write_run(folder, {20: records}, config_of(consistency, seed))
    (found,) = compare(read_runs(folders))
    return found


def test_lost_items_are_counted_over_ordered_pairs_of_seeds(tmp_path):
    found = comparison(tmp_path, FIRST, SECOND, THIRD)
    # first -> second loses 6, first -> third 0; second loses none; third -> first 2, third -> second 8.
    assert lost_between_seeds(found.methods[0]) == (16, 2 * (30 + 24 + 32))
    table = seed_table(found)
    # harm 12 / 86 = 14.0 %; lost 16 / 172 = 9.3 %
    assert table.rows == [["none", "3", "20", "14.0 (12/86)", "9.3 (16/172)", "1.5"]]
    assert table in tables_of(found)


def test_seeds_that_agree_have_no_ratio(tmp_path):
    (row,) = seed_table(comparison(tmp_path, FIRST, FIRST)).rows
    assert row[-2:] == ["0.0 (0/60)", "-"]


def test_few_items_have_no_rate(tmp_path):
    (row,) = seed_table(comparison(tmp_path, make_records(4, 1, 0, 35), make_records(3, 1, 0, 36))).rows
    assert row[-3:] == ["- (2/9)", "- (1/9)", "-"]


@pytest.mark.parametrize("evaluations", [(FIRST,), (FIRST, SECOND)])
def test_one_seed_or_lost_records_make_no_row(tmp_path, evaluations):
    found = comparison(tmp_path, *evaluations)
    for path in tmp_path.glob("none1/removability/*step=*"):
        path.unlink()
    assert seed_table(found) is None
