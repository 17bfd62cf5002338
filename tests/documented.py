"""What the documentation shows: fences, commands and options, read as a reader would.

A fence of commands is run by tests/e2e/test_documented_commands.py as it stands (info `bash`), or a comment
above it says why not: `<!-- needs: a cluster -->`, or `<!-- run by: tests/... -->` where another test runs it.
`<!-- exits 2 -->` says how it ends. `<!-- all commands need: a cluster -->` speaks for a whole page.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docs.pages.commands import help_of, scripts, verbs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDER = re.compile(r"\[[A-Z-]|\b(?<![-$/.])(?:CONFIG|SWEEP|NAME|STAGE|FILE|PROFILE|KEY|DIR|VALUE|MODEL)\b")
"""A line with one is a pattern, and no command that could be run."""
_FENCE = re.compile(
    r"^ *(?:<!-- (?P<mark>[^>]*?) -->\n+ *)?"
    r"```(?P<info>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)\n *```$",
    re.M | re.S,
)
_STARTS = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?(?:python (?:launch/|-m )|make |pytest |\./install\.sh|sbatch )"
)
_CALL = re.compile(r"(?:python (?:\S*/)?|\b)(?:launch/)?(?P<script>\w+)\.py(?P<rest>[^\n`#|]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


class Fence(NamedTuple):
    """A block of code on a page."""

    page: str
    line: int
    mark: str
    info: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Lines that a shell takes, without what is said behind them."""
        lines = [line for line in self.text.splitlines() if _STARTS.match(line)]
        return [re.split(r"\s{2,}#|\s{3,}", line)[0].removeprefix("$ ").strip() for line in lines]


@cache
def fences() -> list[Fence]:
    """Of all pages, in their order."""
    return [fence for page in PAGES for fence in _fences(page)]


def _fences(page: Path) -> Iterator[Fence]:
    text = page.read_text()
    name = page.relative_to(ROOT).as_posix()
    for found in _FENCE.finditer(text):
        said = {key: found[key] or "" for key in ("mark", "info", "title")}
        yield Fence(name, text[: found.start("info")].count("\n") + 1, **said, text=textwrap.dedent(found["text"]))


@cache
def options_of(script: str, verb: str = "") -> frozenset[str]:
    """Options that a command's parser knows, those of its verbs too unless one is named."""
    words = [verb] if verb else []
    found = set(re.findall(r"^ {2}(?:-\w[^,]*, )?(--[\w-]+)", help_of(script, *words), re.M))
    if not verb:
        found |= {option for one in verbs(script) for option in options_of(script, one)}
    return frozenset(found | {"--help"})


def calls(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Script, verb (or nothing) and flags of every call of a command that a text shows."""
    for found in _CALL.finditer(text):
        script = found["script"]
        if script in scripts():
            words = found["rest"].split()
            verb = words[0] if words and words[0] in verbs(script) else ""
            yield script, verb, FLAG.findall(found["rest"])
