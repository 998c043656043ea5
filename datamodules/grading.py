"""Strict answer extraction, shared by the data modules: a completion is graded by rules that can be read and tested.

The aim is a grade that a model cannot win by hedging: naming every choice is no answer, and neither is repeating the
question. Nothing here looks at how likely a text is; the rules see characters only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from datamodules.example import Grade

_LETTER_OR_DIGIT = r"[^\W_]"
_GAP = r"[\s\u2010-]+"
"""Between the words of one spelling: white space and hyphens (U+2010 is what NFKC makes of a non-breaking one)."""

_WORD = re.compile(rf"{_LETTER_OR_DIGIT}+(?:['\u2019\u2010-]{_LETTER_OR_DIGIT}+)*")

_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|[\r\n]")


def grade_choice_mention(completion: str, answer: str, choices: Mapping[str, tuple[str, ...]]) -> Grade:
    """Grade a free-form completion by the choices that it mentions.

    Rules, in this order:

    1. Completion and spellings are compared after Unicode NFKC normalisation and case folding.
    2. A choice is mentioned where its name or one of its other spellings stands as whole words: no letter or digit
       touches it. Punctuation, Markdown marks and line ends may. The words of a spelling may be parted by any white
       space and hyphens ("South-America").
    3. Longer spellings are matched first and mentions do not overlap: "South America" does not also mention a choice
       spelled "America".
    4. No choice mentioned: ``no_answer``. Two or more distinct choices: ``several_answers``, even if one is right.
       Exactly one, however often: ``correct`` or ``wrong``.

    A negated mention is a mention ("not in Asia" mentions Asia): the rules do not read sentences.

    Args:
        completion: The text to grade; any text, also empty.
        answer: The right choice, a key of `choices`.
        choices: For every choice its other spellings. The key itself always counts as one. A key that is never an
            answer makes sure that mentioning it counts against the completion.

    Returns:
        The grade; `Grade.parsed` is the one choice mentioned, or None.

    Raises:
        ValueError: if `answer` is no key of `choices`, or a spelling is blank, has no letter or digit at one of its
            ends, or belongs to two choices.
    """
    if answer not in choices:
        raise ValueError(f"answer {answer!r} is none of the choices {sorted(choices)}.")
    mentioned = mentioned_choices(completion, choices)
    if len(mentioned) > 1:
        return Grade(correct=False, parsed=None, reason="several_answers")
    if not mentioned:
        return Grade(correct=False, parsed=None, reason="no_answer")
    (parsed,) = mentioned
    correct = parsed == answer
    return Grade(correct=correct, parsed=parsed, reason="correct" if correct else "wrong")


def grade_new_word(completion: str, answer: str, question: str) -> Grade:
    """Grade a completion by the one word that it adds to the question: for answers of a word, of no closed set.

    Rules, in this order:

    1. All three texts are compared after Unicode NFKC normalisation and case folding. A word is a run of letters and
       digits; an apostrophe or hyphen inside belongs to it.
    2. Only the first sentence is read: from the first word to a line end, or to a full stop, exclamation or question
       mark before white space or the end.
    3. Words that the question contains are no answer, so that 'The past tense of "walk" is "walked".' reads as
       "walked", and an echo of the question as nothing.
    4. No other word: ``no_answer``. Two or more distinct ones: ``several_answers``, even if one is right. Exactly one,
       however often: ``correct`` or ``wrong``.

    Args:
        completion: The text to grade; any text, also empty.
        answer: The right word.
        question: The text that was asked.

    Returns:
        The grade; `Grade.parsed` is the one new word, or None.

    Raises:
        ValueError: if `answer` is not one word, or the question contains it.
    """
    asked = set(_words(question))
    if _words(answer) != [_normalise(answer)] or _normalise(answer) in asked:
        raise ValueError(f"answer {answer!r} must be one word that the question {question!r} does not contain.")
    new = set(_words(_first_sentence(_normalise(completion)))) - asked
    if len(new) > 1:
        return Grade(correct=False, parsed=None, reason="several_answers")
    if not new:
        return Grade(correct=False, parsed=None, reason="no_answer")
    (parsed,) = new
    correct = parsed == _normalise(answer)
    return Grade(correct=correct, parsed=parsed, reason="correct" if correct else "wrong")


def _words(text: str) -> list[str]:
    return _WORD.findall(_normalise(text))


def _first_sentence(text: str) -> str:
    """Cut normalised text off behind its first sentence that has a word."""
    first_word = _WORD.search(text)
    return "" if first_word is None else _SENTENCE_END.split(text[first_word.start() :], maxsplit=1)[0]


def mentioned_choices(text: str, choices: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    """Return the distinct choices that `text` mentions, by rules 1 to 3 of `grade_choice_mention`.

    Raises:
        ValueError: as `grade_choice_mention`, for the spellings.
    """
    return frozenset(mentions_in_order(text, choices))


def mentions_in_order(text: str, choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the choice of every mention in `text`, from left to right, by rules 1 to 3 of `grade_choice_mention`.

    Raises:
        ValueError: as `grade_choice_mention`, for the spellings.
    """
    pattern, choice_of_group = _mention_pattern(tuple(choices.items()))
    return [
        choice_of_group[match.lastgroup] for match in pattern.finditer(_normalise(text)) if match.lastgroup is not None
    ]


def _normalise(text: str) -> str:
    """Fold what only looks different: compatibility characters (full-width letters) and case."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=64)
def _mention_pattern(choices: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Compile one alternation over all spellings, longest first, with one named group per spelling."""
    choice_of: dict[str, str] = {}
    for choice, others in choices:
        for spelling in (choice, *others):
            normal = " ".join(re.split(_GAP, _normalise(spelling).strip()))
            if not normal or not (normal[0].isalnum() and normal[-1].isalnum()):
                raise ValueError(f"Choice {choice!r}: spelling {spelling!r} must begin and end in a letter or digit.")
            if choice_of.setdefault(normal, choice) != choice:
                raise ValueError(f"Spelling {spelling!r} belongs to two choices: {choice_of[normal]!r} and {choice!r}.")
    longest_first = sorted(choice_of, key=lambda spelling: (-len(spelling), spelling))
    alternatives = [
        f"(?P<s{index}>{_GAP.join(re.escape(word) for word in spelling.split(' '))})"
        for index, spelling in enumerate(longest_first)
    ]
    pattern = re.compile(f"(?<!{_LETTER_OR_DIGIT})(?:{'|'.join(alternatives)})(?!{_LETTER_OR_DIGIT})")
    return pattern, {f"s{index}": choice_of[spelling] for index, spelling in enumerate(longest_first)}
