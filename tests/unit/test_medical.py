"""Medical questions: every format, what cop counts from, splits that leak nothing, grading, and bad rows by name."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import MedicalDataModule, TransferSets, load_context
from datamodules.base import Split
from datamodules.duplicates import normalise_text
from datamodules.medical_formats import MMLU_MEDICAL_SUBJECTS, read_medmcqa, read_medqa, read_mmlu, read_pubmedqa
from datamodules.rows import RowAudit
from datamodules.sampling import hold_out_singles

DEV = Path("/work/shared/data/medmcqa/dev.json")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
real_data = pytest.mark.skipif(not DEV.is_file(), reason=f"{DEV} is not here")


def words(seed: object, count: int = 8) -> str:
    """Made words that no two seeds share: no near duplicates by chance."""
    digest = hashlib.sha256(str(seed).encode()).hexdigest() * 2
    return " ".join(digest[5 * index : 5 * index + 5] for index in range(count))


def row(number: int, **changes: Any) -> dict[str, Any]:
    options = {name: f"option {name[-1]}{number}" for name in ("opa", "opb", "opc", "opd")}
    return {
        "question": f"What is {words(number)}?",
        "exp": None,
        "cop": 1 + number % 4,
        **options,
        "subject_name": ("Surgery", "ENT")[number % 2],
        "topic_name": None,
        "id": f"id-{number:03d}",
        "choice_type": ("single", "multi")[number % 2],
    } | changes


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def small(path: Path | str, **arguments: Any) -> MedicalDataModule:
    return MedicalDataModule(str(path), **({"num_val": 3, "num_test": 4} | arguments))


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "dev.json", [row(number) for number in range(40)])


def fingerprint(data: MedicalDataModule) -> str:
    ids = [[example.id for example in data.examples(split)] for split in SPLITS]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def ids(data: MedicalDataModule, split: Split) -> list[str]:
    return [example.id for example in data.examples(split)]


# The real validation split


@pytest.fixture(scope="module")
def medmcqa() -> MedicalDataModule:
    return MedicalDataModule(str(DEV))


@real_data
def test_the_real_split_is_read_whole_and_split_as_documented(medmcqa: MedicalDataModule) -> None:
    assert [len(medmcqa.examples(split)) for split in SPLITS] == [3183, 500, 500]
    assert medmcqa.row_audit is not None
    assert (medmcqa.row_audit.num_rows, medmcqa.row_audit.problems) == (4183, [])
    documented = (Path(__file__).parents[2] / "docs" / "medical.md").read_text("utf-8")
    assert medmcqa.summary() in documented


@real_data
def test_a_constant_answer_scores_as_the_label_says(medmcqa: MedicalDataModule) -> None:
    examples = [example for split in SPLITS for example in medmcqa.examples(split)]
    scores = {
        letter: sum(medmcqa.grade(example, f"<answer>{letter}</answer>").correct for example in examples)
        for letter in "ABCD"
    }
    assert scores == {"A": 1348, "B": 1085, "C": 925, "D": 825}  # 32.2 % for A
    # Read as counting from 0, the same rows would have a fifth option.
    with pytest.raises(ValueError, match="cop is none of 0 to 3: 825"):
        MedicalDataModule(str(DEV), cop_base=0).setup()


@real_data
def test_no_question_is_in_two_splits(medmcqa: MedicalDataModule) -> None:
    questions = {
        split: [normalise_text(example.prompt[-1]["content"].split("\n\n")[0]) for example in medmcqa.examples(split)]
        for split in SPLITS
    }
    for split in ("val", "test"):
        assert len(set(questions[split])) == 500
        assert not set(questions[split]) & set(questions["train"])
    assert not set(questions["val"]) & set(questions["test"])
    assert len(questions["train"]) - len(set(questions["train"])) >= 20  # the duplicates are there, and kept


@real_data
def test_the_splits_are_those_of_earlier_versions(medmcqa: MedicalDataModule) -> None:
    # Reported numbers rest on them.
    assert fingerprint(medmcqa) == "5a9abd232079aec7"
    assert fingerprint(MedicalDataModule(str(DEV.parent), seed=3, context=None)) == "5a9abd232079aec7"
    assert fingerprint(MedicalDataModule(str(DEV), split_seed=1)) != "5a9abd232079aec7"


@real_data
def test_no_prompt_answers_itself(medmcqa: MedicalDataModule) -> None:
    for example in medmcqa.examples("test"):
        assert medmcqa.grade(example, example.prompt[-1]["content"]).reason == "several_answers"
        assert medmcqa.grade(example, f"<answer>{example.answer}</answer>").correct


# MedMCQA's format


def test_the_prompt_the_answer_and_what_is_kept(tmp_path: Path) -> None:
    options = {"opa": "Nodes ", "opb": "Axons", "opc": "{x}", "opd": "All of the above"}
    rows = [row(0, question=" Where?\n", cop=4, topic_name="Nerves", **options)]
    data = small(write_lines(tmp_path / "dev.json", rows + [row(n) for n in range(1, 9)]))
    example = next(example for split in SPLITS for example in data.examples(split) if example.id == "medmcqa:id-000")
    assert example.prompt[-1]["content"] == (
        "Where?\n\nA. Nodes\nB. Axons\nC. {x}\nD. All of the above\n\nWhich option is right? End your reply with "
        "<answer>A</answer>, <answer>B</answer>, <answer>C</answer> or <answer>D</answer>."
    )
    assert len(example.prompt) == 1
    assert (example.answer, example.source, example.group) == ("D", "medmcqa", "")
    assert example.privileged_context == load_context("medical_system_prompt")
    assert example.meta == {"subject": "Surgery", "topic": "Nerves", "choice_type": "single", "choices": "A B C D"}


@pytest.mark.parametrize(
    ("cops", "base", "answers"),
    [([1, 4, 2], 1, "ADB"), ([0, 3, 2], 0, "ADC"), ([4], 1, "D"), ([0], 0, "A")],
)
def test_what_cop_counts_from_is_read_off_the_data(tmp_path: Path, cops: list[int], base: int, answers: str) -> None:
    path = write_lines(tmp_path / "dev.json", [row(number, cop=cop) for number, cop in enumerate(cops)])
    questions, found = read_medmcqa(str(path), RowAudit(), "auto")
    assert (found, "".join(question.answer for question in questions)) == (base, answers)


@pytest.mark.parametrize(("cops", "which"), [([1, 2, 3], "neither"), ([0, 1, 4], "both"), ([-1, -1], "neither")])
def test_what_the_data_do_not_say_must_be_set(tmp_path: Path, cops: list[int], which: str) -> None:
    path = write_lines(tmp_path / "dev.json", [row(number, cop=cop) for number, cop in enumerate(cops)])
    with pytest.raises(ValueError, match=rf"cop has the values .*, and {which} occur; set cop_base to 0 .* or 1"):
        read_medmcqa(str(path), RowAudit(), "auto")
    read_medmcqa(str(path), RowAudit(), 1)


def test_the_base_set_is_the_base_used(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "dev.json", [row(number, cop=2) for number in range(3)]))
    for base, answer in ((0, "C"), (1, "B")):
        questions, used = read_medmcqa(path, RowAudit(), 0 if base == 0 else 1)
        assert (used, {question.answer for question in questions}) == (base, {answer})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cop": 5}, "cop is none of 1 to 4"),
        ({"cop": 0}, "cop is none of 1 to 4"),
        ({"cop": None}, "cop is none of 1 to 4"),
        ({"cop": "1"}, "cop is none of 1 to 4"),
        ({"cop": True}, "cop is none of 1 to 4"),
        ({"cop": 1.0}, "cop is none of 1 to 4"),
        ({"ope": "a fifth"}, "more than four options"),
        ({"question": "  "}, "empty question"),
        ({"question": None}, "no question"),
        ({"opd": None}, "no opd"),
        ({"opb": ""}, "empty opb"),
        ({"opa": 5}, "opa is no text"),
        ({"id": None}, "no id"),
        ({"id": "id-001"}, "id of an earlier row"),
        ({"subject_name": None}, "no subject_name"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    rows = [*(row(number) for number in range(1, 20)), row(20, **changes)]
    path = write_lines(tmp_path / "dev.json", rows)
    with pytest.raises(ValueError, match=f"1 of 20 rows are bad .{reason}: 1.:\n  {path}:20: {reason}"):
        small(path, cop_base=1).setup()
    data = small(path, cop_base=1, max_bad_share=0.05)
    with pytest.warns(UserWarning, match=reason):
        data.setup()
    assert sum(len(data.examples(split)) for split in SPLITS) == 19


@pytest.mark.parametrize("changes", [{"ope": None}, {"ope": " "}, {"topic_name": 3}, {"choice_type": None}])
def test_what_is_not_needed_may_be_missing(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "dev.json", [row(3, **changes)])
    assert len(read_medmcqa(str(path), RowAudit(), "auto")[0]) == 1


def test_half_a_line_is_named(dev: Path) -> None:
    dev.write_text(dev.read_text()[:-20])
    with pytest.raises(ValueError, match=rf"{dev}:40: not a whole JSON line"):
        small(dev).setup()


def test_the_hubs_columns_count_from_0(tmp_path: Path) -> None:
    import datasets

    rows = [row(number, cop=number % 4) for number in range(20)]
    datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows[:1]), validation=datasets.Dataset.from_list(rows)
    ).save_to_disk(str(tmp_path / "hub"))
    data = small(tmp_path / "hub")
    assert {e.id: e.answer for split in SPLITS for e in data.examples(split)} == {
        f"medmcqa:id-{number:03d}": "ABCD"[number % 4] for number in range(20)
    }
    assert "cop counts from 0" in data.summary()


# Splits


def test_the_order_of_the_file_changes_nothing(dev: Path, tmp_path: Path) -> None:
    lines = dev.read_text().splitlines(keepends=True)
    (tmp_path / "reversed.json").write_text("".join(reversed(lines)))
    assert fingerprint(small(dev)) == fingerprint(small(tmp_path / "reversed.json"))
    assert [len(ids(small(dev), split)) for split in SPLITS] == [33, 3, 4]


def test_duplicates_are_trained_on(tmp_path: Path) -> None:
    rows = [row(number) for number in range(12)]
    copies = [row(20 + number, question=f"what is {words(number)} :-") for number in range(6)]
    for split_seed in range(5):
        data = small(write_lines(tmp_path / "dev.json", rows + copies), split_seed=split_seed, num_val=2, num_test=2)
        held_out = {*ids(data, "val"), *ids(data, "test")}
        assert held_out <= {f"medmcqa:id-{number:03d}" for number in range(6, 12)}
        assert len(ids(data, "train")) == 14
    assert "12 with a near duplicate, all in train" in data.summary()


def test_copies_by_question_and_options_together_are_duplicates_too(tmp_path: Path) -> None:
    long_options = {name: words(("option", name), 6) for name in ("opa", "opb", "opc", "opd")}
    copies = [row(20, question="Which of these?", **long_options), row(21, question="Choose.", **long_options)]
    path = write_lines(tmp_path / "dev.json", [row(number) for number in range(4)] + copies)
    data = small(path, num_val=2, num_test=2)
    assert {*ids(data, "train")} == {"medmcqa:id-020", "medmcqa:id-021"}


def test_subjects_are_kept_and_become_groups(dev: Path) -> None:
    data = small(dev, subjects=["ENT"])
    examples = [example for split in SPLITS for example in data.examples(split)]
    assert len(examples) == 20
    assert {(example.group, example.meta["subject"]) for example in examples} == {("ENT", "ENT")}
    with pytest.raises(ValueError, match=r"\['Ent'\] not in the data; there are Surgery \(20\), ENT \(20\)"):
        small(dev, subjects=["ENT", "Ent"]).setup()


def test_more_than_there_is_is_refused(dev: Path) -> None:
    with pytest.raises(
        ValueError, match=r"num_val=3 and num_test=40: 43 items asked for, 40 without a duplicate and 0"
    ):
        small(dev, num_test=40).setup()
    with pytest.raises(ValueError, match="at least one must be left for training"):
        small(dev, num_test=37).setup()


@given(
    lengths=st.lists(st.integers(1, 4), max_size=12),
    num_val=st.integers(1, 5),
    num_test=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_hold_out_is_exact_and_takes_singles_only(lengths: list[int], num_val: int, num_test: int, seed: int) -> None:
    numbers = iter(range(sum(lengths)))
    clusters = [[next(numbers) for _ in range(length)] for length in lengths]
    singles = {cluster[0] for cluster in clusters if len(cluster) == 1}
    rng = np.random.default_rng(seed)
    if num_val + num_test > len(singles) or num_val + num_test == sum(lengths):
        with pytest.raises(ValueError, match=f"num_val={num_val} and num_test={num_test}"):
            hold_out_singles(clusters, num_val, num_test, rng)
        return
    train, val, test = hold_out_singles(clusters, num_val, num_test, rng)
    assert (len(val), len(test)) == (num_val, num_test)
    assert sorted([*train, *val, *test]) == list(range(sum(lengths)))
    assert {*val, *test} <= singles


# Where there is nothing to read


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", FileNotFoundError, r"none of dev\.json is in .*; it holds nothing"),
        ("absent.json", FileNotFoundError, "there is no such file or folder"),
        ("empty.json", ValueError, r"empty\.json: no rows\. Is the path right"),
        ("medqa.json", ValueError, r"2 of 2 rows are bad .*\nNo row is good: is this the format"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    if name == "empty.json":
        (tmp_path / name).write_bytes(b"")
    if name == "medqa.json":
        write_lines(tmp_path / name, [medqa(1), medqa(2)])
    with pytest.raises(error, match=f"(?s){message}"):
        small(tmp_path / name).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_val": 0}, "num_val=0 must be an integer of at least 1"),
        ({"num_test": 0}, "num_test=0 must be an integer of at least 1"),
        ({"split_seed": -1}, "split_seed=-1 must be"),
        ({"subjects": []}, r"subjects=\[\] keeps nothing"),
        ({"transfer": TransferSets()}, "transfer names no set"),
        ({"cop_base": 2}, "cop_base=2 must be auto, 0 or 1"),
        ({"max_bad_share": 2.0}, r"max_bad_share=2\.0 must be between 0 and 1"),
    ],
)
def test_arguments_are_checked_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("nowhere", **arguments)


# Transfer sets


def medqa(number: int, num_options: int = 5, **changes: Any) -> dict[str, Any]:
    options = {letter: f"drug {letter}{number}" for letter in "ABCDEF"[:num_options]}
    answer = "ABCD"[number % 4]
    question = f"A {number}-year-old man has {words(('medqa', number))}. Which drug?"
    return {
        "question": question, "answer": options[answer], "options": options, "meta_info": "step1", "answer_idx": answer,
    } | changes  # fmt: skip


def pubmedqa(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "QUESTION": f"Is {words(('pubmed', number))} useful?",
        "CONTEXTS": [f"We studied {number}. ", "It was so."],
        "LABELS": ["AIM", "RESULTS"],
        "LONG_ANSWER": "It was.",
        "final_decision": ("yes", "no", "maybe")[number % 3],
    } | changes


def write_transfer(folder: Path) -> TransferSets:
    write_lines(folder / "test.jsonl", [medqa(0), medqa(1, num_options=4)])
    (folder / "ori_pqal.json").write_text(json.dumps({str(2000 + n): pubmedqa(n) for n in range(3)}))
    for subject in MMLU_MEDICAL_SUBJECTS:
        lines = [
            f'"What, in {subject}, is {words((subject, n))}?",one,"two, or more",three,four,{"ABCD"[n]}' for n in (1, 2)
        ]
        (folder / f"{subject}_test.csv").write_text("\n".join(lines) + "\n")
    return TransferSets(medqa=str(folder), pubmedqa=str(folder / "ori_pqal.json"), mmlu=str(folder))


def test_transfer_sets_are_the_test_split_and_leave_the_others_as_they_are(dev: Path, tmp_path: Path) -> None:
    data = small(dev, transfer=write_transfer(tmp_path))
    assert Counter(example.group for example in data.examples("test")) == {"medqa": 2, "pubmedqa": 3, "mmlu": 12}
    assert all(example.group == example.source for example in data.examples("test"))
    for split in ("train", "val"):
        assert ids(data, split) == ids(small(dev), split)
    assert "0 transfer questions left out" in data.summary()
    assert set(data.licences) >= {example.source for split in SPLITS for example in data.examples(split)}


def test_every_set_is_asked_and_graded_in_its_own_choices(dev: Path, tmp_path: Path) -> None:
    data = small(dev, transfer=write_transfer(tmp_path))
    by_id = {example.id: example for example in data.examples("test")}
    five, four = by_id["medqa:1"], by_id["medqa:2"]
    assert five.prompt[-1]["content"].endswith(
        "E. drug E0\n\nWhich option is right? End your reply with <answer>A</answer>, <answer>B</answer>, "
        "<answer>C</answer>, <answer>D</answer> or <answer>E</answer>."
    )
    assert data.grade(five, "<answer>E</answer>").reason == "wrong"
    assert data.grade(four, "<answer>E</answer>").reason == "not_a_choice"
    assert (five.answer, four.answer, five.meta["topic"]) == ("A", "B", "step1")
    abstract = by_id["pubmedqa:2002"]
    assert abstract.prompt[-1]["content"] == (
        "We studied 2.\n\nIt was so.\n\nWhat does this abstract let one conclude?\n"
        f"Is {words(('pubmed', 2))} useful?\n\n"
        "End your reply with <answer>yes</answer>, <answer>no</answer> or <answer>maybe</answer>."
    )
    assert data.grade(abstract, "It may. <answer>Maybe.</answer>").reason == "correct"
    assert data.grade(abstract, "<answer>A</answer>").reason == "not_a_choice"
    anatomy = by_id["mmlu:anatomy:2"]
    assert "B. two, or more\n" in anatomy.prompt[-1]["content"]
    assert (anatomy.answer, anatomy.meta["subject"]) == ("C", "anatomy")


def test_questions_that_medmcqa_holds_too_are_left_out(dev: Path, tmp_path: Path) -> None:
    copies = [medqa(0), medqa(1, question=f"what is {words(7)}"), medqa(2)]
    path = write_lines(tmp_path / "test.jsonl", copies)
    data = small(dev, transfer=TransferSets(medqa=str(path)))
    assert ids(data, "test") == ["medqa:1", "medqa:3"]
    assert "1 transfer questions left out, for MedMCQA holds them too" in data.summary()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer_idx": "F"}, "answer_idx is no option"),
        ({"answer_idx": None}, "answer_idx is no option"),
        ({"answer": "drug B9"}, "answer is not the option of answer_idx"),
        ({"options": {"A": "x", "C": "y"}}, "options are not A, B and so on up to E"),
        ({"options": ["x", "y"]}, "options are not A, B and so on up to E"),
        ({"options": dict.fromkeys("ABCDEF", "x")}, "options are not A, B and so on up to E"),
        ({"options": {"A": "x", "B": " "}}, "empty B"),
        ({"question": ""}, "empty question"),
    ],
)
def test_bad_rows_of_medqa(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = write_lines(tmp_path / "test.jsonl", [medqa(4), medqa(8, **changes)])
    audit = RowAudit()
    assert len(read_medqa(str(tmp_path), audit)) == 1
    assert audit.problems == [(path, 2, reason)]


def test_options_that_a_table_fills_with_null_are_no_options(tmp_path: Path) -> None:
    # In parquet every row has the columns of all: four options come as five, the last of them null.
    row_of_four = medqa(4, num_options=4)
    row_of_four["options"]["E"] = None
    write_lines(tmp_path / "test.jsonl", [row_of_four])
    (question,) = read_medqa(str(tmp_path), RowAudit())
    assert question.choices == ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (pubmedqa(1, final_decision="Yes"), "final_decision is none of yes, no, maybe"),
        (pubmedqa(1, CONTEXTS=[]), "CONTEXTS is no list of texts"),
        (pubmedqa(1, CONTEXTS="text"), "CONTEXTS is no list of texts"),
        (pubmedqa(1, QUESTION=None), "no QUESTION"),
        ("text", "CONTEXTS is no list of texts"),
    ],
)
def test_bad_entries_of_pubmedqa_are_named_by_their_number(tmp_path: Path, entry: Any, reason: str) -> None:
    path = tmp_path / "ori_pqal.json"
    path.write_text(json.dumps({"1001": pubmedqa(0), "1002": entry}))
    audit = RowAudit()
    assert len(read_pubmedqa(str(path), audit)) == 1
    assert audit.problems == [(path, "1002", reason)]
    assert audit.num_rows == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n"1": {', r"ori_pqal\.json:2: not whole JSON"),
        (b"[]", "must hold one JSON object"),
        (b'{"1": "\xe9"}', r"ori_pqal\.json is not UTF-8"),
    ],
)
def test_a_broken_pubmedqa_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ori_pqal.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pubmedqa(str(path), RowAudit())
    with pytest.raises(FileNotFoundError, match=r"pubmedqa='.*' is no file; give ori_pqal\.json"):
        read_pubmedqa(str(tmp_path), RowAudit())


def test_bad_rows_of_mmlu_and_missing_subjects(tmp_path: Path) -> None:
    path = tmp_path / "virology_test.csv"
    path.write_text("q one,a,b,c,d,A\nq two,a,b,c,d,E\nq three,a,b,c,D\n,a,b,c,d,A\n")
    audit = RowAudit()
    (question,) = read_mmlu(str(path), audit)
    assert (question.id, question.subject) == ("mmlu:virology:1", "virology")
    assert audit.problems == [
        (path, 2, "answer is none of A to D"),
        (path, 3, "another number of fields than 6"),
        (path, 4, "empty question"),
    ]
    with pytest.raises(FileNotFoundError, match=r"\['anatomy_test\.csv', .* missing; give a folder with all"):
        read_mmlu(str(tmp_path), RowAudit())


# Grading


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("<answer>B</answer>", "correct", "correct"),
        ("It is B. <answer>b. Axons</answer>", "correct", "correct"),
        ("<answer>A</answer>", "wrong", "wrong"),
        ("The answer is B", "no_answer", "no_answer"),
        ("Bad", "no_answer", "no_answer"),
        ("<answer>B", "no_answer", "correct"),
        ("<answer>A</answer> <answer>B</answer>", "several_answers", "correct"),
    ],
)
def test_grading_is_that_of_tagged_answers(dev: Path, completion: str, strict: str, lenient: str) -> None:
    for lenient_grading, verdict in ((False, strict), (True, lenient)):
        data = small(dev, lenient_grading=lenient_grading)
        example = next(example for example in data.examples("train") if example.answer == "B")
        assert data.grade(example, completion).reason == verdict


def test_a_run_without_a_context_has_the_same_items(dev: Path) -> None:
    data = small(dev, context=None)
    assert data.examples("val")[0].privileged_context is None
    assert fingerprint(data) == fingerprint(small(dev))
