"""Grading of answers in <answer> tags, the form in which medical, classification and mathematics prompts ask.

Rules of the strict mode, in this order (why a completion counts wrong is its `Grade.reason`):

1. No closed <answer>...</answer>: ``no_answer``. Text outside the tags is never read: "B" in "Bad" is no answer.
2. Contents are compared after Unicode NFKC normalisation, case folding, and removal of surrounding white space,
Markdown
   marks, brackets and final punctuation: "**(b).**" is "b".
3. Several tags with different contents: ``several_answers``, even if one is right. Repeating one answer is no fault.
4. The content is one spelling of a choice: ``correct`` or ``wrong``. A one-letter choice may be followed by its option
   behind a delimiter: "B. Aspirin", "B) Aspirin", "B: Aspirin".
5. The content names two or more choices: ``several_answers``; anything else: ``not_a_choice``.

The lenient mode differs in three points, for comparison with results graded less strictly: the LAST tag counts
(OPCD's rule, arXiv:2602.12275); a tag that was opened and never closed is read to the end of the text; and inside the
tag the first choice named counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from datamodules.example import Grade
from datamodules.grading import mentioned_choices

_CLOSED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_OPEN = re.compile(r"<answer>((?:(?!<answer>).)*)\Z", re.IGNORECASE | re.DOTALL)
_MARKS = " \t\r\n*_`~\"'()[]{}$.,;:!"
"""What may surround an answer without changing it."""

Choices = Mapping[str, tuple[str, ...]]
"""For every choice in canonical form its other spellings."""


def tagged_contents(completion: str, *, lenient: bool = False) -> list[str]:
    """Contents of the answer tags, in order, as they are written.

    Args:
        completion: any text.
        lenient: also read a last tag that was never closed.
    """
    contents: list[str] = _CLOSED.findall(completion)
    if lenient and (cut_off := _OPEN.search(_CLOSED.sub("", completion))):
        contents.append(cut_off[1])
    return contents


def normalise_answer(content: str) -> str:
    """Fold what only looks different, and take surrounding marks away (rule 2)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", content).casefold()).strip(_MARKS)


def grade_tagged_answer(completion: str, answer: str, choices: Choices, *, lenient: bool = False) -> Grade:
    """Grade a completion by its tagged answer; the rules are in the module's docstring.

    Args:
        completion: any text.
        answer: the right choice, a key of `choices`.
        choices: every choice with its other spellings; the key itself always counts as one.
        lenient: read more completions as answers.

    Raises:
        ValueError: if `answer` is no key of `choices`.
    """
    if answer not in choices:
        raise ValueError(f"answer {answer!r} is none of the choices {sorted(choices)}.")
    contents = tagged_contents(completion, lenient=lenient)
    if not contents:
        return Grade(correct=False, parsed=None, reason="no_answer")
    if not lenient and len({normalise_answer(content) for content in contents}) > 1:
        return Grade(correct=False, parsed=None, reason="several_answers")
    parsed = _choice(contents[-1], choices)
    if parsed is None and lenient:
        parsed = _first_choice(contents[-1], choices)
    if parsed is None:
        several = len(mentioned_choices(contents[-1], choices)) > 1
        return Grade(correct=False, parsed=None, reason="several_answers" if several else "not_a_choice")
    correct = parsed == answer
    return Grade(correct=correct, parsed=parsed, reason="correct" if correct else "wrong")


def _choice(content: str, choices: Choices) -> str | None:
    """The choice that the content is, by rule 4."""
    normal = normalise_answer(content)
    for choice, others in choices.items():
        for spelling in (choice, *others):
            wanted = normalise_answer(spelling)
            if normal == wanted or (len(wanted) == 1 and re.match(rf"{re.escape(wanted)}\s*[.):]\s*\S", normal)):
                return choice
    return None


def _first_choice(content: str, choices: Choices) -> str | None:
    """The choice named first, as whole words."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", content))
    for end in range(1, len(words) + 1):
        named = mentioned_choices(" ".join(words[:end]), choices)
        if named:
            return sorted(named)[0]
    return None
