"""Reading rows: every way in which a file can be broken is found, counted, and named by file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.rows import RowAudit, find_file, read_json_lines, read_lines, read_table, require_columns

DATA = Path("/work/shared/data")


def write(tmp_path: Path, content: bytes, name: str = "rows.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def json_lines(path: Path, max_bad_share: float = 0.0) -> tuple[list[tuple[int, Mapping[str, Any]]], RowAudit]:
    audit = RowAudit(max_bad_share)
    return list(read_json_lines(path, audit)), audit


def table(
    path: Path, delimiter: str = ",", header: tuple[str, ...] | None = None
) -> tuple[list[tuple[int, Mapping[str, str]]], RowAudit]:
    audit = RowAudit()
    return list(read_table(path, audit, delimiter, header)), audit


# JSON lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not a whole JSON line"),
        (b'{"a": 1} {"a": 2}', "not a whole JSON line"),
        (b"[" * 100_000, "not a whole JSON line"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
        (rb'{"a": "\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    rows, audit = json_lines(path)
    assert rows == [(1, {"a": 0}), (3, {"a": 2})]
    assert (audit.num_rows, audit.problems) == (3, [(path, 2, reason)])
    with pytest.raises(ValueError, match="1 of 3 rows are bad") as error:
        audit.finish()
    assert f"{path}:2: {reason}" in str(error.value)


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_no_fault(tmp_path: Path) -> None:
    rows, audit = json_lines(write(tmp_path, b'\xef\xbb\xbf{"a": 0}\r\n\r\n{"a": 1}'))
    assert rows == [(1, {"a": 0}), (3, {"a": 1})]
    assert audit.num_rows == 2
    audit.finish()


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    rows, audit = json_lines(write(tmp_path, rb'{"a": "\ud83d\ude00"}'))
    assert rows == [(1, {"a": "\N{GRINNING FACE}"})]
    assert not audit.problems


def test_a_byte_order_mark_counts_only_at_the_start(tmp_path: Path) -> None:
    _, audit = json_lines(write(tmp_path, b'{"a": 0}\n\xef\xbb\xbf{"a": 1}\n'))
    assert [line for _, line, _ in audit.problems] == [2]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    rows, audit = json_lines(write(tmp_path, b"\n  \n"))
    assert rows == []
    with pytest.raises(ValueError, match=rf"{audit.files[0]}: no rows. Is the path right"):
        audit.finish()


@given(rows=st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=5))
def test_what_json_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path_factory.mktemp("rows"), "\n".join(map(json.dumps, rows)).encode())
    read, audit = json_lines(path)
    assert [row for _, row in read] == rows
    assert not audit.problems


# Plain lines


def test_blank_lines_keep_their_place(tmp_path: Path) -> None:
    audit = RowAudit()
    lines = list(read_lines(write(tmp_path, b"one\r\n\ncaf\xe9\nfour\x85still four"), audit))
    assert lines == [(1, "one"), (2, "")]
    assert [(line, reason) for _, line, reason in audit.problems] == [(3, "not UTF-8"), (4, "not UTF-8")]


# Tables


def test_a_place_is_the_line_where_a_row_begins_and_quotes_hold_line_ends_and_delimiters(tmp_path: Path) -> None:
    rows, audit = table(write(tmp_path, b'a;b\r\n"x;\r\ny";1\r\n\r\n"say ""no""";2\r\n'), ";")
    assert rows == [(2, {"a": "x;\r\ny", "b": "1"}), (5, {"a": 'say "no"', "b": "2"})]
    assert audit.num_rows == 2


def test_a_line_separator_of_unicode_ends_no_row(tmp_path: Path) -> None:
    rows, audit = table(write(tmp_path, "a,b\nx\u2028y,\ufffd\n".encode()))
    assert rows == [(2, {"a": "x\u2028y", "b": "\ufffd"})]
    assert not audit.problems


