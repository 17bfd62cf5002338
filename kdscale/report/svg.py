"""matplotlib's figures as pieces of a page: colours follow the theme, text stays text, marks say their name."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GRID", "INK", "MUTED", "PAPER", "SERIES", "STYLE", "inline", "series"]

# Stand-ins that no drawing would use by chance: each becomes a CSS variable, so that the page's theme decides.
INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
SERIES = tuple(f"#0a0c0{i}" for i in range(8))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule", PAPER: "--card"}
_VARIABLES |= {colour: f"--s{i}" for i, colour in enumerate(SERIES)}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text as text: small, searchable, in the page's own font
    "svg.hashsalt": "kdscale",
    "text.parse_math": False,  # names from configs may hold dollars
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "text.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def series(index: int) -> str:
    """The colour of a series; after eight the muted one, as a ninth hue could not be told apart."""
    return SERIES[index] if index < len(SERIES) else MUTED


def inline(figure: Figure, name: str, label: str, titles: Mapping[str, str]) -> str:
    """An <svg> element for the page.

    Args:
        figure: drawn under STYLE.
        name: unique on the page; prefixes every id within.
        label: what it shows, for screen readers.
        titles: artist gid -> what hovering shows.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', _head(label), svg, count=1)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#', rf'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    svg = re.sub(r"#0a0[bc]0\d", lambda m: f"var({_VARIABLES[m.group()]})", svg)
    for gid, title in titles.items():
        mark = f'<g id="{name}-{gid}">'
        svg = svg.replace(mark, f'{mark[:-1]} class="mark"><title>{escape(title)}</title>')
    return re.sub(r"\n\s*", "\n", svg)


def _head(label: str) -> str:
    # A figure is as wide as its place on the page; its own size only gives the proportions.
    # Backslashes would be read as references to groups of the match.
    words = escape(label).replace("\\", "&#92;")
    return rf'<svg viewBox="\1" role="img" aria-label="{words}" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
