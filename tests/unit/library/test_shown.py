"""Screens as objects."""

from __future__ import annotations

from rich.table import Table

from kdscale.library.shown import Shown


def table() -> Table:
    found = Table("stage", "params")
    found.add_row("<student>", "[b]8[/b]")
    return found


def test_it_prints_as_the_command_does() -> None:
    said = repr(Shown(table()))
    assert "<student>" in said
    assert "8" in said
    assert "\x1b" not in said, "no colours where nobody asked for a terminal"


def test_a_notebook_gets_one_block_with_its_signs_escaped() -> None:
    html = Shown(table())._repr_html_()
    assert html.startswith("<pre")
    assert "&lt;student&gt;" in html
    assert "<student>" not in html
