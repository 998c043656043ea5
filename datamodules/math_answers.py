r"""Grading of mathematical answers in <answer> tags, by value: "1/2" is "\frac{1}{2}" is "0.5".

Rules of the strict mode, in this order:

1. Tags are read as in `datamodules.tagged_answers`: no closed tag with content is ``no_answer``.
2. If a tag holds ``\boxed{...}``, its content is what stands in the box: models are trained to write so. A box outside
   the tags is not read.
3. White space, dollar signs, ``\(...\)``, Markdown marks and a final full stop around an answer change nothing.
4. Several tags, or boxes in a tag, that are not all equal in value: ``several_answers``.
5. Whole numbers, also with commas between thousands, are compared as such. Everything else is read as LaTeX and
   compared by the library math-verify: fractions, decimals (to 6 places), roots, powers, sets, intervals, equations
   ("x = 5" is 5). A percent sign or a unit behind a number is not compared. Arithmetic need not be carried out: "2+3"
   is 5. A list of several values is not one of them: "3 or 5" is never 5.
6. What can't be read within `TIME_LIMIT`, or is longer than `MAX_LENGTH`, is ``not_a_choice``. What can't be compared
   in time is ``wrong``.

The lenient mode reads the last tag alone, closed or not; without any tag, the last box of the completion.

No text is evaluated as Python. math-verify's readers of plain expressions use SymPy's ``parse_expr``, which does that;
so only its reader of LaTeX is used, which has a grammar.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from typing import Literal

from datamodules.example import Grade
from datamodules.tagged_answers import tagged_contents

MAX_LENGTH = 400
"""Characters of an answer that are read; longer ones are a derivation."""
MAX_ANSWERS = 4
"""Different answers in one completion that are compared; with more of them it is no answer anyway."""
TIME_LIMIT = 5
"""Seconds for each of reading the right answer, reading the given one, and comparing them."""
_PROCESS_TIME_LIMIT = 60
"""Seconds for a process of its own, which also has to import SymPy."""

Verdict = Literal["equal", "different", "unreadable"]

_DELIMITERS = r"\\?\$|\\[()\[\]]"
"""Of formulas in LaTeX."""
_WHOLE_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+)", re.ASCII)
_AROUND = (("\\(", "\\)"), ("\\[", "\\]"), ("$", "$"), ("**", "**"), ("*", "*"), ("`", "`"))


def grade_math_answer(completion: str, answer: str, *, lenient: bool = False) -> Grade:
    """Grade a completion by its tagged answer; the rules are in the module's docstring.

    Args:
        completion: Any text.
        answer: The right answer, a number or an expression in LaTeX.
        lenient: Read more completions as answers.

    Returns:
        The grade; `Grade.parsed` is the answer as it was written, but for what changes nothing.

    Raises:
        ImportError: if math-verify is needed and not installed.
    """
    contents = tagged_contents(completion, lenient=lenient)
    answers = [bare for content in contents for bare in _boxes(content) or [content]]
    if lenient:
        answers = (answers or _boxes(completion))[-1:]
    distinct = list(dict.fromkeys(map(canonical_answer, answers)))
    if not distinct:
        return Grade(correct=False, parsed=None, reason="no_answer")
    given = distinct[-1]
    if len(distinct) > MAX_ANSWERS or any(compare(given, other) != "equal" for other in distinct[:-1]):
        return Grade(correct=False, parsed=None, reason="several_answers")
    verdict = compare(canonical_answer(answer), given)
    if verdict == "unreadable":
        return Grade(correct=False, parsed=None, reason="not_a_choice")
    correct = verdict == "equal"
    return Grade(correct=correct, parsed=given, reason="correct" if correct else "wrong")


def compare(answer: str, given: str) -> Verdict:
    """Compare two answers by value, in bounded time and from any thread.

    math-verify bounds its time by a signal, which only the main thread may set; elsewhere a process of its own does
    the comparison, which takes a second or two.

    Args:
        answer: The right answer, as `canonical_answer` returns it.
        given: The one to judge, likewise. The order matters to math-verify.

    Raises:
        ImportError: if math-verify is needed and not installed.
        RuntimeError: if the process cannot be started.
    """
    if answer == given:
        return "equal"
    if _WHOLE_NUMBER.fullmatch(answer) and _WHOLE_NUMBER.fullmatch(given):
        return "different"
    if max(len(answer), len(given)) > MAX_LENGTH:
        return "unreadable"
    return _compare_values(answer, given)


def require_math_verify() -> None:
    """Raise an ImportError that says what to install, if math-verify is missing."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("Grading mathematics needs math-verify: pip install 'context-returns[mathematics]'.")


@functools.lru_cache(maxsize=65536)
def _compare_values(answer: str, given: str) -> Verdict:
    """Remembered, for one answer is given many times over, and reading takes milliseconds."""
    require_math_verify()
    if threading.current_thread() is threading.main_thread():
        return _compare_here(answer, given)
    return _compare_in_process(answer, given)


def _compare_here(answer: str, given: str) -> Verdict:
    """Compare by math-verify; for the main thread."""
    from math_verify import LatexExtractionConfig, parse, verify

    right, judged = (
        parse(
            # One pair of dollar signs, around everything: of several formulas the library would read one alone.
            f"${re.sub(_DELIMITERS, ' ', text).replace('°', ' ')}$",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=TIME_LIMIT,
        )
        for text in (answer, given)
    )
    if not right or not judged:
        return "unreadable"
    return "equal" if verify(right, judged, timeout_seconds=TIME_LIMIT) else "different"


def _compare_in_process(answer: str, given: str) -> Verdict:
    """Compare in the main thread of a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "datamodules.math_answers"],
            input=json.dumps([answer, given]),
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROCESS_TIME_LIMIT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    except subprocess.TimeoutExpired:
        return "unreadable"
    if done.returncode > 0:
        raise RuntimeError(f"Comparing {given!r} with {answer!r} in a process failed: {done.stderr[-500:]}")
    # A process that a signal ended ran out of memory or stack over the answer.
    return "unreadable" if done.returncode else json.loads(done.stdout)


def _boxes(text: str) -> list[str]:
    r"""Return what the innermost ``\boxed{...}`` hold, braces balanced; one that is not closed holds nothing."""
    found = []
    opened: list[tuple[int, bool]] = []  # where the content begins, and whether it is a box's
    for token in re.finditer(r"\\boxed\s*\{|(?<!\\)[{}]", text):
        if token[0] != "}":
            opened.append((token.end(), token[0] != "{"))
        elif opened:
            begin, is_box = opened.pop()
            if is_box and "\\boxed" not in text[begin : token.start()]:
                found.append(text[begin : token.start()])
    return found


def canonical_answer(text: str) -> str:
    """Take away what changes nothing (rule 3), and write whole numbers in plain digits."""
    text = " ".join(text.split()).replace("\N{MINUS SIGN}", "-")
    before = None
    while text != before:
        before = text
        text = text.removesuffix(".").strip()
        for left, right in _AROUND:
            if len(text) >= len(left) + len(right) and text.startswith(left) and text.endswith(right):
                text = text[len(left) : len(text) - len(right)].strip()
    if len(text) <= MAX_LENGTH and _WHOLE_NUMBER.fullmatch(text):
        return str(int(re.sub(r"[^\d+-]", "", text)))
    return text


if __name__ == "__main__":
    json.dump(_compare_here(*json.load(sys.stdin)), sys.stdout)
