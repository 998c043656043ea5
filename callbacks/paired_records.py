"""What a paired evaluation keeps of an item: both views' completions, their grades and what they cost.

Neither torch nor lightning is imported. Reading and writing: `callbacks.removability_files`.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Self, get_args

from datamodules.example import GradeReason


@dataclass(frozen=True, slots=True)
class GradedSample:
    """One more answer to the same item, in one view."""

    completion: str
    parsed: str | None
    reason: GradeReason
    length: int
    """Tokens of the completion, its end token included."""
    finished: bool
    """The completion ended by itself; False: it was cut at the token limit."""

    def __post_init__(self) -> None:
        """Refuse a sample that would spoil a mean.

        Raises:
            ValueError: if the reason is unknown or the length is negative.
        """
        if self.reason not in get_args(GradeReason):
            raise ValueError(f"A sample has reason={self.reason!r}; accepted: {', '.join(get_args(GradeReason))}.")
        if self.length < 0:
            raise ValueError(f"A sample has length={self.length}; a count of tokens is at least 0.")

    @property
    def correct(self) -> bool:
        """The answer is right."""
        return self.reason == "correct"


@dataclass(frozen=True, slots=True)
class PairedRecord:
    """One item of a paired evaluation: both completions, their grades and what they cost."""

    id: str
    """The item's `Example.id`; unique within an evaluation."""
    group: str
    """The item's `Example.group`; "" belongs to no group."""
    answer: str
    """Reference answer in canonical form."""
    completion_no_context: str
    completion_with_context: str
    parsed_no_context: str | None
    """The answer read out of the completion; None where none could be read."""
    parsed_with_context: str | None
    reason_no_context: GradeReason
    """Why the completion counts as it does; only ``correct`` counts as right."""
    reason_with_context: GradeReason
    length_no_context: int
    """Tokens of the completion, its end token included."""
    length_with_context: int
    finished_no_context: bool
    """The completion ended by itself; False: it was cut at the token limit."""
    finished_with_context: bool
    kl: float | None
    """Mean over the no-context completion's tokens of KL(q_x || q_c), in nats; None: not measured."""
    num_kl_tokens: int
    """Tokens that `kl` is the mean of; 0 exactly where `kl` is None."""
    question: str = ""
    """The last user turn of the prompt, for whoever reads the record."""
    further_no_context: tuple[GradedSample, ...] = ()
    """Further answers, drawn independently, where decoding samples and more than one was asked for."""
    further_with_context: tuple[GradedSample, ...] = ()
    kl_to_base: float | None = None
    """Mean over the no-context completion's tokens of KL(q_x || the untrained model's q_x), in nats."""
    log_probability_no_context: float | None = None
    """Mean over the no-context completion's tokens, its end token included, of log q_x(y_t), in nats, at temperature 1;
    None: not measured, or a game, whose turns are answered one by one."""

    def __post_init__(self) -> None:
        """Refuse a record that would spoil a mean.

        Raises:
            ValueError: if the id is empty, a reason is unknown, a count is negative, a mean in nats is not finite,
                or only one of `kl` and `num_kl_tokens` is given.
        """
        if not self.id:
            raise ValueError("PairedRecord.id is empty; pairs and resumed runs join on it.")
        for name in ("reason_no_context", "reason_with_context"):
            if getattr(self, name) not in get_args(GradeReason):
                accepted = ", ".join(get_args(GradeReason))
                raise ValueError(f"Record {self.id!r}: {name}={getattr(self, name)!r}; accepted: {accepted}.")
        for name in ("length_no_context", "length_with_context", "num_kl_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"Record {self.id!r}: {name}={getattr(self, name)}; a count of tokens is at least 0.")
        for name in ("kl", "kl_to_base", "log_probability_no_context"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"Record {self.id!r}: {name}={value}; the model's logits are not finite. Check the weights."
                )
        if (self.kl is None) != (self.num_kl_tokens == 0):
            raise ValueError(
                f"Record {self.id!r}: kl={self.kl} with num_kl_tokens={self.num_kl_tokens}; give both, or None and 0."
            )

    @property
    def correct_no_context(self) -> bool:
        """The no-context view is right."""
        return self.reason_no_context == "correct"

    @property
    def correct_with_context(self) -> bool:
        """The with-context view is right."""
        return self.reason_with_context == "correct"

    def to_json(self) -> str:
        """Return the record as one line of JSON, without a newline."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if `line` is not a JSON object with the fields of a record, or a value is refused. Fields with
                a default may be missing: the file was written before there were such fields.
        """
        values = json.loads(line)  # JSONDecodeError is a ValueError
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(values, dict) or not required <= values.keys() <= known:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"A paired record has the fields {sorted(required)}; found {found}.")
        try:
            for name in ("further_no_context", "further_with_context"):
                values[name] = tuple(GradedSample(**sample) for sample in values.get(name, ()))
            return cls(**values)
        except TypeError as error:  # a string where a number belongs
            raise ValueError(f"Record {values['id']!r} has a value of the wrong type: {error}.") from error
