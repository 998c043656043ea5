"""Mathematics: answers by value and in bounded time, every format, and splits that leak nothing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import MathDataModule, load_context, math_values
from datamodules.base import Split
from datamodules.example import Grade
from datamodules.math_answers import MAX_LENGTH, canonical_answer, compare, grade_math_answer
from datamodules.math_values import Verdict, compare_values

pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'context-returns[mathematics]'")

ROOT = Path(math_values.__file__).parents[1]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# (completion, right answer, strict verdict, lenient verdict). Labelled by hand.
COMPLETIONS = [
    ("<answer>34</answer>", "34", "correct", "correct"),
    ("<answer>43</answer>", "34", "wrong", "wrong"),
    ("34", "34", "no_answer", "no_answer"),
    ("The answer is 34.", "34", "no_answer", "no_answer"),
    ("", "34", "no_answer", "no_answer"),
    ("<answer></answer>", "34", "no_answer", "no_answer"),
    ("<answer>34", "34", "no_answer", "correct"),
    ("\\boxed{34}", "34", "no_answer", "correct"),  # a box is no tag
    ("\\boxed{3} or \\boxed{34}", "34", "no_answer", "correct"),  # the last box
    ("\\boxed{34} <answer>3</answer>", "34", "wrong", "wrong"),  # where there is a tag, boxes outside don't count
    # What changes nothing
    ("<answer> 34. </answer>", "34", "correct", "correct"),
    ("<answer>$34$</answer>", "34", "correct", "correct"),
    ("<answer>\\(34\\)</answer>", "34", "correct", "correct"),
    ("<answer>\\[ 34 \\]</answer>", "34", "correct", "correct"),
    ("<answer>**34**</answer>", "34", "correct", "correct"),
    ("<answer>$$34$$.</answer>", "34", "correct", "correct"),
    ("<answer>+34</answer>", "34", "correct", "correct"),
    ("<answer>034</answer>", "34", "correct", "correct"),
    ("<answer>\u221234</answer>", "-34", "correct", "correct"),  # a minus sign that is no hyphen
    ("<answer>1,234</answer>", "1234", "correct", "correct"),
    ("<answer>1{,}234</answer>", "1234", "correct", "correct"),
    ("<answer>1234567</answer>", "1,234,567", "correct", "correct"),
    ("<answer>12,34</answer>", "1234", "wrong", "wrong"),  # two numbers
    # Boxes inside the tag
    ("<answer>\\boxed{34}</answer>", "34", "correct", "correct"),
    ("<answer>$\\boxed{34}$</answer>", "34", "correct", "correct"),
    ("<answer>$x = \\boxed{34}$</answer>", "34", "correct", "correct"),
    ("<answer>\\boxed{\\frac{1}{2}}</answer>", "1/2", "correct", "correct"),
    ("<answer>\\boxed{\\boxed{34}}</answer>", "34", "correct", "correct"),
    ("<answer>\\boxed{34} = \\boxed{34}</answer>", "34", "correct", "correct"),
    ("<answer>\\boxed{3} or \\boxed{34}</answer>", "34", "several_answers", "correct"),
    ("<answer>\\boxed{34</answer>", "34", "not_a_choice", "not_a_choice"),  # never closed
    ("<answer>\\boxed{}</answer>", "34", "not_a_choice", "not_a_choice"),
    # Several tags
    ("<answer>34</answer> <answer>34.0</answer>", "34", "correct", "correct"),
    ("<answer>1/2</answer> <answer>\\frac{1}{2}</answer> <answer>0.5</answer>", "0.5", "correct", "correct"),
    ("<answer>3</answer> <answer>34</answer>", "34", "several_answers", "correct"),
    ("<answer>34</answer> <answer>3</answer>", "34", "several_answers", "wrong"),
    ("<answer>final answer</answer> <answer>34</answer>", "34", "several_answers", "correct"),
    # By value
    ("<answer>34.0</answer>", "34", "correct", "correct"),
    ("<answer>34.00001</answer>", "34", "wrong", "wrong"),
    ("<answer>68/2</answer>", "34", "correct", "correct"),
    ("<answer>\\dfrac{68}{2}</answer>", "34", "correct", "correct"),
    ("<answer>30 + 4</answer>", "34", "correct", "correct"),  # stated: arithmetic need not be carried out
    ("<answer>n = 34</answer>", "34", "correct", "correct"),
    ("<answer>m + n = 30 + 4 = 34</answer>", "34", "correct", "correct"),
    ("<answer>34 = n</answer>", "34", "wrong", "wrong"),  # stated: the last side is the answer
    ("<answer>n = 34</answer>", "n = 34", "correct", "correct"),
    ("<answer>m = 34</answer>", "n = 34", "wrong", "wrong"),
    ("<answer>f(2) = 34</answer>", "34", "correct", "correct"),
    ("<answer>3 = 34</answer>", "34", "several_answers", "correct"),  # two values
    ("<answer>3 = 34</answer>", "3", "several_answers", "wrong"),
    ("<answer>$n = 2 + 2 = 5$</answer>", "5", "several_answers", "correct"),
    ("<answer>\\frac{68}{2} = 34</answer>", "34", "correct", "correct"),
    ("<answer>P = \\frac{1}{2} = 0.5 = 50\\%</answer>", "1/2", "correct", "correct"),
    ("<answer>10^3 = 1000</answer>", "1000", "correct", "correct"),
    ("<answer>2\\text{ m} = 200</answer>", "200", "correct", "correct"),  # a unit: not compared
    ("<answer>34 cm</answer>", "34", "correct", "correct"),
    ("<answer>34\\text{ apples}</answer>", "34", "correct", "correct"),
    ("<answer>34^\\circ</answer>", "34", "correct", "correct"),
    ("<answer>34°</answer>", "34", "correct", "correct"),
    ("<answer>34\\%</answer>", "34", "correct", "correct"),
    ("<answer>34\\%</answer>", "0.34", "correct", "correct"),
    ("<answer>0.3333333</answer>", "\\frac13", "correct", "correct"),
    ("<answer>0.333</answer>", "\\frac13", "wrong", "wrong"),
    ("<answer>\\sqrt{8}</answer>", "2\\sqrt{2}", "correct", "correct"),
    ("<answer>sqrt(8)</answer>", "2\\sqrt2", "correct", "correct"),
    ("<answer>1 + x^2</answer>", "x^2+1", "correct", "correct"),
    ("<answer>(1, 2)</answer>", "(1,2)", "correct", "correct"),
    ("<answer>(2, 1)</answer>", "(1,2)", "wrong", "wrong"),
    ("<answer>2, 1</answer>", "\\{1,2\\}", "correct", "correct"),
    ("<answer>[0,1]</answer>", "[0,1)", "wrong", "wrong"),
    ("<answer>\\text{Monday}</answer>", "Monday", "correct", "correct"),
    # Hedges and words
    ("<answer>3 or 34</answer>", "34", "wrong", "wrong"),
    ("<answer>34 or 3</answer>", "34", "wrong", "wrong"),
    ("<answer>$3$ or $34$</answer>", "34", "wrong", "wrong"),
    ("<answer>\\(3\\), \\(34\\)</answer>", "34", "wrong", "wrong"),
    ("<answer>3, 34</answer>", "34", "wrong", "wrong"),
    ("<answer>\\{3, 34\\}</answer>", "34", "wrong", "wrong"),
    ("<answer>\\pm 34</answer>", "34", "wrong", "wrong"),
    ("<answer>thirty-four</answer>", "34", "wrong", "wrong"),
    ("<answer>34?</answer>", "34", "not_a_choice", "not_a_choice"),
    ("<answer>\\frac{34</answer>", "34", "not_a_choice", "not_a_choice"),
    (f"<answer>{'1' * MAX_LENGTH}2</answer>", "34", "not_a_choice", "not_a_choice"),
    ("<answer>1</answer><answer>2</answer><answer>3</answer><answer>4</answer><answer>34</answer>", "34",
     "several_answers", "correct"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "answer", "strict", "lenient"), COMPLETIONS)
def test_hand_labelled_completions(completion: str, answer: str, strict: str, lenient: str) -> None:
    assert grade_math_answer(completion, answer).reason == strict
    assert grade_math_answer(completion, answer, lenient=True).reason == lenient


def test_parsed_is_the_answer_as_written_but_for_what_changes_nothing() -> None:
    assert grade_math_answer("<answer>$1,234.$</answer>", "1234") == Grade(True, "1234", "correct")
    assert grade_math_answer("<answer>\\boxed{\\frac{1}{2}}</answer>", "0.5").parsed == "\\frac{1}{2}"
    assert grade_math_answer("<answer>3</answer>", "0.5") == Grade(False, "3", "wrong")
    assert grade_math_answer("<answer>?</answer>", "0.5") == Grade(False, None, "not_a_choice")


def test_whole_numbers_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", {"math_verify": None}.get)
    assert grade_math_answer("<answer>1,234</answer>", "1234").reason == "correct"
    assert grade_math_answer("<answer>-1234</answer>", "1234").reason == "wrong"
    with pytest.raises(ImportError, match=r"math-verify: pip install 'context-returns\[mathematics\]'"):
        grade_math_answer("<answer>1/17</answer>", "1234")


PIECES = ["<answer>", "</answer>", "\\boxed{", "}", "{", "\\frac", "1", "2", "x", "^", "$", ",", " or ", "="]
spoken = st.lists(st.sampled_from(PIECES), max_size=12)


@given(completion=st.one_of(st.text(), spoken.map("".join)), lenient=st.booleans())
def test_no_text_makes_it_raise(completion: str, lenient: bool) -> None:
    # Without the library, which has tests of its own: reading and the rules are what is ours.
    with patch("datamodules.math_answers.compare_values", return_value="unreadable"):
        grade_math_answer(completion, "34", lenient=lenient)


@pytest.mark.parametrize(
    "content", ["\x00", "\ud800", "\\", "x{", "x" + "}" * 50, "x" + "(" * 200, "\\left(", "^_^", "\\def\\a{\\a}\\a"]
)
def test_the_library_raises_for_no_text(content: str) -> None:
    assert grade_math_answer(f"<answer>{content}</answer>", "34").reason in ("not_a_choice", "wrong")


@given(number=st.integers(-(10**30), 10**30), other=st.integers(-(10**30), 10**30))
def test_whole_numbers_are_compared_as_such(number: int, other: int) -> None:
    for written in (f"{number}", f"{number:,}", f"${number}$.", f"\\boxed{{{number}}}"):
        assert grade_math_answer(f"<answer>{written}</answer>", str(number)).reason == "correct"
        assert grade_math_answer(f"<answer>{written}</answer>", f"{other:,}").correct == (number == other)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_canonical_form_is_stable(text: str) -> None:
    assert canonical_answer(canonical_answer(text)) == canonical_answer(text)


# Each takes minutes, gigabytes or for ever, if nothing stops it; the last one already to be read.
ENDLESS = [
    "9^{9^{9^{9}}}",
    "(10^{8})!",
    "\\sum_{n=1}^{10^9} n^{n}",
    "x^{1000000}(x+1)^{100000}",
    "\\left(" * 80 + "x" + "\\right)" * 80,
]


@pytest.mark.parametrize("given", ENDLESS)
def test_it_does_not_hang(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_values("1", "1/3")  # the process has started
    monkeypatch.setattr(math_values, "TIME_LIMIT", 1.0)
    begin = time.perf_counter()
    assert compare_values("7", given) == "unreadable"
    assert time.perf_counter() - begin < 10
    assert compare_values("7", "14/2") == "equal"  # by another process


def test_all_threads_may_ask_the_one_process() -> None:
    process = math_values._ComparingProcess()
    # A reply to another thread's question would be the wrong one.
    asked = [("1/7", f"{n}/{7 * n + n % 2}") for n in range(2, 10)]
    with patch.object(math_values, "_start", wraps=math_values._start) as start, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: process.compare(*question), asked))
    process.end()
    assert found == ["equal", "different"] * 4
    start.assert_called_once()


def verdict_and_process(question: tuple[str, str]) -> tuple[Verdict, int]:
    verdict = compare_values(*question)
    assert math_values._process._process is not None
    return verdict, math_values._process._process.pid


def test_a_process_forked_during_a_question_asks_one_of_its_own() -> None:
    verdict, ours = verdict_and_process(("1/5", "2/10"))
    assert verdict == "equal"
    # As if another thread had asked: the lock that it holds is not let go in the copy.
    with math_values._process._lock, multiprocessing.get_context("fork").Pool(1) as pool:
        verdict, theirs = pool.apply_async(verdict_and_process, [("1/6", "2/12")]).get(timeout=60)
    assert (verdict, theirs == ours) == ("equal", False)
    assert verdict_and_process(("1/5", "2/11")) == ("different", ours)


def test_a_process_that_was_killed_is_started_again() -> None:
    assert compare_values("1/5", "3/15") == "equal"
    process = math_values._process._process
    assert process is not None
    process.kill()
    process.wait()
    assert compare_values("1/5", "4/20") == "equal"


def test_an_interrupted_question_leaves_no_reply_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_values("1/5", "5/25") == "equal"
    process = math_values._process._process
    assert process is not None

    def interrupt(*args: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(math_values, "_ask", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compare_values("1/5", "6/30")
    assert process.poll() is not None
    assert compare_values("1/5", "6/31") == "different"


def test_a_process_that_cannot_start_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('a broken installation')")
    process = math_values._ComparingProcess()
    with monkeypatch.context() as context:
        context.syspath_prepend(tmp_path)
        with pytest.raises(RuntimeError, match=r"did not start \(exit status 1\); what it said is printed above"):
            process.compare("1/11", "2/22")
    assert process.compare("1/11", "2/22") == "equal"
    process.end()


def test_memory_is_bounded() -> None:
    code = "from datamodules.math_values import *; from datamodules.math_values import _process; "
    code += "compare_values('1', '1/2'); import resource as r; print(r.prlimit(_process._process.pid, r.RLIMIT_AS)[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 4 * 2**30


def test_the_process_ends_with_the_program() -> None:
    code = "from datamodules import math_values as m; m.compare_values('1', '1/2'); print(m._process._process.pid)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
    assert done.stderr == ""


def test_nothing_of_an_answer_is_evaluated_but_its_numbers(tmp_path: Path) -> None:
    # In a fresh process, where Python's eval is watched and SymPy's reader of plain expressions ends the program.
    mark = tmp_path / "mark"
    texts = [
        "1/2", "(1+1)*2", "3.5 \\cdot 12,345", "sqrt(4)", "2**2", "2^2", "0x41", "f(x)", "x_{print(1)}", "5 meters",
        f"open('{mark}', 'w')", "__import__('os').abort()", "\\text{exit()}", "\\mathrm{exit}(1)",
        "\\operatorname{exit}(1)", "\\sin(exit())", "x.__class__", "[1 for x in ()]", "lambda: 1", "2**2\\",
    ]  # fmt: skip
    code = (
        "import builtins, json, sympy.physics.units, math_verify.parser\n"
        "from datamodules.math_values import compare_here\n"
        "evaluated, original = [], builtins.eval\n"
        "builtins.eval = lambda source, *args: evaluated.append(str(source)) or original(source, *args)\n"
        "math_verify.parser.parse_expr = lambda *args, **kwargs: exit('read as Python')\n"
        f"print(json.dumps([[compare_here('4', text) for text in {texts}], evaluated]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdicts, evaluated = json.loads(done.stdout)
    assert verdicts[:6] == ["different", "equal", "different", "different", "unreadable", "equal"]
    assert verdicts[-1] == "unreadable"  # and not 2, the part that the other reader would find
    assert len(evaluated) > 5
    assert [source for source in evaluated if not re.fullmatch(r"(Integer|Float) \('?[\d.]+'? \)|E ", source)] == []
    assert not mark.exists()


# Rows


def words(seed: object, count: int = 8) -> str:
    """Made words that no two seeds share: no near duplicates by chance."""
    digest = hashlib.sha256(str(seed).encode()).hexdigest() * 2
    return " ".join(digest[5 * index : 5 * index + 5] for index in range(count))


def dapo(number: int, problem: str | None = None, answer: str | None = None, **changes: Any) -> dict[str, Any]:
    problem = f"Find {words(number)}." if problem is None else problem
    framed = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        f"$Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": framed, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(number) if answer is None else answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"i{number}"},
    } | changes


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def small(path: Path | str, **arguments: Any) -> MathDataModule:
    return MathDataModule(str(path), **({"num_val": 2, "num_test": 3} | arguments))


def items(data: MathDataModule) -> dict[str, str]:
    return {example.prompt[-1]["content"]: example.answer for split in SPLITS for example in data.examples(split)}


def ids(data: MathDataModule) -> list[list[str]]:
    return [[example.id for example in data.examples(split)] for split in SPLITS]


ROWS = [dapo(number) for number in range(12)]


def test_the_prompt_asks_for_a_tag_and_no_longer_for_a_line(tmp_path: Path) -> None:
    data = small(write_lines(tmp_path / "train.jsonl", ROWS))
    example = data.examples("train")[0]
    number = int(example.answer)
    assert example.prompt[-1]["content"] == (
        f"Find {words(number)}.\n\nReason step by step. At the end give the final answer alone between answer tags, in "
        "this form: <answer>final answer</answer>"
    )
    assert example.privileged_context == load_context("mathematics_experience")
    assert (example.source, example.group, example.meta) == ("mathematics", "", {"data_source": "math_dapo"})
    assert data.grade(example, f"<answer>{number}.0</answer>").correct
    assert [len(data.examples(split)) for split in SPLITS] == [7, 2, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda number: {"question": f"Find {words(number)}.", "answer": number},
        lambda number: {"problem": f" Find {words(number)}.\n", "answer": f"${number}$"},
        lambda number: {"prompt": f"Find {words(number)}.", "answer": f"{number}"},
        lambda number: {"prompt": [{"role": "user", "content": f"Find {words(number)}."}], "answer": float(number)},
        lambda number: {"prompt": f"Find {words(number)}.", "reward_model": {"ground_truth": f"{number}"}},
    ],
)
def test_plain_forms_hold_the_same_items(make: Callable[[int], dict[str, Any]], tmp_path: Path) -> None:
    plain = small(write_lines(tmp_path / "plain.jsonl", [make(number) for number in range(12)]))
    framed = small(write_lines(tmp_path / "train.jsonl", ROWS))
    assert ids(plain) == ids(framed)
    for content, answer in items(framed).items():
        assert compare(answer, items(plain)[content]) == "equal"


def test_numbers_as_answers_are_written_out(tmp_path: Path) -> None:
    """5e-05 would be read as 5 times e, less 5."""
    answers = {0.00005: "0.00005", 1e16: "10000000000000000", -2.5: "-2.5", 7: "7", 10**18 + 1: "1000000000000000001"}
    rows = [{"problem": f"Find {words(written)}.", "answer": answer} for answer, written in answers.items()]
    data = small(write_lines(tmp_path / "rows.jsonl", [*rows, *ROWS]))
    found = {example.answer: example for split in SPLITS for example in data.examples(split)}
    for written in answers.values():
        assert data.grade(found[written], f"<answer>{written}</answer>").correct
    assert data.grade(found["0.00005"], r"<answer>5 \times 10^{-5}</answer>").correct
    with pytest.raises(ValueError, match="answer is no finite number"):
        small(write_lines(tmp_path / "nan.jsonl", [*ROWS, {"problem": "Find it.", "answer": float("nan")}])).setup()


def test_parquet_and_saved_folders_hold_the_same_items(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list(list(reversed(ROWS)))
    table.to_parquet(tmp_path / "dapo-math-17k.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    expected = ids(small(write_lines(tmp_path / "rows.jsonl", ROWS)))
    for path in (tmp_path / "dapo-math-17k.parquet", tmp_path, tmp_path / "saved"):
        assert ids(small(path)) == expected


def test_repeats_count_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    rows = [*ROWS, *ROWS, dapo(3, answer=" 3."), dapo(5, answer="55")]
    data = small(write_lines(tmp_path / "train.jsonl", rows))
    assert sorted(items(data).values(), key=int) == [str(number) for number in range(12) if number != 5]
    assert "11 problems; 13 repeated rows and 1 problems with two answers left out" in data.summary()


def test_near_duplicates_are_trained_on(tmp_path: Path) -> None:
    rows = [*ROWS, dapo(0, problem=f"find {words(0)} !", answer="99")]
    for split_seed in range(4):
        data = small(write_lines(tmp_path / "train.jsonl", rows), split_seed=split_seed, num_val=5, num_test=6)
        assert sorted(example.answer for example in data.examples("train")) == ["0", "99"]
    assert "2 with a near duplicate, all in train" in data.summary()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (dapo(50, prompt=[]), "prompt is not one user turn"),
        (dapo(50, prompt=[{"role": "system", "content": "x"}]), "prompt is not one user turn"),
        (dapo(50, prompt=["x"]), "prompt is not one user turn"),
        (dapo(50, prompt=[{"role": "user", "content": " "}]), "empty prompt"),
        (dapo(50, prompt=[{"role": "user"}]), "no prompt"),
        (dapo(50, prompt=None), "no prompt"),
        (dapo(50, problem=" "), "empty problem"),
        (dapo(50, reward_model={}), "no answer"),
        (dapo(50, reward_model=None), "no answer"),
        ({"question": "What?", "answer": " "}, "empty answer"),
        ({"question": "What?", "answer": True}, "answer is no text"),
        ({"question": 5, "answer": "5"}, "question is no text"),
        ({"question": "What?", "answer": "She has 3 + 4.\n#### 7"}, "answer is more than one short line"),
        ({"question": "What?", "answer": "1" * 401}, "answer is more than one short line"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    path = write_lines(tmp_path / "train.jsonl", [*ROWS, row])
    with pytest.raises(ValueError, match=f"(?s)1 of 13 rows are bad .*{path}:13: {reason}"):
        small(path).setup()
    with pytest.warns(UserWarning, match=reason):
        assert len(items(small(path, max_bad_share=0.1))) == 12


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", FileNotFoundError, r"none of train\.jsonl is in .*; it holds nothing"),
        ("absent.jsonl", FileNotFoundError, "there is no such file or folder"),
        ("empty.jsonl", ValueError, r"empty\.jsonl: no rows"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    if name == "empty.jsonl":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(error, match=message):
        small(tmp_path / name).setup()


def test_a_missing_library_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", {"math_verify": None}.get)
    with pytest.raises(ImportError, match=r"pip install 'context-returns\[mathematics\]'"):
        small("nowhere").setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_val": 0}, "num_val=0 must be an integer of at least 1"),
        ({"num_test": 0}, "num_test=0 must be an integer of at least 1"),
        ({"split_seed": -1}, "split_seed=-1 must be"),
        ({"max_bad_share": -0.1}, r"max_bad_share=-0\.1 must be between 0 and 1"),
    ],
)
def test_arguments_are_checked_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("nowhere", **arguments)


def test_lenient_grading_is_asked_for(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", ROWS)
    for lenient, reason in ((False, "no_answer"), (True, "correct")):
        data = small(path, lenient_grading=lenient, context=None)
        example = data.examples("val")[0]
        assert example.privileged_context is None
        assert data.grade(example, f"so \\boxed{{{example.answer}}}").reason == reason
