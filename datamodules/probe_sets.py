"""Small sets of questions of our own that tell what else training has done to a model.

    following  does the model still follow a NEW context? Facts that nobody can know without it or that change a known
               answer, and orders about the form of the answer. A model that ignores every context has no harm either;
               here it shows: the share of followed contexts falls.
    general    short questions of common knowledge, without any context: what was forgotten?

Each is a `ProbeSet`: items, and a rule that grades them. A context is followed if the answer shows it; the same rule
on the answer without the context says how often that happens by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from datamodules.example import Example, Grade
from datamodules.grading import grade_choice_mention

QUESTIONS_PER_ORDER = 6


@dataclass(frozen=True)
class ProbeSet:
    """Items, and what grades an answer to one."""

    examples: Sequence[Example]
    grade: Callable[[Example, str], Grade]
    """Never raises, whatever the text; `ContextDataModule.grade` is one."""


def following_probes() -> ProbeSet:
    """Facts (groups ``invented_fact`` and ``contrary_fact``) and orders (group ``order``), each as the context."""
    examples: list[Example] = []
    rules: dict[str, Callable[[str], Grade]] = {}
    for row in _rows("facts"):
        id_ = f"following/{row['id']}"
        examples.append(_question(id_, row["question"], row["answer"], row["fact"], f"{row['kind']}_fact"))
        rules[id_] = _mention_rule(row["answer"], row["accepted"], row["prior"])
    questions = _rows("general")
    for number, row in enumerate(_rows("orders")):
        start = number * QUESTIONS_PER_ORDER
        for question in questions[start : start + QUESTIONS_PER_ORDER]:
            id_ = f"following/{row['id']}/{question['id']}"
            examples.append(_question(id_, question["question"], row["id"], row["order"], "order"))
            rules[id_] = _order_rule(row["id"])
    return ProbeSet(examples, lambda example, completion: rules[example.id](completion))


def general_probes() -> ProbeSet:
    """Questions of common knowledge, without a context."""
    examples: list[Example] = []
    rules: dict[str, Callable[[str], Grade]] = {}
    for row in _rows("general"):
        id_ = f"general/{row['id']}"
        examples.append(_question(id_, row["question"], row["answer"], None, ""))
        rules[id_] = _mention_rule(row["answer"], row["accepted"], ())
    return ProbeSet(examples, lambda example, completion: rules[example.id](completion))


def _question(id_: str, question: str, answer: str, context: str | None, group: str) -> Example:
    return Example(
        id=id_,
        prompt=({"role": "user", "content": question},),
        privileged_context=context,
        answer=answer,
        source="probes",
        group=group,
    )


def _rows(name: str) -> list[dict[str, Any]]:
    text = (files("datamodules") / "probes" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _mention_rule(answer: str, accepted: Sequence[str], prior: Sequence[str]) -> Callable[[str], Grade]:
    """The answer has to be mentioned, and what would be right without the context must not be."""
    choices = {answer: tuple(accepted)} | ({prior[0]: tuple(prior[1:])} if prior else {})
    return lambda completion: grade_choice_mention(completion, answer, choices)


def _order_rule(order: str) -> Callable[[str], Grade]:
    follows = ORDERS[order]

    def grade(completion: str) -> Grade:
        followed = follows(completion.strip())
        return Grade(followed, order if followed else None, "correct" if followed else "wrong")

    return grade


def _is_json_answer(text: str) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "answer" in value


ORDERS: Mapping[str, Callable[[str], bool]] = {
    "upper_case": lambda text: text.isupper() and sum(letter.isalpha() for letter in text) > 1,
    "starts_with_reply": lambda text: text.startswith("REPLY:"),
    "ends_with_over": lambda text: text.rstrip(".!").endswith("OVER"),
    "one_word": lambda text: len(text.split()) == 1,
    "json": _is_json_answer,
    "brackets": lambda text: text.startswith("[") and text.endswith("]"),
}
"""Whether a stripped completion follows the order of this id in ``probes/orders.jsonl``."""
