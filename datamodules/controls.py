"""Controls: contexts to evaluate with in place of the real one, so that a score can be told from an artefact.

A model that has become robust to its context by ignoring every context has no harm either. What it does with these
tells the two apart:

    irrelevant   a neutral text of as many words: the cost of any context
    wrong        the same form with false content: does the model still follow a context?
    paraphrase   the same content in other words: was the context learned, or its wording?
    reordered    the same content in another order: demonstrations, list items, or else sentences
    truncated    the first part of it
    system_slot  the context itself as the system message, wherever it was in training
    user_slot    the context itself before the question in the user turn

Of demonstrations, ``wrong`` gives every question the answer of another one, never an equal answer. No rule makes a
text false and keeps its form, so for texts ``wrong``, and for everything ``paraphrase``, is a file: yours, or the one
that is shipped for a context of this package (``contexts/<name>_wrong``, ``contexts/<name>_paraphrase``).
``reordered`` is the paraphrase that needs no file. In a text with two or more list items (lines behind "-", "*" or a
number) only these change places, each place keeping its mark; otherwise the sentences do.

Everything is deterministic. How to evaluate with one: `with_context`, and ``views.context_slot`` for a slot.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from datamodules.contexts import context_names, load_context
from datamodules.example import Example, Message

Context = str | tuple[Message, ...]
ControlKind = Literal["irrelevant", "wrong", "paraphrase", "reordered", "truncated", "system_slot", "user_slot"]
Slot = Literal["system", "user"]
"""Values of `lightning_modules.views.ViewSpec.context_slot` that take any context."""

_LIST_ITEM = re.compile(r"^([ \t]*(?:[-*\u2022]|\d+[.)])[ \t]+)(\S.*)$", re.MULTILINE)
_SENTENCE = re.compile(r"()(\S.*?(?:[.!?](?=\s|\Z)|\Z))", re.DOTALL)
"""A mark that keeps its place (none before a sentence), and what changes places."""

_SLOTS: dict[ControlKind, Slot] = {"system_slot": "system", "user_slot": "user"}

NEUTRAL_TEXT = """
Bread needs four things: flour, water, salt and time. Mix the flour with most of the water and let the bowl rest under
a cloth while you tidy the kitchen. Then add the salt and fold the dough over itself, turning the bowl a little after
each fold. It will feel rough at first and grow smooth within minutes. Leave it near a warm window until it has
doubled. Shape a round loaf with floured hands, set it on a tray, and heat the oven well before baking. A pan of hot
water on the lower shelf keeps the crust soft while the loaf rises. Bake until the top turns brown and the bottom
sounds hollow when tapped. Let it cool on a rack before cutting, for the crumb sets as the steam leaves. Wrapped in
paper, the loaf keeps for several days; older slices make good toast, and dry crumbs thicken a soup.
"""
"""Written for this project; it names no answer of any data set here and asks for nothing. Longer contexts repeat it."""


@dataclass(frozen=True, slots=True)
class Control:
    """What to evaluate with in place of the context."""

    name: str
    """For metrics and tables."""
    context: Context
    slot: Slot | None = None
    """`ViewSpec.context_slot` for this evaluation; None: as in training."""


def make_control(
    kind: ControlKind, context: Context, *, file: str | None = None, fraction: float = 0.5, seed: int = 0
) -> Control:
    """Make a control from a context.

    Args:
        kind: which one; the module's docstring describes them.
        context: the real context, as `load_context` returns it and `Example.privileged_context` holds it.
        file: name or path of the context to take for ``wrong`` or ``paraphrase``, as `load_context` takes it.
        fraction: share of the words (of a text) or of the exchanges (of demonstrations) that ``truncated`` keeps,
            between 0 and 1; at least one is kept and one cut.
        seed: order of ``reordered``, at least 0.

    Raises:
        ValueError: if the kind is unknown; a file is given for another kind, or is the context itself or of the other
            form; the answers can't be deranged; no file is shipped; or there is nothing to cut or to reorder.
        FileNotFoundError: if there is no such file.

    Example:
        >>> make_control("truncated", "one two three four").context
        'one two'
    """
    if kind not in get_args(ControlKind):
        raise ValueError(f"kind={kind!r} is none of {', '.join(get_args(ControlKind))}.")
    if file is not None and kind not in ("wrong", "paraphrase"):
        raise ValueError(f"file={file!r} is for wrong and paraphrase; {kind} is made from the context.")
    if kind in _SLOTS:
        return Control(kind, context, _SLOTS[kind])
    if kind == "irrelevant":
        return Control(kind, _irrelevant(context))
    if kind == "truncated":
        return Control(kind, _truncated(context, fraction))
    if kind == "reordered":
        return Control(kind, _reordered(context, np.random.default_rng(seed)))
    if kind == "wrong" and file is None and not isinstance(context, str):
        return Control(kind, _deranged(context))
    return Control(kind, _from_file(kind, context, file))


def with_context(examples: Sequence[Example], control: Control) -> list[Example]:
    """Return the same items with the control's context in place of theirs.

    Where the context goes is no property of an item: set ``views.context_slot`` to `Control.slot`, unless it is None.
    """
    return [replace(example, privileged_context=control.context) for example in examples]


def count_words(context: Context | None) -> int:
    """White-space separated words of a context, over all turns."""
    texts = [context] if isinstance(context, str) else [message["content"] for message in context or ()]
    return sum(len(text.split()) for text in texts)


def _irrelevant(context: Context) -> Context:
    """Put one word of the neutral text in place of every word; white space and turns stay."""
    neutral = _replace_words(context, start=0)
    return neutral if neutral != context else _replace_words(context, start=1)  # it was the neutral text itself


def _replace_words(context: Context, start: int) -> Context:
    words = itertools.islice(itertools.cycle(NEUTRAL_TEXT.split()), start, None)

    def replaced(text: str) -> str:
        return re.sub(r"\S+", lambda _: next(words), text)

    if isinstance(context, str):
        return replaced(context)
    return tuple(Message(role=message["role"], content=replaced(message["content"])) for message in context)


def _truncated(context: Context, fraction: float) -> Context:
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction={fraction} must be between 0 and 1, without either.")
    if isinstance(context, str):
        ends = [match.end() for match in re.finditer(r"\S+", context)]
        return context[: ends[_num_kept(len(ends), fraction, "words") - 1]]
    return context[: 2 * _num_kept(len(context) // 2, fraction, "exchanges")]


def _num_kept(num_parts: int, fraction: float, unit: str) -> int:
    if num_parts < 2:
        raise ValueError(f"A context of {num_parts} {unit} can't be truncated: something must stay and something go.")
    return min(max(1, math.floor(fraction * num_parts)), num_parts - 1)


def _reordered(context: Context, rng: np.random.Generator) -> Context:
    if not isinstance(context, str):
        exchanges = [context[start : start + 2] for start in range(0, len(context), 2)]
        order = _other_order(exchanges, rng, "exchanges")
        return tuple(message for index in order for message in exchanges[index])
    pattern = _LIST_ITEM if len(_LIST_ITEM.findall(context)) > 1 else _SENTENCE
    parts = [match[2] for match in pattern.finditer(context)]
    new = iter([parts[index] for index in _other_order(parts, rng, "list items or sentences")])
    return pattern.sub(lambda match: match[1] + next(new), context)


def _other_order(parts: Sequence[object], rng: np.random.Generator, unit: str) -> list[int]:
    """Return a random order in which the parts read differently."""
    if all(part == parts[0] for part in parts):
        raise ValueError(f"A context of {len(parts)} {unit}, none unlike another, can't be reordered.")
    while True:
        order = [int(index) for index in rng.permutation(len(parts))]
        if any(parts[index] != part for index, part in zip(order, parts, strict=True)):
            return order


def _deranged(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Give every question the answer of another one, and none an answer equal to its own.

    In the order of the answers, equal ones are neighbours; moving all by the longest run of equals lands every one on
    another answer, if no answer makes up more than half.
    """
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    most_common, count = Counter(answers).most_common(1)[0]
    if 2 * count > len(answers):
        raise ValueError(
            f"{count} of the {len(answers)} demonstrations answer {most_common!r}: they can't all get another one's "
            "answer. Give a file with wrong demonstrations."
        )
    order = sorted(range(len(answers)), key=lambda index: answers[index])
    moved = dict(zip(order, order[count:] + order[:count], strict=True))
    new = iter(answers[moved[index]] for index in range(len(answers)))
    return tuple(
        Message(role="assistant", content=next(new)) if message["role"] == "assistant" else message
        for message in messages
    )


def _from_file(kind: ControlKind, context: Context, file: str | None) -> Context:
    shipped = context_names()
    if file is None:
        names = [f"{name}_{kind}" for name in shipped if load_context(name) == context]
        file = next((name for name in names if name in shipped), None)
    if file is None:
        available = [name.removesuffix(f"_{kind}") for name in shipped if name.endswith(f"_{kind}")]
        raise ValueError(
            f"No {kind} version of this context is shipped (only of {', '.join(available)}); give a file of your own."
        )
    other = load_context(file)
    if other == context:
        raise ValueError(f"file={file!r} is the context itself; {kind} needs another one.")
    if isinstance(other, str) != isinstance(context, str):
        raise ValueError(f"file={file!r} must be {'text' if isinstance(context, str) else 'messages'}, as the context.")
    return other
