"""`Table`: one table of a report, and how it looks in Markdown, LaTeX and a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

NOT_SHOWN = "-"
"""A value that is withheld or not known."""

UNDEFINED = "undefined"
"""A rate whose denominator is 0."""

# Signs of the tables that LaTeX writes otherwise, and the characters that it would read as commands.
LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "†": r"$^{\dagger}$",
    "*": r"$^{*}$",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, with what the reader must know below them."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: frozenset[str] = frozenset()
    """Columns aligned to the left; the others hold numbers and go to the right."""
    notes: Sequence[str] = ()

    def without_empty_columns(self) -> Table:
        """Drop the columns that have a dash in every row."""
        kept = [i for i in range(len(self.header)) if any(row[i] != NOT_SHOWN for row in self.rows)]
        header, rows = [self.header[i] for i in kept], [[row[i] for i in kept] for row in self.rows]
        return Table(self.title, header, rows, self.text_columns, self.notes)


def markdown_table(table: Table) -> str:
    """Return the grid alone, in GitHub's Markdown."""
    ruler = ["---" if name in table.text_columns else "---:" for name in table.header]
    lines = [list(table.header), ruler, *([_markdown_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_list(sentences: Sequence[str]) -> str:
    """Return the sentences as a list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def latex_table(table: Table) -> str:
    r"""Return a ``table`` environment with booktabs' rules; the document needs ``\usepackage{booktabs}``."""
    columns = "".join("l" if name in table.text_columns else "r" for name in table.header)
    body = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in table.rows]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(latex_text(name) for name in table.header) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {latex_text(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines)


def latex_text(text: str) -> str:
    """Escape `text` for LaTeX. A cell that starts with [ would be read as an option of the line break before it."""
    escaped = "".join(LATEX_SIGNS.get(character, character) for character in text)
    return "{}" + escaped if escaped.startswith("[") else escaped


def rich_table(table: Table) -> RichTable:
    """Return the grid for a terminal, with a gap where the first column changes."""
    grid = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in table.header:
        grid.add_column(name, justify="left" if name in table.text_columns else "right")
    for previous, row in zip([None, *table.rows], table.rows, strict=False):
        if previous is not None and previous[0] != row[0] and table.header[0] == "run":
            grid.add_section()
        grid.add_row(*(Text(cell) for cell in row))  # as it is: a folder's name may hold [brackets]
    return grid


def _markdown_cell(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*")
