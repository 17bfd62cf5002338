"""`eval` and `export`: merged over the top level's, checked by name, and no part of a stage's identity."""

# ruff: noqa: E501 - one case a line
from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdscale.config.digest import identity
from kdscale.errors import ConfigError
from tests.unit.config.conftest import Loading

EVAL = """
plugins: {path: [.], allow: [birds]}
eval:
  metrics: [macro_f1, "birds.metrics:worst"]
  sets: {ood: {name: image_folder, root: elsewhere, limit: 50}}
"""


def test_a_stage_says_it_key_by_key_over_the_top_level(load_text: Loading) -> None:
    stages = load_text(
        EVAL, "stages.teacher.eval.metrics=[]", "stages.student.eval.sets={more: {options: {}, limit: 9}}"
    ).trials[0].stages  # fmt: skip
    assert stages["teacher"].eval.metrics == []
    assert list(stages["teacher"].eval.sets) == ["ood"]
    assert stages["student"].eval.metrics == ["macro_f1", "birds.metrics:worst"]
    assert list(stages["student"].eval.sets) == ["ood", "more"]
    folder = stages["student"].eval.sets["ood"]
    assert folder is not None
    assert folder.root == Path.cwd() / "elsewhere", "relative to the file"


def test_null_takes_a_set_out(load_text: Loading) -> None:
    stages = load_text(EVAL, "eval.metrics=[]", "stages.teacher.eval={sets: {ood: null}}").trials[0].stages
    assert (stages["teacher"].eval.asked, stages["student"].eval.asked) == (False, True)


def test_none_of_it_is_in_the_identity(load_text: Loading) -> None:
    plain = load_text().trials[0].stages["student"]
    asked = load_text(EVAL, "stages.student.export={int8: true}").trials[0].stages["student"]
    assert asked.export is not None
    assert asked.export.formats == ["safetensors", "pt2", "onnx"]
    assert identity(asked) == identity(plain)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("eval.metrics=[macro_f2]", "eval.metrics: there is no metric macro_f2; did you mean macro_f1?; your own: package.module:name"),
        ("eval.metrics=[macro_f1,macro_f1]", "eval.metrics: two metrics are called macro_f1"),
        ("eval.metrics=[macro_f1,'birds.f:macro_f1'] plugins.allow=[birds]", "eval.metrics: two metrics are called macro_f1"),
        ("eval.metrics=['birds.f:best']", "eval.metrics: birds.f:best: birds may not be imported; add it to plugins: {allow: [birds]}"),
        ("eval.metrics=['birds f:best']", "eval.metrics: birds f:best: say package.module:name of a function"),
        ("eval.metrics=macro_f1", "eval.metrics: input should be a valid list"),
        ("eval.set={}", "eval.set: unknown key; did you mean sets?"),
        ("eval.sets.ood={nam: mnist}", "eval.sets.ood.nam: unknown key; did you mean name?"),
        ("eval.sets.ood={name: mnst}", "eval.sets.ood.name: there is no data set mnst; did you mean mnist?"),
        ("eval.sets.ood={name: synthetic, options: {sise: 3}}", "eval.sets.ood.options.sise: unknown key; did you mean size?"),
        ("eval.sets.o-d={name: mnist}", "eval.sets.o-d: 'o-d' is part of figures' names: use letters, digits and _"),
        ("eval.sets.ood={}", "eval.sets.ood: says nothing that differs from the stage's own data"),
        ("eval.sets.ood={limit: 0}", "eval.sets.ood.limit: input should be greater than 0"),
        ("eval.sets.ood={limit: 5, metrics: [f1]}", "eval.sets.ood.metrics: there is no metric f1"),
        ("stages.student.export.formats=[onyx]", "stages.student.export.formats.0: input should be 'safetensors', 'pt2' or 'onnx'"),
        ("stages.student.export.formats=[]", "stages.student.export.formats: list should have at least 1 item"),
        ("stages.student.export={formats: [pt2], int8: true}", "stages.student.export: int8 is of the ONNX file: add onnx to formats"),
        ("stages.student.export.weights=bst", "stages.student.export.weights: 'bst' is no snapshot: say last, best, epoch:N or acc:0.9"),
        ("stages.student.export={format: onnx}", "stages.student.export.format: unknown key; did you mean formats?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(overrides: str, said: str, load_text: Loading) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("", *re.split(r" (?=[a-z_.]+=)", overrides))
    assert str(caught.value).startswith("command line: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
