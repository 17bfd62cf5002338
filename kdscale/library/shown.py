"""What a command prints, as an object: text in a terminal, a block of the same in a notebook."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

__all__ = ["Shown"]

WIDTH = 120
"""Columns, whatever the window: a notebook scrolls."""
_BLOCK = '<pre style="white-space: pre; overflow-x: auto; line-height: 1.35">{code}</pre>'


class Shown:
    """A screen.

    Args:
        screen: what rich renders.
    """

    def __init__(self, screen: RenderableType) -> None:
        self._screen = screen

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
        with console.capture() as said:
            console.print(self._screen)
        return said.get().rstrip()

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, record=True, force_jupyter=False)
        console.print(self._screen)
        return console.export_html(inline_styles=True, code_format=_BLOCK)
