"""A table as data, and its four faces: terminal, Markdown, LaTeX, HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import jinja2
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["FORMATS", "Cell", "Column", "Grid", "Screen", "render", "templates"]

Format = Literal["md", "latex", "html"]
_GAP = 2
FORMATS: tuple[str, ...] = ("table", "md", "latex", "html")

Tone = Literal["", "good", "bad", "muted"]
_RICH = {"good": "green", "bad": "red", "muted": "dim"}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$",
    "\N{MINUS SIGN}": "$-$", "–": "--", "→": r"$\to$", "<": "$<$", ">": "$>$", "—": "---",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "Δ": r"$\Delta$", "²": "$^2$", "µ": r"$\mu$", "…": r"\dots{}",
    "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell: a figure, what is to be said about it in small print, and how it stands out."""

    text: str = ""
    note: str = ""
    best: bool = False
    tone: Tone = ""
    """Of the note, or of the text where there is none."""
    title: str = ""
    """What hovering shows on a page."""
    sort: int | float | str | None = None

    @property
    def whole(self) -> str:
        """Figure and note on one line."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Column:
    """A column's heading, and how its cells stand."""

    name: str
    number: bool = True
    title: str = ""
    optional: bool = False
    """Whether a screen that is too narrow may leave it out."""


@dataclass(frozen=True)
class Grid:
    """A table with its heading and the remarks below it."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    remarks: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Screen:
    """A grid on a terminal; columns that may go, go from the right until the rest fits the width."""

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        shown = self._fitting(options.max_width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
        for index in shown:
            column = self.grid.columns[index]
            table.add_column(Text(column.name), justify="right" if column.number else "left")
        for row in self.grid.rows:
            table.add_row(*(_rich_cell(row[index]) for index in shown))
        yield Text(self.grid.title, style="bold")
        yield table
        hidden = [c.name for i, c in enumerate(self.grid.columns) if i not in shown]
        too_narrow = [f"Hidden at this width: {', '.join(hidden)}."] if hidden else []
        for remark in (*self.grid.remarks, *too_narrow):
            yield Text(remark, style="dim")

    def _fitting(self, width: int) -> list[int]:
        shown = list(range(len(self.grid.columns)))
        for index in reversed(shown.copy()):
            if sum(self._width(i) + _GAP for i in shown) - _GAP <= width:
                break
            if self.grid.columns[index].optional:
                shown.remove(index)
        return shown

    def _width(self, index: int) -> int:
        """Characters of a column's longest cell."""
        cells = [row[index] for row in self.grid.rows]
        return max(len(self.grid.columns[index].name), *(max(len(c.text), len(c.note)) for c in cells), 0)


def render(grid: Grid, form: str) -> str:
    """As text to paste into a note (`md`), a paper (`latex`) or a page (`html`)."""
    return {"md": _markdown, "latex": _latex, "html": _html}[form](grid)


def _rich_cell(cell: Cell) -> Text:
    style = _RICH.get(cell.tone, "")
    text = Text(cell.text, style="bold" if cell.best else "" if cell.note else style)
    return text.append(f"\n{cell.note}", style=style or "dim") if cell.note else text


def _markdown(grid: Grid) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    heads = [line([c.name for c in grid.columns]), line(["---:" if c.number else "---" for c in grid.columns])]
    body = [line([f"**{c.text}**{c.whole[len(c.text) :]}" if c.best else c.whole for c in row]) for row in grid.rows]
    return "\n".join([f"**{grid.title}**", "", *heads, *body, *(f"\n{remark}" for remark in grid.remarks)]) + "\n"


def _latex(grid: Grid) -> str:
    def cell(c: Cell) -> str:
        text = rf"\textbf{{{_escaped(c.text)}}}" if c.best else _escaped(c.text)
        return f"{text} {{\\footnotesize({_escaped(c.note)})}}" if c.note else text

    layout = "".join("r" if c.number else "l" for c in grid.columns)
    caption = " ".join([f"{grid.title}.", *grid.remarks])
    lines = [
        r"% needs \usepackage{booktabs}, and \usepackage[T1]{fontenc} for straight quotes",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(_escaped(c.name) for c in grid.columns) + r" \\",
        r"\midrule",
    ]
    lines += [" & ".join(cell(c) for c in row) + r" \\" for row in grid.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _html(grid: Grid) -> str:
    return templates().get_template("grid.html").module.table(grid) + "\n"  # type: ignore[attr-defined, no-any-return]


def templates() -> jinja2.Environment:
    """The package's templates; every value is escaped, names come from users."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("kdscale.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
