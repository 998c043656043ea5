"""Tagged answers: a table of completions labelled by hand, and properties over arbitrary text."""

from __future__ import annotations

import json
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.example import Grade
from datamodules.tagged_answers import grade_tagged_answer, normalise_answer, tagged_contents

LETTERS: dict[str, tuple[str, ...]] = dict.fromkeys("ABCD", ())
YES_NO: dict[str, tuple[str, ...]] = dict.fromkeys(("yes", "no", "maybe"), ())
DEV = Path("/work/shared/data/medmcqa/dev.json")

# (completion, strict verdict, lenient verdict, why). The right answer is B of A to D.
COMPLETIONS = [
    # Rule 1: tags
    ("<answer>B</answer>", "correct", "correct", "the form asked for"),
    ("<answer>A</answer>", "wrong", "wrong", "another choice"),
    ("B", "no_answer", "no_answer", "no tag"),
    ("The answer is B.", "no_answer", "no_answer", "no tag: text outside is never read"),
    ("", "no_answer", "no_answer", "nothing"),
    ("Bad question.", "no_answer", "no_answer", "the B of Bad, which OPCD's fall-back reads"),
    ("<answer>Bad</answer>", "not_a_choice", "not_a_choice", "Bad is a word, not B"),
    ("<answer></answer>", "no_answer", "no_answer", "an empty tag is no tag"),
    ("<answer> \n </answer>", "no_answer", "no_answer", "blank is empty"),
    ("<answer>...</answer>", "no_answer", "no_answer", "marks alone are empty"),
    ("<answer></answer> tags: <answer>B</answer>", "correct", "correct", "an empty tag is no second answer"),
    ("<ANSWER>B</ANSWER>", "correct", "correct", "tags in any case"),
    ("<Answer>B</answer>", "correct", "correct", "tags in mixed case"),
    ("<answer>B", "no_answer", "correct", "cut off before the closing tag"),
    ("<answer>A", "no_answer", "wrong", "cut off, another choice"),
    ("<answer>", "no_answer", "no_answer", "cut off before the answer"),
    ("<answer>B</ans", "no_answer", "correct", "cut off inside the closing tag"),
    ("<answer>The", "no_answer", "not_a_choice", "cut off before any choice was named"),
    ("B</answer>", "no_answer", "no_answer", "never opened"),
    ("</answer>B<answer>", "no_answer", "no_answer", "the wrong way round"),
    ("< answer >B</ answer >", "no_answer", "no_answer", "not how the tags are written"),
    ("<answers>B</answers>", "no_answer", "no_answer", "another tag"),
    ("<answer B>", "no_answer", "no_answer", "inside the tag itself"),
    ("[answer]B[/answer]", "no_answer", "no_answer", "other brackets"),
    ("&lt;answer&gt;B&lt;/answer&gt;", "no_answer", "no_answer", "escaped"),
    ("<an\u017fwer>B</an\u017fwer>", "no_answer", "no_answer", "a long s, which ignores case as s does"),
    ("\\boxed{B}", "no_answer", "no_answer", "another convention"),
    ("<answer>B<answer>", "no_answer", "correct", "opened twice, never closed; the second is empty"),
    ("<answer>A <answer>B</answer>", "correct", "correct", "only the second tag holds no other tag"),
    ("I use <answer> tags. <answer>B</answer>", "correct", "correct", "the tag is named before it is used"),
    ("<answer>B</answer> or <answer>A", "correct", "wrong", "the second is never closed"),
    ("<think><answer>A</answer></think><answer>B</answer>", "several_answers", "correct", "thoughts are text too"),
    # Rule 2: what only looks different
    ("<answer>b</answer>", "correct", "correct", "case"),
    ("<answer>\n\tB \r\n</answer>", "correct", "correct", "white space"),
    ("<answer>\u00a0B\u2003</answer>", "correct", "correct", "white space that is not ASCII"),
    ("<answer>**B**</answer>", "correct", "correct", "Markdown"),
    ("<answer>`B`</answer>", "correct", "correct", "Markdown code"),
    ("<answer>(B)</answer>", "correct", "correct", "brackets"),
    ("<answer>[B].</answer>", "correct", "correct", "brackets and a full stop"),
    ("<answer>**(b).**</answer>", "correct", "correct", "all at once"),
    ('<answer>"B"</answer>', "correct", "correct", "quotes"),
    ("<answer>$B$</answer>", "correct", "correct", "mathematics"),
    ("<answer><B></answer>", "correct", "correct", "angle brackets"),
    ("<answer>B!</answer>", "correct", "correct", "emphasis"),
    ("<answer>B?</answer>", "not_a_choice", "correct", "a question is no answer; it names B"),
    ("<answer>\uff22</answer>", "correct", "correct", "a full-width B"),
    ("<answer>\u0392</answer>", "not_a_choice", "not_a_choice", "a Greek Beta"),
    ("<answer>B\u200b</answer>", "not_a_choice", "correct", "a zero-width space; still the word B"),
    # Rule 3: a letter and its option
    ("<answer>B. Aspirin</answer>", "correct", "correct", "letter and option"),
    ("<answer>B) Aspirin</answer>", "correct", "correct", "bracket"),
    ("<answer>B: Aspirin</answer>", "correct", "correct", "colon"),
    ("<answer>(B) Aspirin</answer>", "correct", "correct", "two brackets"),
    ("<answer>B (Aspirin)</answer>", "correct", "correct", "option in brackets"),
    ("<answer>B - Aspirin</answer>", "correct", "correct", "dash"),
    ("<answer>B \u2013 Aspirin</answer>", "correct", "correct", "long dash"),
    ("<answer>**B.** Aspirin</answer>", "correct", "correct", "bold letter"),
    ("<answer>**B**: Aspirin</answer>", "correct", "correct", "bold letter, plain colon"),
    ("<answer>B.Aspirin</answer>", "correct", "correct", "no space"),
    ("<answer>B. 0.5 mg</answer>", "correct", "correct", "a number behind the letter"),
    ("<answer>B. Vitamin C</answer>", "correct", "correct", "the option holds a letter of its own"),
    ("<answer>B. Hepatitis A and C</answer>", "correct", "correct", "the option holds letters of its own"),
    ("<answer>B. C. difficile</answer>", "correct", "correct", "the option begins with an initial"),
    ("<answer>B. B</answer>", "correct", "correct", "the same letter"),
    ("<answer>B. Vitamin C (ascorbic acid)</answer>", "correct", "correct", "a bracket after a full stop"),
    ("<answer>B. Hepatitis A - acute</answer>", "correct", "correct", "nor does a dash"),
    ("<answer>B. Influenza A: H1N1</answer>", "correct", "correct", "nor a colon"),
    ("<answer>B: Aspirin, C: Ibuprofen</answer>", "several_answers", "correct", "two letters behind colons"),
    ("<answer>B (Aspirin) or C (Ibuprofen)</answer>", "several_answers", "correct", "two letters before brackets"),
    ("<answer>B - Aspirin, C \u2014 Ibuprofen</answer>", "several_answers", "correct", "dashes of two lengths"),
    ("<answer>**B.** Aspirin **C.** Ibuprofen</answer>", "several_answers", "correct", "bold letters"),
    ("<answer>A. Vitamin B</answer>", "wrong", "wrong", "the letter counts, not the option's"),
    ("<answer>A.V. block</answer>", "not_a_choice", "wrong", "initials are no letter and option; A is named"),
    ("<answer>B-cells</answer>", "not_a_choice", "correct", "a word; B is named"),
    ("<answer>B Aspirin</answer>", "not_a_choice", "correct", "no delimiter"),
    ("<answer>B, Aspirin</answer>", "not_a_choice", "correct", "a comma lists"),
    ("<answer>Aspirin</answer>", "not_a_choice", "not_a_choice", "the option alone"),
    ("<answer>B. or C.</answer>", "several_answers", "correct", "two letters"),
    ("<answer>B. C</answer>", "several_answers", "correct", "two letters"),
    ("<answer>A) B) C) D)</answer>", "several_answers", "wrong", "all letters"),
    ("<answer>B. Aspirin C. Ibuprofen</answer>", "several_answers", "correct", "two letters with their options"),
    ("<answer>A: Aspirin or B: Ibuprofen</answer>", "several_answers", "wrong", "two letters with their options"),
    # Rule 4: several tags
    ("<answer>B</answer><answer>B</answer>", "correct", "correct", "repeated"),
    ("<answer>B</answer> so <answer>b.</answer>", "correct", "correct", "repeated, written differently"),
    ("<answer>B</answer><answer>B. Aspirin</answer>", "correct", "correct", "one answer, with and without its option"),
    ("<answer>B. x</answer><answer>B. y</answer>", "correct", "correct", "the letter counts"),
    ("<answer>A</answer><answer>B</answer>", "several_answers", "correct", "the last is right: hedging"),
    ("<answer>B</answer><answer>A</answer>", "several_answers", "wrong", "the last is wrong"),
    ("<answer>letter</answer> <answer>B</answer>", "several_answers", "correct", "the instruction is repeated"),
    ("<answer>B</answer><answer>unsure</answer>", "several_answers", "not_a_choice", "taken back"),
    ("<answer>unsure</answer><answer>Unsure.</answer>", "not_a_choice", "not_a_choice", "one text, no choice"),
    # Rule 5: what is no choice
    ("<answer>A or B</answer>", "several_answers", "wrong", "hedging; A is named first"),
    ("<answer>B/C</answer>", "several_answers", "correct", "hedging; B is named first"),
    ("<answer>B, C, D</answer>", "several_answers", "correct", "a list"),
    ("<answer>Not A but B</answer>", "several_answers", "wrong", "the rules read no sentences"),
    ("<answer>A, B, C or D</answer>", "several_answers", "wrong", "the question's own list"),
    ("<answer>AB</answer>", "not_a_choice", "not_a_choice", "not a whole word"),
    ("<answer>BB</answer>", "not_a_choice", "not_a_choice", "not a whole word"),
    ("<answer>B1</answer>", "not_a_choice", "not_a_choice", "a digit touches it"),
    ("<answer>The answer is B</answer>", "not_a_choice", "correct", "a sentence"),
    ("<answer>Option B</answer>", "not_a_choice", "correct", "a word before it"),
    ("<answer>a beta blocker, B</answer>", "not_a_choice", "correct", "a is an article"),
    ("<answer>a beta blocker</answer>", "not_a_choice", "not_a_choice", "a is an article, here too"),
    ("<answer>E</answer>", "not_a_choice", "not_a_choice", "a letter that is not offered"),
    ("<answer>2</answer>", "not_a_choice", "not_a_choice", "a number"),
    ("<answer>None</answer>", "not_a_choice", "not_a_choice", "no choice"),
    ("<answer>\\boxed{B}</answer>", "not_a_choice", "correct", "a command; B is named"),
    ("<answer>B because A is rare</answer>", "several_answers", "correct", "two are named"),
]  # fmt: skip

