"""`MedicalDataModule`: MedMCQA, the paper's medical questions, and other medical questions to transfer to.

The medical setting of arXiv:2606.11627 (data as in OPCD, arXiv:2602.12275) is MedMCQA with 500 questions held out.
Nobody published which; here they are drawn from the labelled official validation split. Departure: OPCD holds out one
set; here validation and test are two of 500 each, so that a checkpoint is not selected on the test items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import ContextDataModule, Split, require_int
from datamodules.contexts import load_context
from datamodules.duplicates import near_duplicate_clusters
from datamodules.example import Example, Grade, Message
from datamodules.medical_formats import (
    CopBase,
    MedicalQuestion,
    read_medmcqa,
    read_medqa,
    read_mmlu,
    read_pubmedqa,
)
from datamodules.rows import RowAudit
from datamodules.sampling import hold_out_singles
from datamodules.tagged_answers import answers_in_tags, grade_tagged_answer

_ASK_LETTER = "{question}\n\n{options}\n\nWhich option is right? End your reply with {answers}."
_ASK_ABOUT_ABSTRACT = (
    "{passage}\n\nWhat does this abstract let one conclude?\n{question}\n\nEnd your reply with {answers}."
)


@dataclass(frozen=True)
class TransferSets:
    """Medical questions of other data sets, in their authors' files; `datamodules.medical_formats` describes these."""

    medqa: str = ""
    """MedQA (USMLE): file, folder, or ``hub:`` and a name. Empty: none."""
    pubmedqa: str = ""
    """PubMedQA: ``ori_pqal.json`` or ``test_set.json``. Empty: none."""
    mmlu: str = ""
    """MMLU: folder with the test files of its six medical subjects, or one such file. Empty: none."""


