"""Pages of the examples: the tutorial's README, and the notebook's cells."""

from __future__ import annotations

import json
import re
from pathlib import Path

from docs.pages.markdown import fence

__all__ = ["notebook", "tutorial"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def tutorial() -> str:
    """The README of the repository of one's own; its files lie beside it, not on the site."""
    text = (EXAMPLES / "garments" / "README.md").read_text()
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"`\1`", text)


def notebook() -> str:
    """What the notebook says and runs."""
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    kinds = [cell["cell_type"] for cell in cells]
    return "\n\n".join(
        fence(part, "python") if kind == "code" else part for kind, part in zip(kinds, parts, strict=True)
    )
