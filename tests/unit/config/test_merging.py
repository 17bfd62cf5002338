"""Laying configs over each other, by properties."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from kdscale.config.merging import Layer, merged
from kdscale.errors import ConfigError

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=2)
TREES = st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3)))


def leaves(values: Any, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(values, dict):
        return {at: values}
    return {path: leaf for key, value in values.items() for path, leaf in leaves(value, (*at, key)).items()}


@given(values=TREES)
def test_nothing_changes_under_itself_or_over_nothing(values: dict[str, Any]) -> None:
    assert merged({}, values) == values
    assert merged(values, values) == values


@given(one=TREES, two=TREES, three=TREES)
def test_later_layers_win_however_they_are_grouped(
    one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]
) -> None:
    last = leaves(three) if three else {}
    for got in (merged(merged(one, two), three), merged(one, merged(two, three))):
        assert last.items() <= leaves(got).items() or not three


@given(under=TREES, over=TREES)
def test_every_leaf_is_the_upper_ones_or_else_the_lower_ones(under: dict[str, Any], over: dict[str, Any]) -> None:
    before = copy.deepcopy((under, over))
    got, above, below = leaves(merged(under, over)), leaves(over), leaves(under)

    for path, leaf in got.items():
        assert leaf == above[path] if path in above else leaf == below[path]
    if over:
        assert above.items() <= got.items()
    for path in below.keys() - got.keys():  # gone only where the upper one has something else there
        assert any(above_path[: len(path)] == path or path[: len(above_path)] == above_path for above_path in above)
    assert (under, over) == before


@given(values=TREES, path=st.lists(KEYS, min_size=2, max_size=4), value=LEAVES)
def test_a_dotted_key_sets_itself_and_nothing_else(values: dict[str, Any], path: list[str], value: Any) -> None:
    key = ".".join(path)
    try:
        got = Layer(values).with_key(key, value, {key: "here"})
    except ConfigError:
        event("the path leads through a number")
        return
    at: Any = got.values
    for part in path:
        at = at[part] if isinstance(at, dict) else at[int(part)]
    assert at == value
    apart = {p: leaf for p, leaf in leaves(values).items() if p[: len(path)] != tuple(path)}
    assert apart.items() <= leaves(got.values).items()
    assert got.sources[key] == "here"


def test_a_value_set_again_has_one_place_and_what_was_under_it_none() -> None:
    layer = Layer({"a": {"b": {"c": 1, "d": 2}}}, {"a": "1", "a.b": "2", "a.b.c": "3", "a.b.d": "4"})

    got = layer.with_key("a.b", {"c": 5}, {"a.b": "flag", "a.b.c": "flag"})

    assert got == Layer({"a": {"b": {"c": 5}}}, {"a": "1", "a.b": "flag", "a.b.c": "flag"})


TERMS = {"losses": [{"name": "ce"}, {"name": "kd", "id": "soft", "weight": 1}]}


@pytest.mark.parametrize("item", ["soft", "1"])
def test_items_of_lists_go_by_id_or_number(item: str) -> None:
    got = Layer(TERMS).with_key(f"losses.{item}.weight", 7, {})
    assert got.values["losses"] == [{"name": "ce"}, {"name": "kd", "id": "soft", "weight": 7}]
    assert TERMS["losses"][1]["weight"] == 1


def test_an_item_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"losses has no item sof; did you mean soft\?"):
        Layer(TERMS).with_key("losses.sof.weight", 7, {})
    with pytest.raises(ConfigError, match=r"losses has no item at; there are: ce, soft"):
        Layer(TERMS).with_key("losses.at.weight", 7, {})


@pytest.mark.parametrize(
    ("under", "over", "result"),
    [
        ({"train": {"lr": 1, "epochs": 2}}, {"train": {"lr": 3}}, {"train": {"lr": 3, "epochs": 2}}),
        ({"train": {"lr": 1, "epochs": 2}}, {"train.lr": 3}, {"train": {"lr": 3, "epochs": 2}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {}}),
        ({"losses": [1, 2]}, {"losses": [3]}, {"losses": [3]}),
        ({"student": {"model": "wrn", "widen": 2}}, {"student": {"model": "vgg"}}, {"student": {"model": "vgg"}}),
        ({"student": {"model": "wrn", "widen": 2}}, {"student": {"model": "wrn", "a": 1}},
         {"student": {"model": "wrn", "widen": 2, "a": 1}}),
        ({"data": {"name": "a", "root": "/a", "size": 3}}, {"data": {"name": "b"}}, {"data": {"name": "b", "size": 3}}),
        ({"stages": {"a": {"x": 1}, "b": {"x": 2}}}, {"stages": {"a": None}}, {"stages": {"b": {"x": 2}}}),
        ({"stages": {"a": {"x": 1}, "b": {"x": 2}}}, {"stages.a": None}, {"stages": {"b": {"x": 2}}}),
        ({"sweep": {"seed": [1], "lr": [2]}}, {"sweep": {"seed": None}}, {"sweep": {"lr": [2]}}),
        ({"data": {"size": 3}}, {"data": {"size": None}}, {"data": {"size": None}}),
    ],
)  # fmt: skip
def test_rules_of_laying_over(under: dict[str, Any], over: dict[str, Any], result: dict[str, Any]) -> None:
    assert Layer(under).under(Layer(over)).values == result
