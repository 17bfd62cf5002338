"""A stage's identity: all that decides its numbers, and nothing else."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from kdscale.config.digest import identity, is_outside
from kdscale.config.load import resolve_stages
from kdscale.config.schema import InitFrom, StageSpec
from tests.unit.config import frozen
from tests.unit.config.conftest import Loading
from tests.unit.config.frozen import CASES, FILE, STUDENT, digest_of, spec_of

KNOWN = json.loads(FILE.read_text())
LATER = "then python -m tests.unit.config.frozen, and look at the difference"


# --------------------------------------------------------------------------- frozen


@pytest.mark.parametrize("name", CASES)
def test_frozen_digests(name: str) -> None:
    assert digest_of(spec_of(CASES[name])) == KNOWN["digests"][name], "finished stages would be made again: on purpose?"


def test_digests_of_all_cases_differ() -> None:
    assert len(set(KNOWN["digests"].values())) == len(CASES) == 13


def test_every_field_is_decided_and_keeps_its_default() -> None:
    now = dict(frozen.fields())
    assert now.keys() == KNOWN["fields"].keys(), (
        f"is a new field part of the identity? Mark it outside() if not, {LATER}"
    )
    for name, field in now.items():
        assert field == KNOWN["fields"][name], f"{name}: a changed default needs a raised NUMERICS, {LATER}"


def test_options_of_plugins_keep_their_defaults_within_a_revision() -> None:
    now = frozen.options()
    assert now.keys() == KNOWN["plugins"].keys(), f"a plug-in came or went: {LATER}"
    for name, plugin in now.items():
        assert plugin == KNOWN["plugins"][name], f"{name}: a changed default needs a raised revision, {LATER}"


# --------------------------------------------------------------------------- every field of the schema

BASE = (
    f"{STUDENT}, teachers: {{t: {{from: teacher}}}}, losses: [{{name: ce}}, {{name: kd}}], "
    "data: {augment: {flip: true}}, strategy: one, options: {branches: 2}"
)
OTHER: dict[str, Any] = {
    "data.augment.resized_crop": {}, "data.augment.jitter": {}, "data.options": {"classes": 3}, "data.name": "mnist",
    "train.milestones": [0.1], "train.grad_clip": 1.0, "train.ema": 0.5, "train_only": ["head"], "strategy": "distill",
    "options": {"branches": 4}, "variant": {"engine.processes": 2}, "export": {"format": "onnx"}, "seed": 5,
    "student.strict": ["head"], "student.class_names": ["a", "b"], "student.class_map": [1, 0],
    "student.taps": {"a": "b"},
    "student.weights_hash": "ab", "student.weights": None, "student.input.mean": [0.5], "student.input.std": [0.5],
    "data.root": Path("/x"), "resources.mem_gb": 3.0, "plugins.path": [Path("/y")], "plugins.allow": ["x"],
    "expect": {"top1": 0.5}, "tracking.uri": "off", "student.model": "wrn",
    "init_from": InitFrom.model_validate({"from": "teacher"}),
}  # fmt: skip
ELSEWHERE = {"teachers", "passes"}
"""Mappings of their own models: tested below."""


def leaf_fields(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, Any, bool]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from (
                (path, inner, out or is_outside(field)) for path, inner, out in leaf_fields(annotation, f"{at}{name}.")
            )
        elif f"{at}{name}" not in ELSEWHERE:
            yield f"{at}{name}", field, is_outside(field)


def changed(spec: StageSpec, path: str, field: Any) -> StageSpec:
    """The stage with one field set to another valid value."""
    first, _, rest = path.partition(".")
    if not rest:
        return spec.model_copy(update={first: another(path, getattr(spec, first), field)})
    inner = getattr(spec, first)
    parts = rest.split(".")
    if len(parts) == 2:
        deeper = getattr(inner, parts[0])
        value = deeper.model_copy(update={parts[1]: another(path, getattr(deeper, parts[1]), field)})
        return spec.model_copy(update={first: inner.model_copy(update={parts[0]: value})})
    return spec.model_copy(update={first: inner.model_copy(update={rest: another(path, getattr(inner, rest), field)})})


def another(path: str, value: Any, field: Any) -> Any:
    if path in OTHER:
        return OTHER[path]
    literal = [c for one in (field.annotation, *typing.get_args(field.annotation)) for c in literals(one) if c != value]
    if literal:
        return literal[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value / 2 + 0.01
    return f"{value}x" if isinstance(value, str) else 7


def literals(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


@pytest.mark.parametrize(
    ("path", "field", "outside"), [pytest.param(*one, id=one[0]) for one in leaf_fields(StageSpec)]
)
def test_a_field_moves_the_digest_if_and_only_if_it_is_identity(path: str, field: Any, outside: bool) -> None:
    spec = spec_of(BASE)
    assert (digest_of(changed(spec, path, field)) == digest_of(spec)) == outside


@pytest.mark.parametrize(
    "other",
    [
        BASE.replace("{name: kd}", "{name: kd, weight: 0.5}"), BASE.replace("{name: kd}", "{name: kd, id: soft}"),
        BASE.replace("{name: kd}", "{name: kd, temperature: 5}"), BASE.replace("{name: kd}", "{name: kd, lr: 2}"),
        BASE.replace("{name: kd}", "{name: kd, weight: {linear: [1, 0]}}"),
        BASE.replace("{name: kd}", "{name: kd, taps: {student: [stem]}}"), BASE.replace("depth: 8", "depth: 14"),
        BASE.replace("{from: teacher}", "{from: teacher@epoch:1}"), BASE.replace("t: {from", "u: {from"),
    ],
)  # fmt: skip
def test_terms_arguments_and_selectors_are_part_of_it(other: str) -> None:
    assert digest_of(spec_of(other)) != digest_of(spec_of(BASE))


# --------------------------------------------------------------------------- what says the same


@pytest.mark.parametrize(
    "same",
    [
        BASE.replace("{name: kd}", "{name: kd, temperature: 4, form: kl, weight: 1.0}"),
        BASE.replace("{name: kd}", "{name: kd, teacher: t, modifiers: []}"),
        BASE.replace("[{name: ce}, {name: kd}]", "[{name: kd}, {name: ce}]"),
        BASE.replace("losses: [{name: ce}, {name: kd}]", "passes: {main: [{name: ce}, {name: kd}]}"),
        BASE.replace("depth: 8", "depth: 8, widths: [16, 32, 64], shortcut: B"),
        BASE.replace("depth: 8", "depth: 8.0"),
        BASE.replace("flip: true", "flip: true, crop: 0"),
        BASE + ", train: {lr: 0.1, momentum: 0.9}, seed: 0",
        BASE.replace("branches: 2", "branches: 2.0, temperature: 3, split_at: null"),
        BASE + ", expect: {top1: 0.3}, resources: {time_min: 3}, engine: {processes: 2}",
    ],
)
def test_what_says_the_same_is_the_same(same: str) -> None:
    assert same != BASE
    assert digest_of(spec_of(same)) == digest_of(spec_of(BASE))


ENSEMBLE = (
    f"{STUDENT}, teachers: {{t: {{from: teacher}}, u: {{from: teacher@best}}, both: {{mean: [t, u]}}}}, "
    "losses: [{name: kd, teacher: both}]"
)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("[t, u]", "[u, t]"), ("[t, u]", "[t, u], of: logits"), ("[t, u]", "[t, u], weights: [3, 3]"),
        ("[t, u], weights: [0.7, 0.3]", "[u, t], weights: [3, 7]"),
        ("[t, u], weights: [1, 2]", "[t, u], weights: [0.1, 0.2]"),  # their sum is not 0.3 in binary
    ],
)  # fmt: skip
def test_an_ensemble_is_its_members_shares(one: str, same: str) -> None:
    first, second = (spec_of(ENSEMBLE.replace("[t, u]", members)) for members in (one, same))
    assert digest_of(first) == digest_of(second)
    assert first.teachers["both"].shares == second.teachers["both"].shares


@pytest.mark.parametrize(
    "other",
    [
        "mean: [t, u], of: probabilities", "mean: [t, u], weights: [1, 2]", "mean: [t, u], weights: [2, 1]",
        "mean: [t, v]", "mean: [t, u, v]",
    ],
)  # fmt: skip
def test_who_is_averaged_and_how_is_part_of_it(other: str) -> None:
    with_third = ENSEMBLE.replace("both:", "v: {from: teacher@epoch:1}, both:")
    digests = {digest_of(spec_of(with_third.replace("mean: [t, u]", text))) for text in ("mean: [t, u]", other)}
    assert len(digests) == 2


TAPPED = BASE.replace("{name: kd}", "{name: kd, taps: {student: [stem], teacher: [blocks.8]}}")


@pytest.mark.parametrize(
    "same",
    [
        "{student: stem, teacher: blocks.8}", "{student: [{module: stem}], teacher: {tap: blocks.8}}",
        "{student: [stem], teacher: [{module: blocks.8}]}",
    ],
)  # fmt: skip
def test_a_tap_alone_or_under_its_key_is_the_same(same: str) -> None:
    assert digest_of(spec_of(BASE.replace("{name: kd}", f"{{name: kd, taps: {same}}}"))) == digest_of(spec_of(TAPPED))


def test_the_form_of_a_tap_is_part_of_it() -> None:
    forms = ["blocks.8", "{module: blocks.8, as: map}", "{module: blocks.8, as: pooled}",
             "{module: blocks.8, as: map, prefix: 1}", "{module: blocks.8, as: map, grid: [2, 3]}",
             "{module: blocks.8, as: map, layout: NHWC}"]  # fmt: skip
    digests = {digest_of(spec_of(TAPPED.replace("[blocks.8]", form))) for form in forms}
    assert len(digests) == len(forms)
    assert digest_of(spec_of(TAPPED.replace("[blocks.8]", "{tap: blocks.8, as: map}"))) in digests


def test_an_option_that_train_would_set_otherwise_is_no_default() -> None:
    smoothed = f"{STUDENT}, losses: [{{name: ce}}], train: {{label_smoothing: 0.1}}"
    assert digest_of(spec_of(smoothed)) != digest_of(
        spec_of(smoothed.replace("name: ce", "name: ce, label_smoothing: 0.0"))
    )


def test_arguments_that_come_from_the_data_are_never_defaults() -> None:
    assert "channels" in identity(spec_of(BASE.replace("depth: 8", "depth: 8, channels: 3")))["student"]


def test_names_of_stages_are_no_part_of_it(load_text: Loading) -> None:
    mine = resolve_stages(load_text().trials[0])["student"]
    losses = "losses: [{name: ce, weight: 0.1}, {name: kd, weight: 0.9}]"
    big, small = (
        "{student: {model: vgg}, losses: [{name: ce}]}",
        f"{{{STUDENT}, teachers: {{teacher: {{from: big}}}}, {losses}}}",
    )
    theirs = resolve_stages(load_text(f"stages: {{big: {big}, small: {small}}}", whole=True).trials[0])["small"]
    assert identity(mine) == identity(theirs)


def test_the_order_of_passes_is_part_of_it() -> None:
    one, two = "{a: [{name: ce}], b: [{name: kd}]}", "{b: [{name: kd}], a: [{name: ce}]}"
    stage = f"{STUDENT}, teachers: {{t: {{from: teacher}}}}, passes: "
    assert digest_of(spec_of(stage + one)) != digest_of(spec_of(stage + two))


# --------------------------------------------------------------------------- seeds that are not used


@pytest.mark.parametrize(
    ("stage", "key", "used"),
    [
        ("train: {epochs: 1}", "seed", True),
        ("train: {epochs: 0}", "seed", True),  # its weights are drawn
        ("train: {epochs: 0}, init_from: teacher", "seed", False),
        ("train: {epochs: 0}, init_from: teacher, init_skip: [head]", "seed", True),
        ("data: {augment: {flip: true}}", "data.view_seed", True),
        ("data: {augment: {flip: false}}", "data.view_seed", False),
        ("data: {augment: {flip: true}}, train: {epochs: 0}", "data.view_seed", False),
        ("data: {val_fraction: 0.1}", "data.split_seed", True),
        ("data: {val_fraction: 0}", "data.split_seed", False),
        ("data: {val_fraction: 0, limit: 9}", "data.split_seed", True),
        ("data: {val_fraction: 0, limit_test: 9}", "data.split_seed", True),
    ],
)
def test_a_seed_counts_where_it_is_used(stage: str, key: str, used: bool) -> None:
    spec = spec_of(f"{STUDENT}, losses: [{{name: ce}}], {stage}")
    name = key.rpartition(".")[2]
    data = spec.data.model_copy(update={name: 7}) if "." in key else spec.data
    other = spec.model_copy(update={"data": data} if "." in key else {"seed": 7})
    assert (digest_of(other) != digest_of(spec)) == used


@pytest.mark.parametrize(("strict", "used"), [(True, False), (False, True), (["head"], True)])
def test_given_weights_leave_nothing_to_the_seed(strict: Any, used: bool) -> None:
    spec = spec_of(f"{STUDENT}, train: {{epochs: 0}}")
    student = spec.student.model_copy(update={"weights": Path("w.pt"), "weights_hash": "ab", "strict": strict})
    spec = spec.model_copy(update={"student": student})
    assert (digest_of(spec) != digest_of(spec.model_copy(update={"seed": 7}))) == used
    moved = spec.model_copy(update={"student": student.model_copy(update={"weights": Path("elsewhere.pt")})})
    assert digest_of(moved) == digest_of(spec)


def test_what_does_not_train_does_not_depend_on_how_it_would() -> None:
    still = spec_of(f"{STUDENT}, train: {{epochs: 0}}")
    assert digest_of(spec_of(f"{STUDENT}, train: {{epochs: 0, lr: 0.5}}, losses: [{{name: ce}}]")) == digest_of(still)


def test_weights_without_a_hash_have_no_digest() -> None:
    spec = spec_of(f"{STUDENT}, train: {{epochs: 0}}")
    spec = spec.model_copy(update={"student": spec.student.model_copy(update={"weights": Path("w.pt")})})
    with pytest.raises(ValueError, match=r"w\.pt has not been hashed"):
        identity(spec)


# --------------------------------------------------------------------------- what else is hashed


def test_parents_data_and_revisions_are_hashed() -> None:
    spec = spec_of(CASES["taught"])
    own = digest_of(spec)
    assert digest_of(spec, parents={"t": ("e" * 64, "last")}) != own
    assert digest_of(spec, parents={"t": ("f" * 64, "best")}) != own
    assert digest_of(spec, fingerprint="other pixels") != own
    assert digest_of(spec, revisions={"losses.kd": 2, "losses.ce": 2}) != own
    assert digest_of(spec, revisions={"losses.ce": 2}) == own  # the first revision goes without saying
    assert len(own) == 64


def test_numerics_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(CASES["plain"])
    own = digest_of(spec)
    monkeypatch.setattr("kdscale.config.digest.NUMERICS", 99)
    assert digest_of(spec) != own


# --------------------------------------------------------------------------- variants


def variants(load_text: Loading, *overrides: str) -> dict[str, list[dict[str, Any]]]:
    trials = [resolve_stages(trial) for trial in load_text("", *overrides).trials]
    return {name: [stages[name].variant for stages in trials] for name in trials[0]}


def test_a_swept_key_outside_the_identity_makes_two_stages(load_text: Loading) -> None:
    assert variants(load_text, "engine.name=ddp,deepspeed") == {
        name: [{"engine.name": "ddp"}, {"engine.name": "deepspeed"}] for name in ("teacher", "student")
    }
    assert variants(load_text, "engine.processes=1,2") == {
        name: [{"engine.processes": 1}, {"engine.processes": 2}] for name in ("teacher", "student")
    }
    assert variants(load_text, "stages.student.train.compile=true,false") == {
        "teacher": [{}, {}], "student": [{"train.compile": True}, {"train.compile": False}]
    }  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.processes=2"], ["train.lr=0.1,0.2"], ["seed=1,2"], ["data.loader=torch"],
        ["stages.student.losses.kd.weight=1,2"],
    ],
)  # fmt: skip
def test_what_is_not_swept_or_is_hashed_anyway_makes_none(overrides: list[str], load_text: Loading) -> None:
    assert all(not any(found) for found in variants(load_text, *overrides).values())


def test_a_stage_that_says_it_itself_is_not_concerned(load_text: Loading) -> None:
    found = variants(load_text, "data.loader=ffcv,torch", "stages.teacher.data.loader=torch")
    assert found["teacher"] == [{}, {}]
    assert found["student"] == [{"data.loader": "ffcv"}, {"data.loader": "torch"}]