# The right answer is no of yes, no and maybe.
WORD_COMPLETIONS = [
    ("<answer>no</answer>", "correct", "correct", "the form asked for"),
    ("<answer>No.</answer>", "correct", "correct", "case and full stop"),
    ("<answer>NO</answer>", "correct", "correct", "case"),
    ("<answer>yes</answer>", "wrong", "wrong", "another choice"),
    ("<answer>none</answer>", "not_a_choice", "not_a_choice", "not the whole word"),
    ("<answer>no, it is not</answer>", "not_a_choice", "correct", "a sentence: words are not cut at delimiters"),
    ("<answer>no: it is not</answer>", "not_a_choice", "correct", "likewise"),
    ("<answer>yes or no</answer>", "several_answers", "wrong", "the question's own words"),
    ("<answer>yes/no</answer>", "several_answers", "wrong", "likewise"),
    ("<answer>n</answer>", "not_a_choice", "not_a_choice", "an abbreviation"),
    ("<answer>not</answer>", "not_a_choice", "not_a_choice", "another word"),
    ("No.", "no_answer", "no_answer", "no tag"),
]


def test_the_table_is_large_and_free_of_repeats() -> None:
    texts = [completion for completion, *_ in COMPLETIONS]
    assert len(set(texts)) == len(texts) >= 60


