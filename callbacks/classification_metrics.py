"""Precision, recall and F1 per class, and their macro average, from reference and parsed answers.

Pure numpy, and for models trained elsewhere too: two lists of strings are all it needs. An answer that could not be
read (None), or that is no class of the references, counts as wrong: it is a miss of the reference's class and a
prediction of none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_CLASSES = 20
"""Distinct reference answers, as many as TweetEval's emoji task has. More are taken for free answers (numbers, names),
which have no classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """How one class is found. Scores are fractions, `num_` fields count items."""

    num_items: int
    """Items whose reference is this class, at least 1."""
    num_predicted: int
    """Items whose parsed answer is this class."""
    num_correct: int
    precision: float | None
    """num_correct / num_predicted; None where the class was never predicted."""
    recall: float
    """num_correct / num_items."""
    f1: float
    """2 * num_correct / (num_items + num_predicted): the harmonic mean of both, 0 where the class was never found."""


def class_scores(answers: Sequence[str], parsed: Sequence[str | None]) -> dict[str, ClassScores]:
    """Scores of every class that occurs among the references, in alphabetical order.

    Args:
        answers: reference of each item.
        parsed: answer read out of each completion, in the same order; None where none could be read.

    Raises:
        ValueError: if there are no items, or the lists differ in length.
    """
    if len(answers) != len(parsed) or not answers:
        raise ValueError(
            f"{len(answers)} answers and {len(parsed)} parsed ones; both must list the same items, over 0."
        )
    classes, truth = np.unique(np.asarray(answers, dtype=object), return_inverse=True)
    number_of = {name: number for number, name in enumerate(classes)}
    other = len(classes)
    predicted = np.array([number_of.get(answer, other) for answer in parsed])
    num_items = np.bincount(truth, minlength=other)
    num_predicted = np.bincount(predicted, minlength=other + 1)
    num_correct = np.bincount(truth[truth == predicted], minlength=other)
    return {
        name: _scores(int(num_items[number]), int(num_predicted[number]), int(num_correct[number]))
        for name, number in number_of.items()
    }


def macro_f1(answers: Sequence[str], parsed: Sequence[str | None]) -> float | None:
    """Unweighted mean of the F1 of every class that occurs among the references.

    scikit-learn's ``f1_score(average="macro", labels=classes of the references)``.

    Args:
        answers: reference of each item.
        parsed: answer read out of each completion, in the same order; None where none could be read.

    Returns:
        A fraction; None where the references have one class only, or more than `MAX_CLASSES`.

    Raises:
        ValueError: as `class_scores`.

    Example:
        >>> macro_f1(["yes", "yes", "yes", "no"], ["yes", "yes", None, "yes"])  # yes: 2*2/(3+3), no: 0
        0.3333333333333333
    """
    if not 2 <= len(set(answers)) <= MAX_CLASSES:
        return None
    return float(np.mean([scores.f1 for scores in class_scores(answers, parsed).values()]))


def _scores(num_items: int, num_predicted: int, num_correct: int) -> ClassScores:
    return ClassScores(
        num_items=num_items,
        num_predicted=num_predicted,
        num_correct=num_correct,
        precision=num_correct / num_predicted if num_predicted else None,
        recall=num_correct / num_items,
        f1=2 * num_correct / (num_items + num_predicted),
    )