def test_broken_rows_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbfa,b\n1,2\n1\n1,2,3\ncaf\xe9,2\n"x"y,2\n3,4\n5,"open\n')
    rows, audit = table(path)
    assert rows == [(2, {"a": "1", "b": "2"}), (7, {"a": "3", "b": "4"})]
    assert audit.num_rows == 7
    assert [(line, reason) for _, line, reason in audit.problems] == [
        (3, "another number of fields than 2"),
        (4, "another number of fields than 2"),
        (5, "not UTF-8"),
        (6, "quotes that do not match"),
        (8, "quotes that do not match"),
    ]


def test_every_line_that_a_stray_quote_swallows_is_bad(tmp_path: Path) -> None:
    lines = [f"{number},x" for number in range(2, 100)]
    for place, stray in ((10, '"10,x'), (60, '60,"x"y')):  # opened, and closed 50 lines further on
        lines[place - 2] = stray
    rows, audit = table(write(tmp_path, "\n".join(["a,b", *lines, ""]).encode()))
    assert [int(row["a"]) for _, row in rows] == [*range(2, 10), *range(61, 100)]
    assert audit.num_rows == 98
    assert [line for _, line, _ in audit.problems] == [*range(10, 61)]


def test_a_file_without_a_header_takes_the_names_given(tmp_path: Path) -> None:
    rows, _ = table(write(tmp_path, b"1,2\n"), header=("a", "b"))
    assert rows == [(1, {"a": "1", "b": "2"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty; a header"), (b"a,a\n1,2\n", "names a column twice"), (b'"a"b,c\n', "header has quotes")],
)
def test_a_table_without_a_usable_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(write(tmp_path, content))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.csv has no column \['b'\]; it has \['a'\]"):
        require_columns(Path("data.csv"), {"a": 1}, ("a", "b"))


# The audit


def test_a_share_of_bad_rows_may_be_allowed() -> None:
    for max_bad_share in (0.3, 0.3334):  # the message rounds up: what it proposes is enough
        audit = RowAudit(max_bad_share, num_rows=3)
        audit.reject(Path("f"), 2, "no id")
        if max_bad_share < 1 / 3:
            with pytest.raises(ValueError, match=r"max_bad_share=0\.3334"):
                audit.finish()
        else:
            audit.finish()


def test_all_bad_rows_are_counted_and_five_are_shown() -> None:
    audit = RowAudit(num_rows=10)
    for line in range(1, 8):
        audit.reject(Path("f"), line, "no id" if line < 6 else "not UTF-8")
    report = audit.report()
    assert report.startswith("7 of 10 rows are bad (no id: 5, not UTF-8: 2):\n  f:1: no id\n")
    assert report.endswith("  f:5: no id\n  and 2 more")
    assert RowAudit(num_rows=4).report() == "4 rows, none bad."


def test_when_no_row_is_good_the_format_is_asked_about_and_no_share_proposed() -> None:
    audit = RowAudit(num_rows=1)
    audit.reject(Path("f"), 1, "no id")
    with pytest.raises(ValueError, match=r"(?s)f:1: no id\nNo row is good: is this the format") as error:
        audit.finish()
    assert "max_bad_share" not in str(error.value)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=r"max_bad_share=.* must be between 0 and 1"):
        RowAudit(share)


# Files


def test_the_first_file_that_is_there_is_found(tmp_path: Path) -> None:
    write(tmp_path, b"", "b.json")
    assert find_file(tmp_path, ("a.json", "b.json"), "data").name == "b.json"
    with pytest.raises(FileNotFoundError, match=r"data: none of a\.json is in .*; it holds \['b\.json'\]"):
        find_file(tmp_path, ("a.json",), "data")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_file(tmp_path / "absent", ("a.json",), "data")


# Real files


@pytest.mark.parametrize(
    ("name", "delimiter", "num_rows"),
    [("hatecheck/test_suite_cases.csv", ",", 3728), ("ethos/Ethos_Dataset_Binary.csv", ";", 998)],
)
def test_real_tables_have_their_published_numbers_of_rows(name: str, delimiter: str, num_rows: int) -> None:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not here")
    rows, audit = table(DATA / name, delimiter)
    assert (len(rows), audit.problems) == (num_rows, [])
