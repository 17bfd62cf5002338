"""YAML as plain data: scalars of YAML 1.2, places, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from kdscale.config.parsing import parse_file, parse_value, write_value
from kdscale.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("5E3", 5000.0), (".5", 0.5), ("1.", 1.0), ("-2", -2), ("010", 10), ("1_000", "1_000"),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("no", "no"), ("off", "off"), ("yes", "yes"), ("true", True),
        ("False", False), ("null", None), ("~", None), ("", None), ("'1e-4'", "1e-4"), ("1 - lam", "1 - lam"),
        ("[1, 2]", [1, 2]), ("{linear: [4, 1]}", {"linear": [4, 1]}), ("teacher@epoch:3", "teacher@epoch:3"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    got = parse_value(text)
    assert got == value
    assert type(got) is type(value)


# PyYAML writes Unicode's line separators so that it reads them as spaces: nobody has them in a config
TEXT = st.text(st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"]), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)


@given(value=st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), PLAIN, max_size=4))
@example(value={"a": "0E0", "b": "1e5", "no": "no", "c": ["010", "0x1f", "~", "1_000", ".5", "2024-01-01"]})
def test_what_is_written_is_read_back(value: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(write_value(value), encoding="utf-8")
    assert parse_file(path)[0] == value
    assert parse_value(write_value(value, inline=True)) == value
    assert yaml.safe_load(write_value(value)) == value  # and by whoever else reads it


def test_every_key_and_item_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("a: 1\nb:\n  c: {d: 2}\n  e:\n    - f: 3\n    - 4\n")
    assert parse_file(tmp_path / "x.yaml") == (
        {"a": 1, "b": {"c": {"d": 2}, "e": [{"f": 3}, 4]}},
        {
            "a": "x.yaml:1", "b": "x.yaml:2", "b.c": "x.yaml:3", "b.c.d": "x.yaml:3", "b.e": "x.yaml:4",
            "b.e.0": "x.yaml:5", "b.e.0.f": "x.yaml:5", "b.e.1": "x.yaml:6",
        },
    )  # fmt: skip


def test_a_mapping_lends_its_keys_and_own_keys_win(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc:\n  <<: [{x: 5}, *a]\n")
    assert parse_file(path)[0] == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 5, "y": 2}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", r"x\.yaml:2: not YAML: expected ',' or '\]'"),
        ("a: 1\nb: {c: 1, c: 2}\n", r"x\.yaml:2: b\.c is given twice"),
        ("a: &a [*a]\n", r"x\.yaml:1: a\.0 contains itself"),
        ("a: !!python/object/apply:os.system [ls]\n", r"x\.yaml:1: a: the tag .* means nothing here"),
        ("a: !!python/name:os.system x\n", r"x\.yaml:1: not YAML: could not determine a constructor"),
        ("- a\n", r"x\.yaml:1: a config is a mapping of keys"),
        ("? [a]\n: 1\n", r"x\.yaml:1: .*a key is a word"),
        ("a: {<<: 3}\n", r"x\.yaml:1: a\.<<: only a mapping"),
        ("a: " + "[" * 1500, "nested too deeply|not YAML"),
    ],
)
def test_what_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        parse_file(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"x\.yaml: cannot be read as text"):
        parse_file(tmp_path / "x.yaml")
