"""The verbs as they are: which pattern, which family, who is held out; and the grading of a word of no closed set."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import PastTenseDataModule, load_context
from datamodules.base import Split
from datamodules.grading import grade_new_word
from datamodules.verbs import Verb, families, load_verbs

SPLITS: tuple[Split, ...] = ("train", "val", "test")
QUESTION = 'What is the past tense of the verb "walk"?'


@pytest.fixture(scope="module")
def verbs() -> list[Verb]:
    return load_verbs()


@pytest.fixture(scope="module")
def data() -> PastTenseDataModule:
    return PastTenseDataModule()


@pytest.fixture(scope="module", params=[0, 1, 17])
def any_data(request: pytest.FixtureRequest, data: PastTenseDataModule) -> PastTenseDataModule:
    return PastTenseDataModule(split_seed=request.param) if request.param else data


def fingerprint(data: PastTenseDataModule) -> str:
    ids = [[example.id for example in data.examples(split)] for split in SPLITS]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


# Verbs


def test_verbs_follow_one_of_three_patterns(verbs: list[Verb]) -> None:
    assert Counter(verb.pattern for verb in verbs) == {"-ed": 2572, "-d": 1644, "-ied": 169}
    past_of = {verb.lemma: verb.past for verb in verbs}
    for lemma, past in [("walk", "walked"), ("bake", "baked"), ("cry", "cried"), ("play", "played")]:
        assert past_of[lemma] == past
    assert Verb("ski", "skied").pattern == "-ed"
    assert Verb("agree", "agreed").pattern == "-d"
    assert Verb("cry", "cried").pattern == "-ied"
    # irregular, doubled, unchanged, of two forms, of two letters
    for left_out in ("take", "stop", "put", "cancel", "go"):
        assert left_out not in past_of


def test_families_are_a_partition_that_joins_prefixes_and_spellings(verbs: list[Verb]) -> None:
    found = families(verbs)
    assert sorted(index for family in found for index in family) == list(range(len(verbs)))
    assert found == sorted(found)
    family_of = {verbs[index].lemma: number for number, family in enumerate(found) for index in family}
    for relatives in [("act", "react", "enact", "interact"), ("adjust", "readjust"), ("polarise", "polarize")]:
        assert len({family_of[lemma] for lemma in relatives}) == 1, relatives
    assert family_of["walk"] != family_of["talk"]


# Splits


def test_splits_are_exact_balanced_and_leak_no_family(any_data: PastTenseDataModule, verbs: list[Verb]) -> None:
    assert [len(any_data.examples(split)) for split in SPLITS] == [800, 240, 240]
    family_of = {verbs[index].lemma: number for number, family in enumerate(families(verbs)) for index in family}
    split_of: dict[int, str] = {}
    for split in SPLITS:
        counts = Counter(example.meta["pattern"] for example in any_data.examples(split))
        assert abs(counts["-ed"] - counts["-d"]) <= 1
        assert counts["-ied"] >= 35
        for example in any_data.examples(split):
            family = family_of[example.id.removeprefix("verb:")]
            assert split_of.setdefault(family, split) == split
    groups = {"-ed": "ends_in_ed", "-d": "ends_in_d", "-ied": "ends_in_ied"}
    assert all(example.group == groups[str(example.meta["pattern"])] for example in any_data.examples("val"))
    assert {example.group for example in any_data.examples("train")} == {""}


def test_any_prefix_is_a_small_copy_of_the_split(data: PastTenseDataModule) -> None:
    counts = Counter(example.group for example in data.examples("val")[:60])
    assert counts == {"ends_in_ed": 26, "ends_in_d": 25, "ends_in_ied": 9}


def test_items_say_what_is_asked_and_no_question_answers_itself(data: PastTenseDataModule, verbs: list[Verb]) -> None:
    verb_of = {f"verb:{verb.lemma}": verb for verb in verbs}
    for split in SPLITS:
        for example in data.examples(split):
            verb = verb_of[example.id]
            question = f'What is the past tense of the verb "{verb.lemma}"?'
            assert example.prompt == ({"role": "user", "content": question},)
            assert (example.answer, example.source) == (verb.past, "lemminflect")
            assert data.grade(example, question).reason == "no_answer"
            assert data.grade(example, f'The past tense of the verb "{verb.lemma}" is "{verb.past}."').correct


def test_the_splits_are_those_of_earlier_versions(data: PastTenseDataModule) -> None:
    assert fingerprint(data) == "2fe0f5530a2af3e5"
    for other in (PastTenseDataModule(seed=9), PastTenseDataModule(context=None)):
        assert fingerprint(other) == fingerprint(data)
    assert fingerprint(PastTenseDataModule(split_seed=1)) != fingerprint(data)


def test_the_documented_counts_are_the_real_ones(data: PastTenseDataModule) -> None:
    assert data.summary() in (Path(__file__).parents[2] / "docs" / "past_tense.md").read_text("utf-8")


def test_demonstrations_are_right_and_their_families_in_no_split(data: PastTenseDataModule, verbs: list[Verb]) -> None:
    demonstrations = load_context("past_tense_demonstrations")
    assert not isinstance(demonstrations, str)
    pairs = zip(demonstrations[::2], demonstrations[1::2], strict=True)
    shown = {question["content"]: answer["content"] for question, answer in pairs}
    indices = [index for index, verb in enumerate(verbs) if shown.get(verb.question) == verb.past]
    assert len(indices) == len(shown) == 8
    relatives = {
        f"verb:{verbs[index].lemma}" for family in families(verbs) if set(family) & set(indices) for index in family
    }
    assert not relatives & {example.id for split in SPLITS for example in data.examples(split)}
    assert data.examples("val")[0].privileged_context == demonstrations


def test_a_context_that_answers_an_evaluated_question_is_refused(data: PastTenseDataModule, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(data.examples("val")[0].prompt[-1]["content"], "utf-8")
    with pytest.raises(ValueError, match=r"contains 'What is the past tense .* validation or test asks"):
        PastTenseDataModule(context=str(path)).setup()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_train": 50_000}, r"num_train=50000: 50000 items asked for"),
        ({"num_val": 50_000}, r"num_val=50000: 50000 items asked for"),
        ({"num_val": 2}, "num_val=2 must be an integer of at least 3"),
    ],
)
def test_sizes_are_checked(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PastTenseDataModule(**sizes).setup()  # type: ignore[arg-type]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install lemminflect"):
        PastTenseDataModule().setup()


# Grading


@pytest.mark.parametrize(
    ("completion", "parsed", "reason"),
    [
        ("walked", "walked", "correct"),
        ("Walked!", "walked", "correct"),
        ("**\uff37alked**", "walked", "correct"),  # a full-width W
        ("The past tense of the verb 'walk' is 'walked'.", "walked", "correct"),
        ("walked walked", "walked", "correct"),
        ("walked. For example, I walked home.", "walked", "correct"),
        ("\n\nwalked\nBecause it ends in k.", "walked", "correct"),
        ("walk", None, "no_answer"),
        ("", None, "no_answer"),
        ("...", None, "no_answer"),
        (QUESTION, None, "no_answer"),
        ("walkt", "walkt", "wrong"),
        ("walked-", "walked", "correct"),
        ("un-walked", "un-walked", "wrong"),
        ("walked or walken", None, "several_answers"),
        ("walked/walking", None, "several_answers"),
        ("The past tense is walked in English", None, "several_answers"),
        ("I don't know. walked", None, "several_answers"),
    ],
)
def test_new_words_by_hand(completion: str, parsed: str | None, reason: str) -> None:
    grade = grade_new_word(completion, "walked", QUESTION)
    assert (grade.parsed, grade.reason) == (parsed, reason)


@given(st.text())
def test_any_text_has_a_grade(completion: str) -> None:
    grade = grade_new_word(completion, "walked", QUESTION)
    assert grade.correct == (grade.parsed == "walked")


words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)


@given(word=words, before=st.booleans(), between=st.sampled_from([" ", ", ", "/", " and "]))
def test_a_second_word_of_its_own_is_never_right(word: str, before: bool, between: str) -> None:
    completion = f"{word}{between}walked" if before else f"walked{between}{word}"
    adds_nothing = word == "walked" or word in ("what", "is", "the", "past", "tense", "of", "verb", "walk")
    assert grade_new_word(completion, "walked", QUESTION).correct == (adds_nothing and between != " and ")


@pytest.mark.parametrize("answer", ["", "two words", "verb", "walked."])
def test_answers_that_cannot_be_graded_are_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="must be one word that the question"):
        grade_new_word("walked", answer, QUESTION)
