"""Ensembles in a plan: no stage of their own, but each of their members' caches must serve who listens to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.load import load
from kdscale.errors import ConfigError
from kdscale.losses.kd import SoftTargets
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage

TOPK = {"record": "topk", "k": 3}
EXPERIMENT: dict[str, Any] = {
    "name": "ensembles",
    "data": {
        "name": "synthetic", "val_fraction": 0.1, "augment": {"flip": True},
        "options": {"train_rows": 720, "size": 16},
    },
    "train": {"epochs": 3, "batch_size": 32, "precision": "fp32"},
    "engine": {"processes": 1},
    "stages": {
        "small": {"student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 8]}, "losses": [{"name": "ce"}]},
        "large": {"student": {"model": "resnet_cifar", "depth": 8, "widths": [8, 8, 8]}, "losses": [{"name": "ce"}]},
        "student": {
            "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 4, 4]},
            "teachers": {"a": {"from": "small"}, "b": {"from": "large"}, "both": {"mean": ["a", "b"]}},
            "losses": [{"name": "kd", "teacher": "both"}],
        },
    },
}  # fmt: skip

Planning = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planning:
    """Plan the experiment, with other teachers and losses of its student."""

    def make(losses: list[dict[str, Any]] | None = None, **teachers: dict[str, Any]) -> Plan:
        document = copy.deepcopy(EXPERIMENT)
        student = document["stages"]["student"]
        student["teachers"] |= teachers
        student["losses"] = losses or student["losses"]
        config = tmp_path / "plan.yaml"
        config.write_text(yaml.safe_dump(document, sort_keys=False))
        return make_plan(load(config), Root(tmp_path / "runs"))

    return make


def only(of: Plan, name: str) -> PlannedStage:
    [found] = [stage for stage in of.stages.values() if stage.name == name]
    return found


def temperatures(of: Plan) -> dict[str, list[float]]:
    """Those that each teacher's cache is asked to hold."""
    caches = only(of, "student").definition["caches"]
    return {role: entry["need"]["layout"]["temperatures"] for role, entry in caches.items()}


def test_it_takes_from_its_members_stages_alone(plan: Planning) -> None:
    found = plan()
    small, large, data = (only(found, name).digest for name in ("small", "large", "data"))
    student = only(found, "student")
    assert student.parents == {"a": (small, "last"), "b": (large, "last"), "data": (data, "store")}
    assert student.definition["spec"]["teachers"]["both"] == {"mean": ["a", "b"]}


def test_it_costs_nothing_itself(plan: Planning) -> None:
    found = plan()
    student, teachers = only(found, "student").cost, [only(found, name).cost for name in ("small", "large")]
    assert student.teacher_flops == sum(teacher.flops for teacher in teachers)
    assert student.train_flops == student.steps * 32 * (student.step_flops + student.teacher_flops)
    cached = only(plan(a={"from": "small", "cache": {}}), "student").cost
    assert cached.saved_flops == student.steps * 32 * teachers[0].flops
    assert cached.train_flops == student.train_flops - cached.saved_flops


def test_how_it_is_said_does_not_decide_the_digest(plan: Planning) -> None:
    digests = [
        only(plan(both={"mean": members, **weights}), "student").digest
        for members, weights in (
            (["a", "b"], {"weights": [0.7, 0.3]}), (["b", "a"], {"weights": [3, 7]}), (["a", "b"], {}),
            (["a", "b"], {"weights": [0.7, 0.3], "of": "probabilities"}),
        )
    ]  # fmt: skip
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_each_members_cache_holds_the_temperatures_of_who_listens_to_the_mean(plan: Planning) -> None:
    losses = [
        {"name": "kd", "teacher": "both", "temperature": 3},
        {"name": "kd", "id": "one", "teacher": "a", "temperature": 7},
    ]
    cached = {"a": {"from": "small", "cache": TOPK}, "b": {"from": "large", "cache": TOPK}}
    assert temperatures(plan(losses, **cached)) == {"a": [1.0, 3.0, 7.0], "b": [1.0, 3.0]}


def test_a_live_member_needs_no_cache(plan: Planning) -> None:
    found = plan(b={"from": "large", "cache": TOPK})
    assert list(only(found, "student").definition["caches"]) == ["b"]
    assert [stage.name for stage in found.stages.values() if stage.kind == "fill"] == ["large-cache"]


def test_who_reads_logits_of_the_mean_reads_those_of_each_member(
    plan: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SoftTargets, "reads", "logits")
    plan(a={"from": "small", "cache": {"record": "dense"}})
    with pytest.raises(
        ConfigError,
        match=r"stages\.student\.losses\.kd: kd compares logits as they are, of which the cache of b holds 3; set "
        r"stages\.student\.teachers\.b\.cache\.record: dense",
    ):
        plan(b={"from": "large", "cache": TOPK})


def test_its_features_cannot_be_tapped(plan: Planning) -> None:
    losses = [{"name": "kd", "teacher": "both", "taps": {"student": ["stage1"], "teacher": ["stage1"]}}]
    with pytest.raises(ConfigError, match=r"stages\.student\.losses\.kd\.taps\.teacher: both is an ensemble"):
        plan(losses)
