"""`MathDataModule`: problems with one final answer, such as DAPO-Math-17k; the mathematics setting of the paper.

Version 2 of arXiv:2606.11627 adds mathematics without saying which data; OPCD (arXiv:2602.12275) takes DAPO-Math-17K
and tests on 1,000 problems. Nobody published which; here they are drawn. Departure: a validation split of its own, so
that a checkpoint is not selected on the test items.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import ContextDataModule, Split, require_int
from datamodules.contexts import load_context
from datamodules.duplicates import near_duplicate_clusters
from datamodules.example import Example, Grade, Message
from datamodules.math_answers import MAX_LENGTH, canonical_answer, grade_math_answer
from datamodules.math_values import require_math_verify
from datamodules.row_sources import BadRow, Row, parse_rows, read_rows, text_field
from datamodules.rows import RowAudit
from datamodules.sampling import hold_out_singles

_ASK = (
    "{problem}\n\nReason step by step. At the end give the final answer alone between answer tags, in this form: "
    "<answer>final answer</answer>"
)
_DAPO_FRAME = re.compile(
    r"\s*Solve the following math problem step by step\. The last line of your response should be of the form "
    r"Answer: \$Answer \(without quotes\) where \$Answer is the answer to the problem\.(?P<problem>.*)"
    r"Remember to put your answer on its own line after \"Answer:\"\.\s*",
    re.DOTALL,
)
"""What DAPO-Math-17k writes around every problem: it asks for the answer in another form than ours."""


@dataclass(frozen=True, slots=True)
class MathProblem:
    """One good row."""

    problem: str
    answer: str
    """As `canonical_answer` returns it."""
    data_source: str

    @property
    def id(self) -> str:
        """The same wherever the problem is stored, and in whichever order."""
        return f"mathematics:{hashlib.blake2b(self.problem.encode(), digest_size=8).hexdigest()}"


class MathDataModule(ContextDataModule):
    r"""Mathematical problems; the answer is a number or an expression in <answer> tags, graded by its value.

    Rows hold ``prompt`` (text, or a list of one user message) and ``reward_model`` with ``ground_truth``, as
    DAPO-Math-17k, whose words around the problem are taken away; or ``question``, ``problem`` or ``prompt``, and
    ``answer``. An answer is one line of at most `MAX_LENGTH` characters, a number or LaTeX.

    A problem that occurs again with the same answer counts once (the hub's DAPO-Math-17k holds each a hundred times);
    one that occurs with two answers is left out. Problems with a near duplicate (`datamodules.duplicates`) are all
    trained on. The order of the rows changes nothing.

    `Example.id` is made of the problem's text, `Example.meta` has ``data_source``.

    Args:
        path: A file (``.parquet``, or else JSON lines); a folder with ``train.jsonl``, one written by
            ``datasets.save_to_disk``, or one of parquet files; or ``hub:OWNER/NAME``, whose split ``train`` is read.
        context: Name or path of the privileged context of every item, as `load_context` takes it: hints or experience.
            None: no context.
        num_val: Validation items.
        num_test: Test items.
        split_seed: Which items go where.
        max_bad_share: Share of bad rows that are left out with a warning; more stop the load.
        lenient_grading: Read more completions as answers (`datamodules.math_answers`).
        batch_size: Prompts per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Prompts per evaluation batch, on each rank.
        seed: Order of the training prompts.
        num_workers: Processes per loader; 0 reads in the main process.

    Raises:
        ValueError: if a number is out of range. From `setup`: if too many rows are bad, or there are not enough.
        FileNotFoundError: from `setup`, if a file or the context is missing.
        ImportError: from `setup`, if math-verify is not installed, or `datasets` is needed and not installed.
    """

    def __init__(
        self,
        path: str,
        context: str | None = "mathematics_experience",
        num_val: int = 500,
        num_test: int = 1000,
        split_seed: int = 0,
        max_bad_share: float = 0.0,
        lenient_grading: bool = False,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Check the numbers; nothing is read before `setup`."""
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        self.path = path
        self.context = context
        self.num_val = require_int("num_val", num_val, minimum=1)
        self.num_test = require_int("num_test", num_test, minimum=1)
        self.split_seed = require_int("split_seed", split_seed, minimum=0)
        self.max_bad_share = RowAudit(max_bad_share).max_bad_share  # checked there
        self.lenient_grading = lenient_grading
        self.licences = {"mathematics": "not stated here; DAPO-Math-17k: Apache-2.0"}
        self.notes: list[str] = []

    def load_splits(self) -> dict[Split, list[Example]]:
        """Read the problems, each once, and split them."""
        require_math_verify()  # now, not after the first rollouts
        context = None if self.context is None else load_context(self.context)
        audit = RowAudit(self.max_bad_share)
        rows = read_rows(self.path, audit, split="train", file_names=("train.jsonl",))
        problems, num_repeats, num_contradicting = _distinct(parse_rows(rows, _problem, audit))
        audit.finish()
        if audit.problems:
            rank_zero_warn(audit.report())
        self.row_audit = audit
        clusters = near_duplicate_clusters([problem.problem for problem in problems])
        rng = np.random.default_rng(self.split_seed)
        train, val, test = hold_out_singles(clusters, self.num_val, self.num_test, rng)
        self.notes = [
            f"{len(problems)} problems; {num_repeats} repeated rows and {num_contradicting} problems with two answers "
            f"left out; {len(problems) - sum(len(cluster) == 1 for cluster in clusters)} with a near duplicate, all in "
            "train"
        ]
        return {
            "train": [_example(problems[index], context) for index in train],
            "val": [_example(problems[index], context) for index in val],
            "test": [_example(problems[index], context) for index in test],
        }

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade by the value of the answer in the <answer> tags, by the rules of `datamodules.math_answers`.

        Takes microseconds for whole numbers, milliseconds for most others, and ten seconds at most.

        Raises:
            ImportError: if math-verify is needed and not installed.
            RuntimeError: if math-verify's process does not start.
        """
        return grade_math_answer(completion, example.answer, lenient=self.lenient_grading)

    def summary(self) -> str:
        """Return the number of items by split, and what was found while reading, as text to print."""
        return "\n".join([super().summary(), *self.notes])


def _problem(row: Row) -> MathProblem:
    """Read one row, in either form."""
    fields = row.fields
    name = next((name for name in ("prompt", "question", "problem") if fields.get(name) is not None), "prompt")
    text = text_field({name: _only_turn(fields.get(name))}, name)
    if frame := _DAPO_FRAME.fullmatch(text):
        text = frame["problem"].strip()
    if not text:
        raise BadRow("empty problem")
    reward_model = fields.get("reward_model")
    answer = reward_model.get("ground_truth") if isinstance(reward_model, dict) else fields.get("answer")
    if isinstance(answer, float):
        if not math.isfinite(answer):
            raise BadRow("answer is no finite number")
        answer = format(Decimal(repr(float(answer))), "f")  # 0.00005: 5e-05 would be read as 5 times e, less 5
    elif isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    answer = text_field({"answer": answer}, "answer")
    if len(answer) > MAX_LENGTH or "\n" in answer:
        raise BadRow("answer is more than one short line")
    source = fields.get("data_source")
    return MathProblem(text, canonical_answer(answer), source if isinstance(source, str) else "")


def _only_turn(prompt: Any) -> Any:
    """Return the text of a prompt that is a list of one user message, else what is given."""
    if not isinstance(prompt, list):
        return prompt
    if len(prompt) != 1 or not isinstance(prompt[0], dict) or prompt[0].get("role") != "user":
        raise BadRow("prompt is not one user turn")
    return prompt[0].get("content")


def _distinct(problems: Iterable[MathProblem]) -> tuple[list[MathProblem], int, int]:
    """Keep one of equal problems.

    Returns:
        The problems, sorted by id; how many rows repeat one with its answer; how many problems have two answers, which
        are left out.
    """
    with_text: defaultdict[str, dict[str, MathProblem]] = defaultdict(dict)
    num_rows = 0
    for problem in problems:
        num_rows += 1
        with_text[problem.problem].setdefault(problem.answer, problem)
    kept = [next(iter(answers.values())) for answers in with_text.values() if len(answers) == 1]
    num_repeats = num_rows - sum(len(answers) for answers in with_text.values())
    return sorted(kept, key=lambda problem: problem.id), num_repeats, len(with_text) - len(kept)


def _example(problem: MathProblem, context: str | tuple[Message, ...] | None) -> Example:
    return Example(
        id=problem.id,
        prompt=(Message(role="user", content=_ASK.format(problem=problem.problem)),),
        privileged_context=context,
        answer=problem.answer,
        source="mathematics",
        meta={"data_source": problem.data_source},
    )
