"""Answer extraction: a table of hand-labelled completions, and properties over arbitrary text."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.example import Grade
from datamodules.geonames import CONTINENT_SPELLINGS, CONTINENTS
from datamodules.grading import grade_choice_mention, mentioned_choices

ANSWERS = sorted(CONTINENTS.values())

# (completion, right answer, verdict). Labelled by hand before the code was run on them.
COMPLETIONS = [
    ("Africa", "Africa", "correct"),
    ("Asia", "Africa", "wrong"),
    ("", "Africa", "no_answer"),
    (" \n\t ", "Africa", "no_answer"),
    ("I don't know.", "Africa", "no_answer"),
    ("africa", "Africa", "correct"),
    ("AFRICA!!!", "Africa", "correct"),
    ("aFrIcA", "Africa", "correct"),
    ("**Africa**", "Africa", "correct"),
    ("_Africa_", "Africa", "correct"),
    ("__Europe__", "Europe", "correct"),
    ("`Asia`", "Asia", "correct"),
    ("(Asia)", "Asia", "correct"),
    ("1.Asia", "Asia", "correct"),
    ("- Asia\n- Asia", "Asia", "correct"),
    ("Mombasa, Kenya is in Africa.", "Africa", "correct"),
    ("It is Africa's largest port.", "Africa", "correct"),
    ("Lomé lies in West Africa.", "Africa", "correct"),
    ("southern Africa", "Africa", "correct"),
    ("It is an African city.", "Africa", "no_answer"),
    ("Central African Republic", "Africa", "no_answer"),
    ("the Asian continent", "Asia", "no_answer"),
    ("Eurasia", "Asia", "no_answer"),
    ("Eurasia", "Europe", "no_answer"),
    ("Afr", "Africa", "no_answer"),
    ("Africaa", "Africa", "no_answer"),
    ("Africa2", "Africa", "no_answer"),
    ("Europe or Asia", "Asia", "several_answers"),
    ("Europe/Asia", "Europe", "several_answers"),
    ("Not in Europe. It is in Asia.", "Asia", "several_answers"),
    ("Not in Asia.", "Asia", "correct"),  # stated: a negated mention is a mention
    ("Africa, Asia, Europe, North America, South America, Oceania", "Oceania", "several_answers"),
    ("It spans both Europe and Asia, but mostly Asia, Asia, Asia.", "Asia", "several_answers"),
    ("South America", "South America", "correct"),
    ("South America", "North America", "wrong"),
    ("south   america", "South America", "correct"),
    ("South\nAmerica", "South America", "correct"),
    ("South-America", "South America", "correct"),
    ("South\u2011America", "South America", "correct"),  # non-breaking hyphen
    ("South\u00a0America", "South America", "correct"),  # non-breaking space
    ("SouthAmerica", "South America", "no_answer"),
    ("South American", "South America", "no_answer"),
    ("southern South America", "South America", "correct"),
    ("South. America", "South America", "no_answer"),
    ("North South America", "South America", "correct"),
    ("North and South America", "South America", "wrong"),  # a choice of its own, never right
    ("North or South America", "North America", "wrong"),
    ("North America and South America", "North America", "several_answers"),
    ("America", "North America", "no_answer"),
    ("the Americas", "South America", "no_answer"),
    ("Latin America", "South America", "no_answer"),
    ("Central America", "North America", "no_answer"),
    ("Honolulu, United States of America, is in North America.", "North America", "correct"),
    ("American Samoa", "Oceania", "no_answer"),
    ("Oceania", "Oceania", "correct"),
    ("Australia", "Oceania", "correct"),
    ("Australia and Oceania", "Oceania", "correct"),
    ("Australasia (Oceania)", "Oceania", "correct"),
    ("Australasia", "Asia", "wrong"),
    ("the Australian continent", "Oceania", "no_answer"),
    ("the Pacific", "Oceania", "no_answer"),
    ("Asia-Pacific", "Asia", "correct"),
    ("Asia-Pacific", "Oceania", "wrong"),
    ("Antarctica", "Oceania", "wrong"),
    ("Antarctica or Africa", "Africa", "several_answers"),
    ("\uff21\uff46\uff52\uff49\uff43\uff41", "Africa", "correct"),  # full-width letters
    ("\u0410frica", "Africa", "no_answer"),  # a Cyrillic A
    ("Af\u200brica", "Africa", "no_answer"),  # a zero-width space inside
    ("A f r i c a", "Africa", "no_answer"),
    ("Afri\u0301ca", "Africa", "no_answer"),
    ("非洲 Africa 非洲", "Africa", "correct"),
    ("在Africa", "Africa", "no_answer"),  # Chinese letters touch it: not a word of its own
    ("🌍Africa🌍", "Africa", "correct"),
    ("<answer>Africa</answer>", "Africa", "correct"),
    ('{"continent": "Africa"}', "Africa", "correct"),
    ("Europe" * 1000, "Europe", "no_answer"),
    ("Europe " * 1000, "Europe", "correct"),
]


@pytest.mark.parametrize(("completion", "answer", "verdict"), COMPLETIONS)
def test_hand_labelled_completions(completion: str, answer: str, verdict: str) -> None:
    assert grade_choice_mention(completion, answer, CONTINENT_SPELLINGS).reason == verdict


def test_parsed_is_the_canonical_name_of_the_one_choice_mentioned() -> None:
    assert grade_choice_mention("AUSTRALIA", "Oceania", CONTINENT_SPELLINGS) == Grade(True, "Oceania", "correct")
    assert grade_choice_mention("asia", "Africa", CONTINENT_SPELLINGS) == Grade(False, "Asia", "wrong")
    assert grade_choice_mention("asia, africa", "Africa", CONTINENT_SPELLINGS) == Grade(False, None, "several_answers")


def test_longest_spelling_wins_where_one_contains_another() -> None:
    choices = {"America": (), "South America": (), "New York": ("New York City",)}
    assert mentioned_choices("South America", choices) == {"South America"}
    assert mentioned_choices("South America, America", choices) == {"South America", "America"}
    assert mentioned_choices("New York City", choices) == {"New York"}
    assert mentioned_choices("Guinea-Bissau", {"Guinea": (), "Guinea Bissau": ()}) == {"Guinea Bissau"}


def test_a_longer_spelling_that_does_not_fit_leaves_the_shorter_one() -> None:
    assert mentioned_choices("New Yorkers", {"New": (), "New York": ()}) == {"New"}


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        ({"a": ()}, "b", "answer 'b' is none of the choices"),
        ({"a": ("x",), "b": ("X",)}, "a", "belongs to two choices"),
        ({"a": ("b",), "b": ()}, "a", "belongs to two choices"),
        ({"a": (" ",)}, "a", "begin and end in a letter or digit"),
        ({"": ()}, "", "begin and end in a letter or digit"),
        ({"a": ("(b)",)}, "a", "begin and end in a letter or digit"),
    ],
)
def test_impossible_choices_are_refused(choices: dict[str, tuple[str, ...]], answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grade_choice_mention("a", answer, choices)


def test_spellings_are_taken_literally() -> None:
    assert mentioned_choices("axb", {"a.b": ()}) == frozenset()
    assert mentioned_choices("A.B", {"a.b": ()}) == {"a.b"}


def _holds_no_word(text: str) -> bool:
    # Some symbols turn into letters under NFKC ("℡"), some into marks that join the letter before them.
    normal = unicodedata.normalize("NFKC", text)
    return not any(char.isalnum() or unicodedata.category(char).startswith("M") for char in normal)


non_words = st.text(st.characters(exclude_categories=["L", "N", "M", "Cs"]), max_size=20).filter(_holds_no_word)
answers = st.sampled_from(ANSWERS)


@given(completion=st.text(), answer=answers)
def test_no_text_makes_it_raise(completion: str, answer: str) -> None:
    grade = grade_choice_mention(completion, answer, CONTINENT_SPELLINGS)
    assert grade.parsed is None or grade.parsed in CONTINENT_SPELLINGS


@given(answer=answers, before=non_words, after=non_words)
def test_the_right_choice_alone_is_right_whatever_signs_surround_it(answer: str, before: str, after: str) -> None:
    assert grade_choice_mention(before + answer + after, answer, CONTINENT_SPELLINGS).reason == "correct"


@given(
    answer=answers, other=answers, gap=st.text(string.punctuation + string.whitespace, min_size=1), first=st.booleans()
)
def test_another_choice_beside_the_right_one_is_several_answers(answer: str, other: str, gap: str, first: bool) -> None:
    completion = gap.join([answer, other] if first else [other, answer])
    expected = "correct" if other == answer else "several_answers"
    assert grade_choice_mention(completion, answer, CONTINENT_SPELLINGS).reason == expected


words = st.sampled_from([*CONTINENT_SPELLINGS, "America", "and", "the", "in", "Kenya", "Asian", "not", "."])


@given(spoken=st.lists(words, max_size=8), answer=answers, space=st.text(string.whitespace, min_size=1, max_size=4))
def test_case_and_white_space_change_nothing(spoken: list[str], answer: str, space: str) -> None:
    completion = " ".join(spoken)
    expected = grade_choice_mention(completion, answer, CONTINENT_SPELLINGS)
    for variant in (completion.upper(), completion.lower(), completion.swapcase()):
        assert grade_choice_mention(space.join(variant.split(" ")), answer, CONTINENT_SPELLINGS) == expected
