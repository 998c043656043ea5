"""Medical multiple-choice questions, read from the files that their authors publish.

MedMCQA (Pal et al. 2022, MIT)
    ``dev.json``, ``train.json``: JSON lines with ``question``, ``opa`` to ``opd``, ``cop`` (the right option, counted
    from 1), ``choice_type``, ``subject_name``, ``topic_name``, ``id``. The hub's copy counts ``cop`` from 0.
MedQA (Jin et al. 2021, MIT)
    JSON lines with ``question``, ``options`` (letter: text; four or five), ``answer_idx`` (letter), ``answer`` (text).
PubMedQA (Jin et al. 2019, MIT)
    ``ori_pqal.json`` or ``test_set.json``: one object, PubMed number: ``QUESTION``, ``CONTEXTS``, ``final_decision``.
MMLU (Hendrycks et al. 2021, MIT)
    ``SUBJECT_test.csv`` without a header: question, four options, the right letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from datamodules.row_sources import BadRow, Row, parse_rows, read_rows, text_field
from datamodules.rows import RowAudit, read_table

LETTERS = "ABCDE"
_MEDMCQA_OPTIONS = ("opa", "opb", "opc", "opd")
_MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")

MMLU_MEDICAL_SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
"""The six of MultiMedQA (Singhal et al. 2023)."""

CopBase = Literal["auto", 0, 1]


@dataclass(frozen=True, slots=True)
class MedicalQuestion:
    """One good row."""

    id: str
    """``<source>:<id in the file>``, or the place in the file where the rows have no id."""
    source: str
    question: str
    options: tuple[str, ...]
    """Texts of the options A, B and so on; empty where the choices speak for themselves."""
    choices: tuple[str, ...]
    """What may be answered: letters, or yes, no and maybe."""
    answer: str
    """The right one of `choices`."""
    passage: str = ""
    """Text that the question is about."""
    subject: str = ""
    topic: str | None = None
    choice_type: str = ""
    """MedMCQA's ``single`` or ``multi``; see docs/medical.md."""


def read_medmcqa(path: str, audit: RowAudit, cop_base: CopBase) -> tuple[list[MedicalQuestion], int]:
    """Read MedMCQA's labelled rows: by default the official validation split.

    Args:
        path: A file, a folder or a name on the hub, as `read_rows` takes it.
        audit: Counts the rows and takes the bad ones.
        cop_base: What ``cop`` counts from; ``auto`` reads it off the values, see `find_cop_base`.

    Returns:
        The good rows, sorted by id: the same however the file is ordered. And what ``cop`` counts from.

    Raises:
        ValueError: if the values of ``cop`` do not say what they count from.
        FileNotFoundError, ImportError: as `read_rows`.
    """
    rows = list(read_rows(path, audit, split="validation", file_names=("dev.json",)))
    base = find_cop_base(path, rows) if cop_base == "auto" else cop_base
    return sorted(_good(rows, lambda row: _medmcqa(row, base), audit), key=lambda question: question.id), base


def find_cop_base(path: str, rows: Iterable[Row]) -> Literal[0, 1]:
    """Return what ``cop`` counts from: 0 if a 0 occurs, 1 if a 4 occurs.

    Raises:
        ValueError: if both or neither occur.
    """
    values = {cop for row in rows if _is_int(cop := row.fields.get("cop"))}
    if values and (0 in values) == (4 in values):
        raise ValueError(
            f"path={path!r}: cop has the values {sorted(values)}. A 0 says that it counts from 0, a 4 that it counts "
            f"from 1, and {'both' if 0 in values else 'neither'} occur; set cop_base to 0 (the hub's copy) or 1 (the "
            "original files)."
        )
    return 0 if 0 in values else 1


def read_medqa(path: str, audit: RowAudit) -> list[MedicalQuestion]:
    """Read MedQA; in a folder ``test.jsonl``, on the hub the split ``test``."""
    names = ("test.jsonl", "phrases_no_exclude_test.jsonl")
    return list(_good(read_rows(path, audit, split="test", file_names=names), _medqa, audit))