class MedicalDataModule(ContextDataModule):
    """MedMCQA: questions of medical entrance examinations with four options; the answer is a letter in <answer> tags.

    Test and validation have exactly the sizes asked for, the rest is training. Questions that have an exact or near
    duplicate (`datamodules.duplicates`), with or without their options, are all trained on, so that no duplicate of a
    training question is evaluated. The order of the rows in the file changes nothing.

    `Example.id` is the source and the id in the file; `Example.source` is ``medmcqa``, or the transfer set's name;
    `Example.meta` has ``subject``, ``topic``, ``choice_type`` and ``choices`` (what may be answered, parted by spaces).
    `Example.group` is the subject if `subjects` is given, else empty: of 500 items, 21 subjects would have 24 each, too
    few to say anything. In transfer sets it is the set's name.

    Args:
        path: MedMCQA's labelled rows: ``dev.json`` or the folder that holds it (``train.json`` too, if named); a folder
            written by ``datasets.save_to_disk``; or ``hub:OWNER/NAME``, whose split ``validation`` is read.
        context: Name or path of the privileged context of every item, as `load_context` takes it. None: no context.
        subjects: Subjects to keep, by their names in the data. None: all.
        transfer: Test on these sets instead of MedMCQA; training and validation stay the same. Questions that have a
            duplicate in MedMCQA are left out.
        num_val: Validation items.
        num_test: Test items; with `transfer` they are held out all the same, and the sets are tested on whole.
        split_seed: Which items go where.
        max_bad_share: Share of bad rows, over all files, that are left out with a warning; more stop the load.
        lenient_grading: Read more completions as answers (`datamodules.tagged_answers`), to compare with OPCD's.
        cop_base: What ``cop`` counts from. ``auto`` reads it off the data: 1 if a 4 occurs, 0 if a 0 occurs.
        batch_size: Prompts per optimizer step, over all ranks together; a multiple of the number of ranks.
        eval_batch_size: Prompts per evaluation batch, on each rank.
        seed: Order of the training prompts.
        num_workers: Processes per loader; 0 reads in the main process.

    Raises:
        ValueError: if a number is out of range, `subjects` is empty, or `transfer` names no set. From `setup`: if too
            many rows are bad, a subject does not occur, the base of ``cop`` is not clear, or there are not enough rows.
        FileNotFoundError: from `setup`, if a file or the context is missing.
        ImportError: from `setup`, if `datasets` is needed and not installed.
    """

    def __init__(
        self,
        path: str,
        context: str | None = "medical_system_prompt",
        subjects: list[str] | None = None,
        transfer: TransferSets | None = None,
        num_val: int = 500,
        num_test: int = 500,
        split_seed: int = 0,
        max_bad_share: float = 0.0,
        lenient_grading: bool = False,
        cop_base: CopBase = "auto",
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Check names and numbers; nothing is read before `setup`."""
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        if subjects == []:
            raise ValueError("subjects=[] keeps nothing; name at least one, or give null for all.")
        if transfer == TransferSets():
            raise ValueError("transfer names no set; give the path of medqa, pubmedqa or mmlu, or null.")
        self.path = path
        self.context = context
        self.subjects = subjects
        self.transfer = transfer
        self.num_val = require_int("num_val", num_val, minimum=1)
        self.num_test = require_int("num_test", num_test, minimum=1)
        self.split_seed = require_int("split_seed", split_seed, minimum=0)
        self.max_bad_share = RowAudit(max_bad_share).max_bad_share  # checked there
        self.lenient_grading = lenient_grading
        if cop_base not in ("auto", 0, 1):
            raise ValueError(f"cop_base={cop_base!r} must be auto, 0 or 1.")
        self.cop_base = cop_base
        self.licences = dict.fromkeys(("medmcqa", "medqa", "pubmedqa", "mmlu"), "MIT")
        self.notes: list[str] = []

    def load_splits(self) -> dict[Split, list[Example]]:
        """Read the files and split MedMCQA, as the class says."""
        context = None if self.context is None else load_context(self.context)
        audit = RowAudit(self.max_bad_share)
        questions, base = read_medmcqa(self.path, audit, self.cop_base)
        others = [] if self.transfer is None else _read_transfer(self.transfer, audit)
        audit.finish()
        if audit.problems:
            rank_zero_warn(audit.report())
        self.row_audit = audit
        if self.subjects is not None:
            questions = _of_subjects(questions, self.subjects)
        clusters = _duplicates(questions)
        rng = np.random.default_rng(self.split_seed)
        train, val, test = hold_out_singles(clusters, self.num_val, self.num_test, rng)
        self.notes = [
            f"{len(questions)} MedMCQA questions, cop counts from {base}; "
            f"{len(questions) - sum(len(cluster) == 1 for cluster in clusters)} with a near duplicate, all in train"
        ]
        tested = [questions[index] for index in test]
        if self.transfer is not None:
            tested = _without_copies(others, questions)
            self.notes.append(f"{len(others) - len(tested)} transfer questions left out, for MedMCQA holds them too")
        by_subject = self.subjects is not None
        return {
            "train": [_example(questions[index], context, by_subject) for index in train],
            "val": [_example(questions[index], context, by_subject) for index in val],
            "test": [_example(question, context, by_subject) for question in tested],
        }

    def grade(self, example: Example, completion: str) -> Grade:
        """Grade by the letter (or yes, no, maybe) in the <answer> tags, as `datamodules.tagged_answers` says."""
        choices = dict.fromkeys(str(example.meta["choices"]).split(), ())
        return grade_tagged_answer(completion, example.answer, choices, lenient=self.lenient_grading)

    def summary(self) -> str:
        """Return the number of items by split and group, and what was found while reading, as text to print."""
        return "\n".join([super().summary(), *self.notes])


def _read_transfer(transfer: TransferSets, audit: RowAudit) -> list[MedicalQuestion]:
    """Read the sets that are named."""
    readers = ((transfer.medqa, read_medqa), (transfer.pubmedqa, read_pubmedqa), (transfer.mmlu, read_mmlu))
    return [question for path, read in readers if path for question in read(path, audit)]


def _of_subjects(questions: Sequence[MedicalQuestion], subjects: Sequence[str]) -> list[MedicalQuestion]:
    """Keep the questions of `subjects`.

    Raises:
        ValueError: if a subject has no question; names those that have.
    """
    counts = Counter(question.subject for question in questions)
    unknown = [subject for subject in subjects if subject not in counts]
    if unknown:
        there = ", ".join(f"{subject} ({count})" for subject, count in counts.most_common())
        raise ValueError(f"subjects={list(subjects)}: {unknown} not in the data; there are {there}.")
    return [question for question in questions if question.subject in subjects]


def _duplicates(questions: Sequence[MedicalQuestion]) -> list[list[int]]:
    """Cluster the questions by their wording, and by their wording together with the options: either is a copy."""
    whole = near_duplicate_clusters([" ".join([question.question, *question.options]) for question in questions])
    links = [(cluster[0], index) for cluster in whole for index in cluster[1:]]
    return near_duplicate_clusters([question.question for question in questions], links)


def _without_copies(others: Sequence[MedicalQuestion], known: Sequence[MedicalQuestion]) -> list[MedicalQuestion]:
    """Leave out the questions that have an exact or near duplicate among `known`."""
    clusters = _duplicates([*known, *others])
    copies = {index for cluster in clusters if cluster[0] < len(known) for index in cluster}
    return [question for index, question in enumerate(others, start=len(known)) if index not in copies]


def _example(question: MedicalQuestion, context: str | tuple[Message, ...] | None, by_subject: bool) -> Example:
    """Ask the question."""
    template = _ASK_ABOUT_ABSTRACT if question.passage else _ASK_LETTER
    options = zip(question.choices, question.options, strict=False)
    content = template.format(
        passage=question.passage,
        question=question.question,
        options="\n".join(f"{letter}. {text}" for letter, text in options),
        answers=answers_in_tags(question.choices),
    )
    subject = question.subject if by_subject else ""
    return Example(
        id=question.id,
        prompt=(Message(role="user", content=content),),
        privileged_context=context,
        answer=question.answer,
        source=question.source,
        group=subject if question.source == "medmcqa" else question.source,
        meta={
            "subject": question.subject,
            "topic": question.topic,
            "choice_type": question.choice_type,
            "choices": " ".join(question.choices),
        },
    )
