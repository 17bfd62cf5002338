from __future__ import annotations

import json

from kdscale.trackers.views import for_everybody, of_sweep


def test_a_listed_view_is_what_the_ui_stores() -> None:
    for view in for_everybody():
        envelope = json.loads(view.listed(5))
        assert envelope["name"].startswith("kdscale: ")
        state = json.loads(envelope["state"])
        assert state["orderByKey"] in state["selectedColumns"], "the column that sorts is there to be seen"
        assert set(state["columnOrder"]) == set(state["selectedColumns"])


def test_a_view_is_written_once() -> None:
    view = for_everybody()[0]
    assert not view.is_in({})
    assert not view.is_in({view.tag: '{"name": "mine"}'})
    assert view.is_in({view.tag: view.listed(1)})


def test_means_need_seeds() -> None:
    assert [v.id for v in of_sweep("b", "b-1", {"seed": ["0"]})] == [
        "b-1-trials",
        "b-1-small",
        "b-1-means",
        "b-1-curves",
    ]
    assert [v.id for v in of_sweep("b", "b-1", {"lr": ["0.1"]})] == ["b-1-trials", "b-1-small", "b-1-curves"]


def test_links_hold_no_character_that_a_terminal_would_break() -> None:
    (view, *_) = of_sweep("b", "b-1", {"seed": ["0"]})
    link = view.link("http://127.0.0.1:5000", "7")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    assert not set(link) & set(" '\"<>`")