def read_pubmedqa(path: str, audit: RowAudit) -> list[MedicalQuestion]:
    """Read PubMedQA's labelled file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not one whole JSON object.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"pubmedqa={path!r} is no file; give ori_pqal.json or test_set.json.")
    try:
        entries = json.loads(file.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not whole JSON: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold one JSON object, PubMed number to question.")
    audit.files.append(file)
    audit.num_rows += len(entries)
    rows = (Row(file, key, entry if isinstance(entry, dict) else {}) for key, entry in entries.items())
    return list(_good(rows, _pubmedqa, audit))


def read_mmlu(path: str, audit: RowAudit) -> list[MedicalQuestion]:
    """Read MMLU: one ``SUBJECT_test.csv``, or from a folder those of the six medical subjects.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    location = Path(path)
    files = [location]
    if location.is_dir():
        files = [location / f"{subject}_test.csv" for subject in MMLU_MEDICAL_SUBJECTS]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"mmlu={path!r}: {missing} missing; give a folder with all medical subjects, or one file."
        )
    rows = (Row(file, line, row) for file in files for line, row in read_table(file, audit, header=_MMLU_COLUMNS))
    return list(_good(rows, _mmlu, audit))


def _good(rows: Iterable[Row], parse: Callable[[Row], MedicalQuestion], audit: RowAudit) -> Iterator[MedicalQuestion]:
    """Yield the questions of the good rows; the others go to `audit`."""
    seen: set[str] = set()

    def parse_new(row: Row) -> MedicalQuestion:
        question = parse(row)
        if question.id in seen:
            raise BadRow("id of an earlier row")
        seen.add(question.id)
        return question

    return parse_rows(rows, parse_new, audit)


def _medmcqa(row: Row, base: int) -> MedicalQuestion:
    if str(row.fields.get("ope") or "").strip():
        raise BadRow("more than four options")
    options = tuple(text_field(row.fields, name) for name in _MEDMCQA_OPTIONS)
    cop = row.fields.get("cop")
    if not _is_int(cop) or not base <= cop < base + len(options):
        raise BadRow(f"cop is none of {base} to {base + len(options) - 1}")
    topic = row.fields.get("topic_name")
    return MedicalQuestion(
        id=f"medmcqa:{text_field(row.fields, 'id')}",
        source="medmcqa",
        question=text_field(row.fields, "question"),
        options=options,
        choices=tuple(LETTERS[: len(options)]),
        answer=LETTERS[cop - base],
        subject=text_field(row.fields, "subject_name"),
        topic=topic if isinstance(topic, str) else None,
        choice_type=str(row.fields.get("choice_type") or ""),
    )


def _medqa(row: Row) -> MedicalQuestion:
    given = row.fields.get("options")
    present = {letter: text for letter, text in given.items() if text is not None} if isinstance(given, dict) else {}
    letters = tuple(sorted(present))
    if not 2 <= len(letters) <= len(LETTERS) or letters != tuple(LETTERS[: len(letters)]):
        raise BadRow("options are not A, B and so on up to E")
    options = tuple(text_field(present, letter) for letter in letters)
    answer = str(row.fields.get("answer_idx"))
    if answer not in letters:
        raise BadRow("answer_idx is no option")
    right = options[letters.index(answer)]
    if str(row.fields.get("answer", right)).strip() != right:
        raise BadRow("answer is not the option of answer_idx")
    topic = row.fields.get("meta_info")
    return MedicalQuestion(
        id=f"medqa:{row.place}",
        source="medqa",
        question=text_field(row.fields, "question"),
        options=options,
        choices=letters,
        answer=answer,
        topic=topic if isinstance(topic, str) else None,
    )


def _pubmedqa(row: Row) -> MedicalQuestion:
    choices = ("yes", "no", "maybe")
    passages = row.fields.get("CONTEXTS")
    if not isinstance(passages, list) or not passages or not all(isinstance(text, str) for text in passages):
        raise BadRow("CONTEXTS is no list of texts")
    answer = row.fields.get("final_decision")
    if answer not in choices:
        raise BadRow("final_decision is none of yes, no, maybe")
    return MedicalQuestion(
        id=f"pubmedqa:{row.place}",
        source="pubmedqa",
        question=text_field(row.fields, "QUESTION"),
        options=(),
        choices=choices,
        answer=answer,
        passage="\n\n".join(text.strip() for text in passages),
    )


def _mmlu(row: Row) -> MedicalQuestion:
    letters = tuple(LETTERS[:4])
    if row.fields["answer"] not in letters:
        raise BadRow("answer is none of A to D")
    subject = Path(row.file).name.removesuffix("_test.csv")
    return MedicalQuestion(
        id=f"mmlu:{subject}:{row.place}",
        source="mmlu",
        question=text_field(row.fields, "question"),
        options=tuple(text_field(row.fields, letter) for letter in letters),
        choices=letters,
        answer=row.fields["answer"],
        subject=subject,
    )


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
