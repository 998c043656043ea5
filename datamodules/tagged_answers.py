"""Grading of answers in <answer> tags, the form in which medical, classification and mathematics prompts ask.

Rules of the strict mode, in this order (why a completion counts wrong is its `Grade.reason`):

1. Only what stands between ``<answer>`` and ``</answer>``, with no other tag between, is read: the B of "Bad" is no
   answer. Tags may be in any case, and empty tags are no tags. None with content: ``no_answer``.
2. Contents are compared after Unicode NFKC normalisation and case folding, with white space collapsed, and without
   Markdown marks, quotes, brackets and punctuation around them: "**(b).**" is "b".
3. A content is a choice if it is one spelling of it, or its one letter and its option behind a delimiter: "B. Aspirin",
   "B) Aspirin", "B: Aspirin", "B (Aspirin)", "B - Aspirin". The option is not compared with anything. It may hold
   letters of its own ("B. Vitamin C (ascorbic acid)", "B. C. difficile") but must not offer another choice ("B. or C",
   "B. Aspirin C. Ibuprofen").
4. Several tags that are not all the same choice, or the same text: ``several_answers``, even if one is right. Repeating
   one answer is no fault.
5. The content is a choice: ``correct`` or ``wrong``. It names two or more: ``several_answers``. Anything else, also
   "The answer is B": ``not_a_choice``. A one-letter choice is named in its own case only: "a" is an article.

The lenient mode is for comparison with results graded less strictly. The LAST tag alone counts (OPCD's rule,
arXiv:2602.12275); a tag that was never closed is read up to the next tag or the end; and where the content is no
choice, the first choice it names counts. Outside tags it reads as little as the strict mode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from datamodules.example import Grade
from datamodules.grading import mentions_in_order

_NO_TAG = r"(?:(?!</?answer>).)*"
# ASCII: without it, case-insensitive "s" also matches the long s of old prints.
_CLOSED = re.compile(rf"<answer>({_NO_TAG})</answer>", re.IGNORECASE | re.DOTALL | re.ASCII)
_OPENED = re.compile(rf"<answer>({_NO_TAG})", re.IGNORECASE | re.DOTALL | re.ASCII)

_MARKS = " *_`~\"'\u2018\u2019\u201c\u201d()[]{}<>$.,;:!#"
"""What may surround an answer without changing it, curly quotes too; a question mark does change it."""
_DELIMITER = r"[*_`]*(?:\s*[.):\]](?![^\W\d_]\.)|\s[(\u2013\u2014-])[*_`]*\s*(?=\S)"
"""Between a choice's letter and its option; a dash or an opening bracket only behind a space. "A.V. block" has none."""
_JOINING_WORDS = frozenset({"or", "and", "either", "maybe", "perhaps", "possibly", "also"})
"""Between letters they do not make an option's text."""

Choices = Mapping[str, tuple[str, ...]]
"""For every choice in canonical form its other spellings."""


def grade_tagged_answer(completion: str, answer: str, choices: Choices, *, lenient: bool = False) -> Grade:
    """Grade a completion by its tagged answer; the rules are in the module's docstring.

    Args:
        completion: Any text.
        answer: The right choice, a key of `choices`.
        choices: Every choice with its other spellings; the key itself always counts as one.
        lenient: Read more completions as answers.

    Returns:
        The grade; `Grade.parsed` is the choice, or None where no single one was read.

    Raises:
        ValueError: if `answer` is no key of `choices`, or a spelling is blank, has no letter or digit at one of its
            ends, or belongs to two choices.
    """
    if answer not in choices:
        raise ValueError(f"answer {answer!r} is none of the choices {sorted(choices)}.")
    mentions_in_order("", choices)  # refuses spellings that could not be told apart, whatever the completion
    contents = tagged_contents(completion, lenient=lenient)
    if not contents:
        return Grade(correct=False, parsed=None, reason="no_answer")
    if not lenient and len({_choice(content, choices) or (normalise_answer(content),) for content in contents}) > 1:
        return Grade(correct=False, parsed=None, reason="several_answers")
    parsed = _choice(contents[-1], choices)
    named = _named_choices(contents[-1], choices)
    if parsed is None and lenient and named:
        parsed = named[0]
    if parsed is None:
        return Grade(correct=False, parsed=None, reason="several_answers" if len(set(named)) > 1 else "not_a_choice")
    correct = parsed == answer
    return Grade(correct=correct, parsed=parsed, reason="correct" if correct else "wrong")


def answers_in_tags(answers: Sequence[str]) -> str:
    """Return the answers as a prompt asks for them: "<answer>A</answer>, <answer>B</answer> or <answer>C</answer>"."""
    tagged = [f"<answer>{answer}</answer>" for answer in answers]
    return " or ".join([", ".join(tagged[:-1]), tagged[-1]] if len(tagged) > 1 else tagged)


def tagged_contents(completion: str, *, lenient: bool = False) -> list[str]:
    """Return the contents of the answer tags that have one, in order, as they are written.

    Args:
        completion: Any text.
        lenient: Also read tags that were never closed, up to the next tag or the end.
    """
    contents: list[str] = (_OPENED if lenient else _CLOSED).findall(completion)
    return [content for content in contents if normalise_answer(content)]


def normalise_answer(content: str) -> str:
    """Fold what only looks different, and take surrounding marks away (rule 2)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", content).casefold())
    return " ".join(folded.split()).strip(_MARKS)


def _choice(content: str, choices: Choices) -> str | None:
    """Return the choice that the content is, by rule 3."""
    normal = normalise_answer(content)
    choice_of = {normalise_answer(spelling): choice for choice in choices for spelling in (choice, *choices[choice])}
    if normal in choice_of:
        return choice_of[normal]
    letters = "".join(spelling for spelling in choice_of if len(spelling) == 1 and spelling.isalpha())
    if not letters:
        return None
    behind = re.match(rf"([{letters}])({_DELIMITER})", normal)
    if behind is None or _offers_another(normal[behind.end() :], behind[1], behind[2], letters):
        return None
    return choice_of[behind[1]]


def _offers_another(option: str, letter: str, delimiter: str, letters: str) -> bool:
    """Return whether the text behind a choice's letter offers another of `letters`.

    That is one with the same kind of `delimiter`, but not at the start ("C. difficile"), nor with another kind
    ("B. Vitamin C (ascorbic acid)"); or a text of letters alone.
    """
    found = re.findall(rf"(?<=[^\w.])([{letters}])({_DELIMITER})", option)
    marked = [other for other, behind in found if _kind(behind) == _kind(delimiter)]
    words = set(re.findall(r"\w+", option)) - _JOINING_WORDS
    alone = words if words <= set(letters) else set()
    return bool({*marked, *alone} - {letter})


def _kind(delimiter: str) -> str:
    """The delimiter without what may stand around it; dashes of all lengths are one kind."""
    return re.sub(r"[\s*_`]", "", delimiter).replace("\u2013", "-").replace("\u2014", "-")


def _named_choices(content: str, choices: Choices) -> list[str]:
    """Return the choices that the content names as whole words, in order, by the rules of `datamodules.grading`."""
    spellings = {spelling for choice, others in choices.items() for spelling in (choice, *others)}
    text = unicodedata.normalize("NFKC", content)
    # "a" is an article, and named A by nobody.
    text = re.sub(r"(?<![^\W_])[^\W_](?![^\W_])", lambda word: word[0] if word[0] in spellings else " ", text)
    return mentions_in_order(text, choices)
