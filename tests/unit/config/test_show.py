"""What a person sees: every value with its source, the JSON Schema of editors, differences of stages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.explain import default_of, differences, nearest
from kdscale.config.show import json_schema, show_config
from tests.unit.config.conftest import Loading


def shown(text: str) -> dict[str, tuple[Any, str]]:
    """Value and source by key."""
    lines = [re.fullmatch(r"(\S+): (.*?) +# (.*)", line) for line in text.splitlines() if not line.startswith("#")]
    assert all(lines)
    return {line[1]: (yaml.safe_load(line[2]), line[3]) for line in lines if line}


def test_every_value_and_what_set_it(load_text: Loading, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train:\n  epochs: 3\n  lr: 0.3\n")
    text = (
        "extends: base.yaml\nsweep: {method: {hot: {stages.student.losses.kd.temperature: 8}}}\nparams: {lam: 0.25}\n"
    )

    got = shown(
        show_config(
            load_text(text, "train.lr=0.2", "stages.student.losses.ce.weight=1 - lam", "stages.student.train.lr=1")
        )
    )

    assert got["name"] == ("pair", "x.yaml:2")
    assert got["train.epochs"] == (3, "base.yaml:2")
    assert got["train.lr"] == (0.2, "command line")
    assert got["train.momentum"] == (0.9, "default")
    assert got["stages.student.train.lr"] == (1.0, "command line")
    assert "stages.student.train.epochs" not in got  # as at the top level
    assert got["stages.student.student.depth"] == (8, "x.yaml:9")
    assert got["stages.student.student.shortcut"] == ("B", "default")
    assert got["stages.student.losses.ce.weight"] == (0.75, "command line")
    assert got["stages.student.losses.kd.temperature"] == (8, "x.yaml:15 (sweep.method.hot)")
    assert got["stages.student.losses.kd.weight"] == (0.9, "x.yaml:13")
    assert got["stages.student.losses.kd.form"] == ("kl", "default")
    assert got["stages.student.teachers.teacher.from"] == ("teacher", "x.yaml:10")
    assert got["stages.teacher.seed"] == (0, "x.yaml:5")
    assert got["stages.student.seed"] == (0, "default, inherited")


def test_every_key_of_the_top_level_is_there(load_text: Loading) -> None:
    sweep = load_text()
    got = shown(show_config(sweep))
    for section in ("data", "train", "engine", "resources", "tracking", "limits", "plugins"):
        model = getattr(sweep.trials[0].experiment, section)
        for name in type(model).model_fields:
            assert any(key == f"{section}.{name}" or key.startswith(f"{section}.{name}.") for key in got), (
                section,
                name,
            )


def test_a_sweep_says_which_trial_it_shows(load_text: Loading) -> None:
    text = show_config(load_text("", "seed=3,4", "train.lr=0.1,0.2"))
    assert text.startswith("# 4 trials; this is the first: seed=3, lr=0.1\n#   seed: 3, 4\n#   lr: 0.1, 0.2\n")
    assert shown(text)["seed"] == (3, "command line")


# --------------------------------------------------------------------------- JSON Schema


def test_the_schema_for_editors_is_current(root: Path) -> None:
    file = root / "configs" / "schema.json"
    assert json.loads(file.read_text()) == json_schema(), "python launch/sweep.py --schema > configs/schema.json"


def test_every_shipped_config_names_it(root: Path) -> None:
    for path in sorted((root / "configs").rglob("*.yaml")):
        first = path.read_text().partition("\n")[0]
        match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
        assert match, path
        assert (path.parent / match[1]).resolve() == root / "configs" / "schema.json", path


def keys_of(schema: dict[str, Any], at: str) -> set[str]:
    return set(schema["$defs"][at]["properties"])


def test_the_schema_knows_the_language() -> None:
    schema = json_schema()
    assert {"extends", "sweep", "stages", "train", "params"} <= set(schema["properties"])
    assert {"from", "cache", "mean", "of", "weights", "virtual"} == keys_of(schema, "TeacherRef")
    assert schema["$defs"]["StageConfig"]["properties"]["train"] == {"$ref": "#/$defs/TrainConfig"}
    assert "kd" in schema["$defs"]["TermConfig"]["properties"]["name"]["examples"]
    assert schema["additionalProperties"] is False


# --------------------------------------------------------------------------- differences


def test_differences_by_dotted_key() -> None:
    old = {"train": {"lr": 0.1, "ema": 0.9}, "losses": {"kd": {"name": "kd"}}, "seed": 1}
    new = {"train": {"lr": 0.2}, "losses": {"kd": {"name": "kd", "temperature": 2}}, "seed": 1, "strategy": "one"}
    assert differences(old, new) == [
        ("train.lr", 0.1, 0.2), ("train.ema", 0.9, None), ("losses.kd.temperature", None, 2), ("strategy", None, "one"),
    ]  # fmt: skip
    assert differences(new, new) == []


@pytest.mark.parametrize("order", [1, -1])
def test_the_nearest_differs_in_the_fewest_keys(order: int) -> None:
    candidates = [("far", {"a": 1, "b": 2}), ("near", {"a": 0, "b": 2})][::order]
    assert nearest(candidates, {"a": 0, "b": 3}) == ("near", [("b", 2, 3)])
    assert nearest([], {"a": 0}) is None


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("train.weight_decay", 5e-4), ("data.augment.crop", 0), ("seed", 0), ("strategy", "distill"),
        ("student.model", None),
        ("losses.kd.temperature", None), ("train.no", None), ("train.lr.x", None),
    ],
)  # fmt: skip
def test_defaults_that_identities_leave_out(key: str, default: Any) -> None:
    assert default_of(key) == default
