"""`TextSource`: texts with one label each, read from the files that their authors publish.

Formats:
    tweeteval   a folder of TweetEval (Barbieri et al. 2020): ``{train,val,test}_text.txt``, one text a line;
                ``{train,val,test}_labels.txt``, one number a line; ``mapping.txt``, number and name. Any sub-task.
    hatecheck   ``test_suite_cases.csv`` of HateCheck (Röttger et al. 2021); cases of one ``templ_id`` stay together,
                with those of its spelling variants (``spell_*``), which no comparison of letters recognises
    ethos       ``Ethos_Dataset_Binary.csv`` of ETHOS (Mollas et al. 2022): semicolons; ``isHate`` is the share of
                annotators, hateful from 0.5
    table       any CSV file with a header
    json_lines  any file of one JSON object a line
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.example import MetaValue
from datamodules.grading import mentioned_choices
from datamodules.rows import RowAudit, find_file, read_json_lines, read_lines, read_table, require_columns

Format = Literal["tweeteval", "hatecheck", "ethos", "table", "json_lines"]

_HATE = {"hateful": "yes", "non-hateful": "no"}
_YES_NO = {"not-offensive": "no", "offensive": "yes"}
_HATEFUL_FROM = 0.5
"""Of ETHOS's scores, as its authors binarise them."""

_LICENCES: Mapping[Format, str] = {
    "tweeteval": "released without restrictions by TweetEval; Twitter's terms may apply to the texts",
    "hatecheck": "CC BY 4.0",
    "ethos": "GPL-3.0",
}
_ASK_HATE = (
    "Does this text express hatred towards people for the group they belong to, such as their gender, religion, origin "
    "or disability?\n\nText: {text}\n\nEnd your reply with {answers}."
)
_ASK_OFFENSIVE = (
    "Is this post offensive, that is, rude, insulting, threatening or profane, whoever it is about?\n\n"
    "Post: {text}\n\nEnd your reply with {answers}."
)
_ASK_LABEL = "Which label fits this text best?\n\nText: {text}\n\nEnd your reply with {answers}."


@dataclass
class TextSource:
    """One data set of texts with one label each, and how it is asked about."""

    format: Format
    """Layout of the files; `datamodules.text_sources` describes them."""
    path: str
    """The folder (tweeteval) or the file (all others)."""
    name: str = ""
    """Name in ids, metrics and datasheets, unique among the sources. Empty: the format's name."""
    question: str = ""
    """The whole prompt. ``{text}`` stands for the text, ``{answers}`` for the answers in their tags. Empty: our wording
    for hate (hatecheck, ethos), for offence (tweeteval's offensive) or for labels in general."""
    label_map: dict[str, str] = field(default_factory=dict)
    """Answer for each label of the files; a row with any other label is bad. Labels: ``hateful`` and ``non-hateful``
    (hatecheck, ethos), the names of mapping.txt (tweeteval), the label column's values (table, json_lines). Quote yes
    and no in YAML. Empty: yes or no for hate and offence, else the names of mapping.txt; table and json_lines need it.
    """
    text_column: str = "text"
    """Column or key of the text (table, json_lines)."""
    label_column: str = "label"
    """Column or key of the label (table, json_lines)."""
    template_column: str = ""
    """Column or key whose equal values keep rows in one split (table, json_lines). Empty: none."""
    delimiter: str = ","
    """Between the columns (table)."""
    licence: str = ""
    """Licence of the data, for datasheets. Empty: what the authors of a known format state."""

    def __post_init__(self) -> None:
        """Fill in the format's defaults.

        Raises:
            ValueError: if the format is unknown, the question lacks ``{text}``, or a label map is missing.
        """
        if self.format not in get_args(Format):
            raise ValueError(f"format={self.format!r} is none of {', '.join(get_args(Format))}.")
        self.name = self.name or self.format
        if self.question and "{text}" not in self.question:
            raise ValueError(f"Source {self.name!r}: question={self.question!r} must contain {{text}}.")
        if self.format in ("table", "json_lines") and not self.label_map:
            raise ValueError(f'Source {self.name!r}: give label_map, such as {{"1": "yes", "0": "no"}}.')
        if self.format in ("hatecheck", "ethos"):
            self.label_map = self.label_map or dict(_HATE)
        self.licence = self.licence or _LICENCES.get(self.format, "not stated")


