"""Texts with labels: the sources' files, the splits that leak nothing, grading, and bad rows by name."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import ClassificationDataModule, Example, TextSource, safety_mix
from datamodules.base import Split
from datamodules.duplicates import JACCARD_THRESHOLD, jaccard, near_duplicate_clusters, normalise_text
from datamodules.rows import RowAudit
from datamodules.sampling import Kind, draw_whole_clusters, proportional_shares
from datamodules.text_sources import read_source

DATA = Path("/work/shared/data")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
real_data = pytest.mark.skipif(not (DATA / "hatecheck").is_dir(), reason=f"the real data are not in {DATA}")

SAFETY_MIX = safety_mix(
    str(DATA / "tweeteval_offensive"),
    str(DATA / "hatecheck/test_suite_cases.csv"),
    str(DATA / "ethos/Ethos_Dataset_Binary.csv"),
)
TWEETEVAL, HATECHECK, ETHOS = SAFETY_MIX


def text_of(example: Example) -> str:
    return example.prompt[-1]["content"].split(": ", 1)[1].rsplit("\n\n", 1)[0]


def all_items(data: ClassificationDataModule) -> list[tuple[Split, Example]]:
    return [(split, example) for split in SPLITS for example in data.examples(split)]


def write_table(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> TextSource:
    path.write_text("\n".join([header, *(f'"{text}",{label}' for text, label in rows)]) + "\n")
    return TextSource("table", str(path), label_map={"1": "yes", "0": "no"})


ANIMALS = ["cat", "dog", "cow", "pig", "hen", "owl", "fox", "bat", "elk", "emu"]
ROWS = [(f"{first} chases {second} number {i}{j}", str(i % 2)) for i, first in enumerate(ANIMALS)
        for j, second in enumerate(reversed(ANIMALS))]  # fmt: skip


# The real files


@pytest.fixture(scope="module")
def safety() -> ClassificationDataModule:
    return ClassificationDataModule(SAFETY_MIX)


@real_data
@pytest.mark.parametrize(
    ("source", "counts"),
    [(TWEETEVAL, {"no": 9460, "yes": 4640}), (HATECHECK, {"yes": 2563, "no": 1165}), (ETHOS, {"no": 565, "yes": 433})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_all_rows_of_the_real_files_are_read(source: TextSource, counts: dict[str, int]) -> None:
    audit = RowAudit()
    rows = read_source(source, audit).rows
    audit.finish()
    assert Counter(row.answer for row in rows) == counts
    if source is TWEETEVAL:
        assert Counter(row.meta["file"] for row in rows) == {"train": 11_916, "val": 1_324, "test": 860}
    if source is HATECHECK:
        assert round(counts["yes"] / len(rows), 2) == 0.69


@real_data
def test_safety_mix_has_the_sizes_of_the_paper(safety: ClassificationDataModule) -> None:
    assert [len(safety.examples(split)) for split in SPLITS] == [17_826, 500, 500]
    for split in ("val", "test"):
        assert Counter(e.group for e in safety.examples(split)) == {"tweeteval": 374, "hatecheck": 99, "ethos": 27}
        hateful = Counter(e.group for e in safety.examples(split) if e.answer == "yes")
        # Of all: 33, 69 and 43 %. HateCheck's hateful templates have seven cases each, and nine times seven fit.
        assert hateful == {"tweeteval": 123, "hatecheck": 63, "ethos": 12}
    assert len({example.id for _, example in all_items(safety)}) == 18_826


@real_data
def test_no_template_and_no_near_duplicate_is_in_two_splits(safety: ClassificationDataModule) -> None:
    items = all_items(safety)
    splits_of: dict[object, set[Split]] = {}
    for split, example in items:
        if example.source == "hatecheck":
            splits_of.setdefault(example.meta["template"], set()).add(split)
    assert len(splits_of) == 845
    assert {len(splits) for splits in splits_of.values()} == {1}
    mould_of = {row.id: row.template for row in read_source(HATECHECK, RowAudit()).rows}
    moulds = {split: {mould_of[e.id] for e in safety.examples(split) if e.source == "hatecheck"} for split in SPLITS}
    assert len(set(mould_of.values())) == 749  # 845 templates, some of them spelling variants of others
    assert sum(map(len, moulds.values())) == 749
    for cluster in near_duplicate_clusters([text_of(example) for _, example in items]):
        assert len({items[index][0] for index in cluster}) == 1


@real_data
def test_no_near_duplicate_by_brute_force(safety: ClassificationDataModule) -> None:
    train = [normalise_text(text_of(example)) for example in safety.examples("train")]
    for example in safety.examples("test")[:5]:
        text = normalise_text(text_of(example))
        assert max(jaccard(text, other) for other in train) < JACCARD_THRESHOLD


@real_data
def test_splits_are_deterministic_and_prefixes_representative(safety: ClassificationDataModule) -> None:
    again = ClassificationDataModule(SAFETY_MIX, seed=5)
    other = ClassificationDataModule(SAFETY_MIX, split_seed=1)
    ids = [[example.id for example in data.examples("test")] for data in (safety, again, other)]
    assert ids[0] == ids[1]
    # Reported numbers rest on these items.
    assert hashlib.sha256(json.dumps(ids[0]).encode()).hexdigest()[:16] == "02914a5cf91a28e2"
    assert len(set(ids[0]) & set(ids[2])) < 100
    whole, prefix = (Counter((e.source, e.answer) for e in safety.examples("test")[:n]) for n in (500, 100))
    assert all(abs(prefix[kind] - whole[kind] / 5) <= 2 for kind in whole)


@real_data
def test_questions_and_answers_are_for_the_source(safety: ClassificationDataModule) -> None:
    wording = {e.source: e.prompt[-1]["content"].split("\n", 1)[0] for e in safety.examples("val")}
    assert "offensive" in wording["tweeteval"]
    assert wording["hatecheck"] == wording["ethos"] != wording["tweeteval"]
    example = next(e for e in safety.examples("val") if e.answer == "yes")
    assert safety.grade(example, "It insults. <answer>Yes.</answer>").reason == "correct"
    assert safety.grade(example, "<answer>no</answer>").reason == "wrong"
    assert safety.grade(example, "yes").reason == "no_answer"
    assert safety.grade(example, "<answer>yes</answer> or <answer>no</answer>").reason == "several_answers"


# Small made data


def test_a_table_with_templates(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [f"I like {b} the {a},{int(b < 'h')},{a}" for a in ANIMALS for b in ANIMALS]
    path.write_text("\n".join(["words,class,mould", *lines]))
    source = TextSource(
        "table", str(path), text_column="words", label_column="class", template_column="mould",
        label_map={"0": "late", "1": "early"}, question="Early or late? {text} ({answers})", licence="made up",
    )  # fmt: skip
    data = ClassificationDataModule([source], context=None, num_val=20, num_test=20)
    with pytest.raises(ValueError, match="num_test=20: 20 items are missing, for clusters"):
        data.setup()  # ten of a mould are more than a tenth of twenty
    path.write_text("\n".join(["words,class,mould", *(f"{line}{i // 2}" for i, line in enumerate(lines))]))
    items = all_items(data)
    assert Counter(split for split, _ in items) == {"train": 60, "val": 20, "test": 20}
    assert items[0][1].prompt[-1]["content"].endswith("(<answer>late</answer> or <answer>early</answer>)")
    assert data.licences == {"table": "made up"}


def test_json_lines_and_a_table_mix(tmp_path: Path) -> None:
    json_path = tmp_path / "j.jsonl"
    json_path.write_text("\n".join(json.dumps({"text": f"{t} {{answers}}", "label": int(n)}) for t, n in ROWS))
    sources = [
        write_table(tmp_path / "t.csv", ROWS),
        TextSource("json_lines", str(json_path), name="more", label_map={"1": "yes", "0": "no"}),
    ]
    data = ClassificationDataModule(sources, num_val=20, num_test=20)
    texts = {split: {normalise_text(text_of(e)).removesuffix(" answers") for e in data.examples(split)}
             for split in SPLITS}  # fmt: skip
    assert not texts["test"] & texts["train"]
    assert not texts["test"] & texts["val"]
    question = next(e for _, e in all_items(data) if e.source == "more").prompt[-1]["content"]
    assert "{answers}\n\nEnd your reply with <answer>yes</answer> or <answer>no</answer>." in question


def write_tweeteval(folder: Path, mapping: str, num_labels: int) -> None:
    folder.mkdir()
    (folder / "mapping.txt").write_text(mapping, "utf-8")
    for split in ("train", "val", "test"):
        (folder / f"{split}_text.txt").write_text("\n".join(text for text, _ in ROWS[:20]) + "\n")
        (folder / f"{split}_labels.txt").write_text("\n".join(str(i % num_labels) for i in range(20)) + "\n")


@pytest.mark.parametrize(
    ("mapping", "answers"),
    [
        ("0\tanger\n1\tjoy\n2\toptimism\n3\tsadness\n", ("anger", "joy", "optimism", "sadness")),
        ("0\t\N{HEAVY BLACK HEART}\t_red_heart_\n1\t\N{FIRE}\t_fire_\n", ("red_heart", "fire")),
        ("0\tnot-offensive\n1\toffensive\n", ("no", "yes")),
    ],
)
def test_any_tweeteval_task(tmp_path: Path, mapping: str, answers: tuple[str, ...]) -> None:
    write_tweeteval(tmp_path / "task", mapping, len(answers))
    read = read_source(TextSource("tweeteval", str(tmp_path / "task")), audit := RowAudit())
    audit.finish()
    assert read.answers == answers
    assert Counter(row.answer for row in read.rows) == dict.fromkeys(answers, 60 // len(answers))
    assert all(f"<answer>{answer}</answer>" in read.question for answer in answers)


def test_text_and_label_files_of_different_length_name_file_and_line(tmp_path: Path) -> None:
    write_tweeteval(tmp_path / "task", "0\tno\n1\tyes\n", 2)
    (tmp_path / "task/val_labels.txt").write_text("0\n1\n")
    with (tmp_path / "task/test_labels.txt").open("a") as file:
        file.write("1\n")
    data = ClassificationDataModule([TextSource("tweeteval", str(tmp_path / "task"))])
    with pytest.raises(ValueError, match=r"19 of 61 rows are bad") as caught:
        data.setup()
    assert "val_text.txt:3: text without a label in val_labels.txt" in str(caught.value)
    assert "label without a text in test_text.txt: 1" in str(caught.value)


def test_bad_rows_are_named_and_left_out_only_if_allowed(tmp_path: Path) -> None:
    source = write_table(tmp_path / "t.csv", [*ROWS[:50], (" ", "1"), ("good text", "2"), *ROWS[50:]])
    with pytest.raises(ValueError, match=r"t\.csv:52: empty text\n.*t\.csv:53: label outside the label map"):
        ClassificationDataModule([source]).setup()
    data = ClassificationDataModule([source], num_val=10, num_test=10, max_bad_share=0.02)
    with pytest.warns(UserWarning, match="2 of 102 rows are bad"):
        data.setup()
    assert len(all_items(data)) == 100
    assert data.row_audit is not None
    assert len(data.row_audit.problems) == 2


@pytest.mark.parametrize("score", ["2", "", "high", "nan"])
def test_ethos_scores_are_checked(tmp_path: Path, score: str) -> None:
    path = tmp_path / "e.csv"
    path.write_text(f"comment;isHate\ngood;0.5\nbad;{score}\nother;0.4999\n")
    read = read_source(TextSource("ethos", str(path)), audit := RowAudit())
    assert [row.answer for row in read.rows] == ["yes", "no"]
    assert audit.problems == [(path, 3, "isHate is no number between 0 and 1")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "csv"}, "format='csv' is none of tweeteval, hatecheck, ethos, table, json_lines"),
        ({"format": "table"}, "Source 'table': give label_map"),
        ({"format": "ethos", "question": "Well?"}, "Source 'ethos': question='Well\\?' must contain {text}"),
    ],
)
def test_faulty_sources_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSource(path="x", **arguments)  # type: ignore[arg-type]


def test_names_numbers_and_paths_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names \['ethos', 'ethos'\]; give at least one, and each a name"):
        ClassificationDataModule([ETHOS, ETHOS])
    with pytest.raises(ValueError, match="num_test=0 must be an integer of at least 1"):
        ClassificationDataModule([ETHOS], num_test=0)
    with pytest.raises(FileNotFoundError, match="Source 'ethos': path='nowhere' is no file"):
        ClassificationDataModule([TextSource("ethos", "nowhere")]).setup()
    source = write_table(tmp_path / "t.csv", ROWS, header="text,lable")
    with pytest.raises(ValueError, match=r"t\.csv has no column \['label'\]"):
        ClassificationDataModule([source]).setup()


# Drawing


def test_shares_by_largest_remainder() -> None:
    assert proportional_shares(10, {"a": 50, "b": 33, "c": 17}, "n") == {"a": 5, "b": 3, "c": 2}
    with pytest.raises(ValueError, match="n: 4 items asked for, 3 available"):
        proportional_shares(4, {"a": 3}, "n")


def test_whole_clusters_add_up_exactly() -> None:
    a, b = ("a",), ("b",)
    kinds = [a, a, a, a, b, b, b, b]
    clusters = [[0, 1, 2], [3, 4], [5], [6, 7]]
    taken, left = draw_whole_clusters(clusters, kinds, {a: 1, b: 2}, 3, "n")
    assert (taken, left) == ([[3, 4], [5]], [[0, 1, 2], [6, 7]])
    taken, _ = draw_whole_clusters([[0, 1], [5], [6]], kinds, {a: 1, b: 1}, 2, "n")
    assert taken == [[5], [6]]  # no cluster holds one a alone
    with pytest.raises(ValueError, match="n: 1 items are missing"):
        draw_whole_clusters([[0, 1], [2, 3]], kinds, {a: 3}, 2, "n")


def test_what_a_label_lacks_comes_from_its_source() -> None:
    kinds = [("x", "yes"), ("x", "yes"), ("y", "no"), ("x", "no"), ("y", "yes")]
    quotas = {("x", "yes"): 1, ("y", "yes"): 1}
    taken, _ = draw_whole_clusters([[0, 1], [2], [3], [4]], kinds, quotas, 2, "n")
    assert taken == [[3], [4]]


@given(
    st.lists(st.lists(st.sampled_from([("x", "yes"), ("x", "no"), ("y", "no")]), min_size=1, max_size=3), min_size=5)
)
def test_drawing_is_exact_or_refused(members: list[list[Kind]]) -> None:
    kinds = [kind for cluster in members for kind in cluster]
    starts = [0, *itertools.accumulate(map(len, members))]
    clusters = [list(range(start, end)) for start, end in itertools.pairwise(starts)]
    size = len(kinds) // 2
    quotas = proportional_shares(size, Counter(kinds), "n")
    try:
        taken, left = draw_whole_clusters(clusters, kinds, quotas, 3, "n")
    except ValueError as error:
        assert "items are missing" in str(error)  # noqa: PT017
        return
    assert sum(map(len, taken)) == size
    assert sorted([*taken, *left]) == clusters


def test_spelling_variants_stay_with_their_template(tmp_path: Path) -> None:
    path = tmp_path / "test_suite_cases.csv"
    cases = ["derog,1,A text,hateful,,1", "spell_leet_h,2,4 t3xt,hateful,1,2", "negate_nh,3,No text,non-hateful,1,3"]
    path.write_text("\n".join(["functionality,case_id,test_case,label_gold,ref_templ_id,templ_id", *cases]))
    rows = read_source(TextSource("hatecheck", str(path)), RowAudit()).rows
    assert [row.template for row in rows] == ["1", "1", "3"]
    assert [row.meta["template"] for row in rows] == ["1", "2", "3"]