@pytest.mark.parametrize(("completion", "strict", "lenient", "why"), COMPLETIONS)
def test_letters_labelled_by_hand(completion: str, strict: str, lenient: str, why: str) -> None:
    assert grade_tagged_answer(completion, "B", LETTERS).reason == strict, why
    assert grade_tagged_answer(completion, "B", LETTERS, lenient=True).reason == lenient, why


@pytest.mark.parametrize(("completion", "strict", "lenient", "why"), WORD_COMPLETIONS)
def test_words_labelled_by_hand(completion: str, strict: str, lenient: str, why: str) -> None:
    assert grade_tagged_answer(completion, "no", YES_NO).reason == strict, why
    assert grade_tagged_answer(completion, "no", YES_NO, lenient=True).reason == lenient, why


def test_parsed_is_the_choice_in_canonical_form() -> None:
    assert grade_tagged_answer("<answer>b. Aspirin</answer>", "B", LETTERS) == Grade(True, "B", "correct")
    assert grade_tagged_answer("<answer>YES</answer>", "no", YES_NO) == Grade(False, "yes", "wrong")
    assert grade_tagged_answer("<answer>A or B</answer>", "B", LETTERS) == Grade(False, None, "several_answers")


def test_other_spellings_count_as_their_choice() -> None:
    choices = {"yes": ("true", "correct"), "no": ("false",)}
    assert grade_tagged_answer("<answer>True</answer>", "yes", choices).correct
    assert grade_tagged_answer("<answer>yes</answer><answer>true</answer>", "yes", choices).correct
    assert grade_tagged_answer("<answer>false</answer>", "yes", choices).parsed == "no"