def safety_mix(tweeteval: str, hatecheck: str, ethos: str) -> list[TextSource]:
    """Return the three sources of the paper's safety setting, asked about in our wording, answered yes or no.

    Args:
        tweeteval: Folder of TweetEval's task ``offensive``.
        hatecheck: HateCheck's ``test_suite_cases.csv``.
        ethos: ETHOS's ``Ethos_Dataset_Binary.csv``.
    """
    return [TextSource("tweeteval", tweeteval), TextSource("hatecheck", hatecheck), TextSource("ethos", ethos)]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One good row."""

    id: str
    """``<source>:<place>``, the same for the same files."""
    text: str
    """Without the white space around it."""
    answer: str
    template: str
    """Rows with the same one are of one mould; "": of none."""
    meta: Mapping[str, MetaValue]


@dataclass(frozen=True, slots=True)
class ReadSource:
    """The rows of a source and how they are asked about."""

    rows: list[LabelledText]
    answers: tuple[str, ...]
    """Every legal answer, in the order of the label map."""
    question: str
    """With ``{text}`` in it, the answers already filled in."""


@dataclass(frozen=True, slots=True)
class _RawRow:
    path: Path
    line: int
    place: str
    text: str
    label: str
    template: str = ""
    meta: Mapping[str, MetaValue] = field(default_factory=dict)


def read_source(source: TextSource, audit: RowAudit) -> ReadSource:
    """Read every row of a source; bad ones go to `audit`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file lacks a column or a header, or an answer can't be graded.
    """
    label_map = source.label_map
    if source.format == "tweeteval" and not label_map:
        names = _tweeteval_names(Path(source.path)).values()
        label_map = _YES_NO if set(names) == set(_YES_NO) else {name: name for name in names}
    rows = []
    for raw in _READERS[source.format](source, audit):
        if not raw.text.strip():
            audit.reject(raw.path, raw.line, "empty text")
        elif raw.label not in label_map:
            audit.reject(raw.path, raw.line, "label outside the label map")
        else:
            id_ = f"{source.name}:{raw.place}"
            rows.append(LabelledText(id_, raw.text.strip(), label_map[raw.label], raw.template, raw.meta))
    answers = tuple(dict.fromkeys(label_map.values()))
    mentioned_choices("", dict.fromkeys(answers, ()))  # refuses answers that grading could not tell apart
    return ReadSource(rows, answers, _question(source, label_map).replace("{answers}", _in_tags(answers)))


def _question(source: TextSource, label_map: Mapping[str, str]) -> str:
    if source.question:
        return source.question
    if label_map == _HATE:
        return _ASK_HATE
    return _ASK_OFFENSIVE if label_map == _YES_NO else _ASK_LABEL


def _in_tags(answers: tuple[str, ...]) -> str:
    """``<answer>a</answer>, <answer>b</answer> or <answer>c</answer>``."""
    tagged = [f"<answer>{answer}</answer>" for answer in answers]
    return " or ".join([", ".join(tagged[:-1]), tagged[-1]] if len(tagged) > 1 else tagged)


def _tweeteval_names(folder: Path) -> dict[str, str]:
    """Label names by number. The emoji task's third column, its description, is the name there."""
    path = find_file(folder, ("mapping.txt",), "TweetEval")
    fields = [line.split("\t") for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    return {cells[0].strip(): cells[-1].strip(" _") for cells in fields}


def _tweeteval(source: TextSource, audit: RowAudit) -> Iterator[_RawRow]:
    folder = Path(source.path)
    names = _tweeteval_names(folder)
    for split in ("train", "val", "test"):
        text_path = find_file(folder, (f"{split}_text.txt",), "TweetEval")
        label_path = find_file(folder, (f"{split}_labels.txt",), "TweetEval")
        label_audit = RowAudit()
        labels = dict(read_lines(label_path, label_audit))
        audit.problems += label_audit.problems
        bad_labels = {line for _, line, _ in label_audit.problems}
        num_texts = audit.num_rows
        for line, text in read_lines(text_path, audit):
            if line in labels:
                number = labels[line].strip()
                yield _RawRow(text_path, line, f"{split}:{line}", text, names.get(number, number), "", {"file": split})
            elif line not in bad_labels:
                audit.reject(text_path, line, f"text without a label in {label_path.name}")
        num_texts = audit.num_rows - num_texts
        for line in labels:
            if line > num_texts:
                audit.num_rows += 1
                audit.reject(label_path, line, f"label without a text in {text_path.name}")


def _hatecheck(source: TextSource, audit: RowAudit) -> Iterator[_RawRow]:
    path = _file(source)
    for line, row in read_table(path, audit):
        require_columns(path, row, ("test_case", "label_gold", "case_id", "templ_id", "ref_templ_id", "functionality"))
        is_respelled = row["functionality"].startswith("spell_")
        mould = row["ref_templ_id"] if is_respelled and row["ref_templ_id"] else row["templ_id"]
        meta = {"functionality": row["functionality"], "template": row["templ_id"]}
        yield _RawRow(path, line, row["case_id"], row["test_case"], row["label_gold"], mould, meta)


def _ethos(source: TextSource, audit: RowAudit) -> Iterator[_RawRow]:
    path = _file(source)
    for line, row in read_table(path, audit, delimiter=";"):
        require_columns(path, row, ("comment", "isHate"))
        try:
            score = float(row["isHate"])
        except ValueError:
            score = -1.0
        if 0.0 <= score <= 1.0:
            label = "hateful" if score >= _HATEFUL_FROM else "non-hateful"
            yield _RawRow(path, line, str(line), row["comment"], label, "", {"score": score})
        else:
            audit.reject(path, line, "isHate is no number between 0 and 1")


def _any_rows(source: TextSource, audit: RowAudit) -> Iterator[_RawRow]:
    path = _file(source)
    rows: Iterator[tuple[int, Mapping[str, Any]]]
    rows = read_table(path, audit, source.delimiter) if source.format == "table" else read_json_lines(path, audit)
    columns = [source.text_column, source.label_column, *filter(None, [source.template_column])]
    for line, row in rows:
        if source.format == "table":
            require_columns(path, row, tuple(columns))
        if any(isinstance(row.get(name), (dict, list, type(None))) for name in columns):
            audit.reject(path, line, "no text or no label")
        else:
            text, label, *template = (str(row[name]) for name in columns)
            yield _RawRow(path, line, str(line), text, label, "".join(template))


def _file(source: TextSource) -> Path:
    path = Path(source.path)
    if not path.is_file():
        raise FileNotFoundError(f"Source {source.name!r}: path={source.path!r} is no file.")
    return path


_READERS: Mapping[Format, Callable[[TextSource, RowAudit], Iterator[_RawRow]]] = {
    "tweeteval": _tweeteval,
    "hatecheck": _hatecheck,
    "ethos": _ethos,
    "table": _any_rows,
    "json_lines": _any_rows,
}