def test_a_choice_of_one_digit_takes_no_option() -> None:
    assert grade_tagged_answer("<answer>1.5</answer>", "1", {"1": (), "2": ()}).reason == "not_a_choice"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"A": ()}, "answer 'B' is none of the choices"),
        ({"B": ("x",), "C": ("X",)}, "belongs to two choices"),
        ({"B": (" ",)}, "begin and end in a letter or digit"),
    ],
)
def test_impossible_choices_are_refused_whatever_the_completion(
    choices: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grade_tagged_answer("", "B", choices)


# Text that holds no tag, not even with what stands beside it: "<" must not complete one, and no tag may stay open.
untagged = st.text().filter(lambda text: "<" not in text and ">" not in text)
letters = st.sampled_from("ABCD")
spaces = st.text(string.whitespace + "\u00a0\u2003\u2028", max_size=4)
marks = st.text("*_`~\"'()[]{}$.,;:! ", max_size=4)
spoken = st.lists(st.sampled_from(["<answer>", "</answer>", "A", "B", "b", ".", ":", " or ", "Bad", "\n", "a"]))


@given(completion=st.one_of(st.text(), spoken.map("".join)), answer=letters, lenient=st.booleans())
def test_no_text_makes_it_raise(completion: str, answer: str, lenient: bool) -> None:
    grade = grade_tagged_answer(completion, answer, LETTERS, lenient=lenient)
    assert grade.parsed is None or grade.parsed in LETTERS


@given(before=untagged, after=untagged, answer=letters, lenient=st.booleans())
def test_one_tag_with_the_right_choice_is_right_whatever_surrounds_it(
    before: str, after: str, answer: str, lenient: bool
) -> None:
    completion = f"{before}<answer>{answer}</answer>{after}"
    assert grade_tagged_answer(completion, answer, LETTERS, lenient=lenient).reason == "correct"


@given(text=untagged, answer=letters, lenient=st.booleans())
def test_text_without_a_tag_is_never_an_answer(text: str, answer: str, lenient: bool) -> None:
    assert grade_tagged_answer(text, answer, LETTERS, lenient=lenient).reason == "no_answer"


@given(between=untagged, answer=letters, other=letters, first=st.booleans())
def test_a_second_tag_with_another_choice_makes_several_answers(
    between: str, answer: str, other: str, first: bool
) -> None:
    said = [f"<answer>{answer}</answer>", f"<answer>{other}</answer>"]
    grade = grade_tagged_answer(between.join(said if first else said[::-1]), answer, LETTERS)
    assert grade.reason == ("correct" if other == answer else "several_answers")


@given(content=spoken.map("".join), answer=letters, lead=marks, trail=marks, space=spaces)
def test_case_marks_and_white_space_around_change_nothing(
    content: str, answer: str, lead: str, trail: str, space: str
) -> None:
    content = content.replace("<answer>", "").replace("</answer>", "")
    expected = grade_tagged_answer(f"<answer>{content}</answer>", answer, LETTERS)
    padded = f"{space}{lead}{space}{content}{space}{trail}{space}"
    assert normalise_answer(padded) == normalise_answer(content)
    if expected.reason in ("correct", "wrong"):
        for written in (content, content.upper(), content.swapcase(), padded):
            assert grade_tagged_answer(f"<answer>{written}</answer>", answer, LETTERS) == expected


@given(contents=st.lists(untagged, max_size=5), between=untagged)
def test_contents_are_what_is_written(contents: list[str], between: str) -> None:
    completion = between.join(f"<answer>{content}</answer>" for content in contents)
    assert tagged_contents(completion) == [content for content in contents if normalise_answer(content)]


@pytest.mark.parametrize("text", ["<answer>", "</answer>", "<answer>B", "B" * 8, "B. ", " " * 8])
def test_long_repetitions_take_no_time(text: str) -> None:
    begin = time.perf_counter()
    for completion in (text * 20_000, f"<answer>{text * 20_000}</answer>"):
        for lenient in (False, True):
            grade_tagged_answer(completion, "B", LETTERS, lenient=lenient)
    assert time.perf_counter() - begin < 10  # quadratic matching would take minutes


def test_nearly_every_real_option_may_follow_its_letter() -> None:
    if not DEV.is_file():
        pytest.skip(f"{DEV} is not here")
    rows = [json.loads(line) for line in DEV.read_text("utf-8").splitlines()]
    said = [(letter, f"{letter}. {row[f'op{letter.lower()}']}") for row in rows for letter in LETTERS]
    graded = [grade_tagged_answer(f"<answer>{text}</answer>", letter, LETTERS) for letter, text in said]
    assert len(said) == 4 * 4183
    assert sum(grade.correct for grade in graded) > 0.998 * len(said)
