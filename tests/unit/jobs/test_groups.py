"""What stages that are submitted together wait for, as sbatch is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.load import load
from kdscale.jobs.slurm.groups import Group, dependency, groups
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan

OPTIONS = {"train_rows": 90, "test_rows": 40, "size": 16}
EXPERIMENT: dict[str, Any] = {
    "name": "arrays",
    "data": {"name": "synthetic", "options": OPTIONS},
    "train": {"epochs": 1, "batch_size": 32, "precision": "fp32"},
    "engine": {"processes": 1},
    "sweep": {"seed": [0, 1, 2]},
    "eval": {"metrics": ["macro_f1"], "sets": {"other": {"options": OPTIONS | {"seed": 1}}}},
    "stages": {"student": {"student": {"model": "resnet_cifar", "depth": 8}, "losses": [{"name": "ce"}]}},
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three seeds, each measured on a further set."""
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return make_plan(load(tmp_path / "x.yaml"), Root(tmp_path / "runs"))


def submitted(plan: Plan, done: frozenset[str] = frozenset()) -> list[tuple[list[str], str | None]]:
    """Names of the stages of each array, and what it waits for; jobs are numbered from 1."""
    found, jobs = [], dict[str, str]()
    todo = [stage for stage in plan.stages.values() if stage.digest not in done]
    for number, group in enumerate(groups(plan, todo, done, most=100), 1):
        group.order_as(jobs)
        found.append(([stage.name for stage in group.stages], dependency(group, jobs)))
        jobs |= {stage.digest: f"{number}_{index}" for index, stage in enumerate(group.stages)}
    return found


def test_measurements_are_one_array_that_follows_that_of_the_students(plan: Plan) -> None:
    students, measured = ["student"] * 3, ["student-eval"] * 3
    assert submitted(plan) == [(["data"] * 2, None), (students, "afterok:1_0"), (measured, "afterok:1_1,aftercorr:2")]
    converted = frozenset(stage.digest for stage in plan.stages.values() if stage.kind == "convert")
    assert submitted(plan, converted) == [(students, None), (measured, "aftercorr:1")]


def test_tasks_stand_in_the_order_of_those_that_they_wait_for(plan: Plan) -> None:
    *_, group = groups(plan, list(plan.stages.values()), frozenset(), most=100)
    students = [stage.parents["student"][0] for stage in group.stages]
    jobs = {digest: f"7_{index}" for index, digest in enumerate(reversed(students))}
    jobs |= {stage.digest: "3" for stage in plan.stages.values() if stage.kind == "convert"}
    group.order_as(jobs)
    assert [stage.parents["student"][0] for stage in group.stages] == students[::-1]
    assert dependency(group, jobs) == "afterok:3,aftercorr:7"


def test_what_waits_for_some_tasks_of_an_array_waits_for_each_of_them(plan: Plan) -> None:
    stages = [stage for stage in plan.stages.values() if stage.name == "student-eval"]
    one = Group(stages[:1], [frozenset({"a", "b"})])
    two = Group(stages[:2], [frozenset({"a"}), frozenset({"b"})])
    jobs = {"a": "4_1", "b": "4_2"}
    assert dependency(one, jobs) == dependency(two, jobs) == "afterok:4_1:4_2"
    assert dependency(two, {}) is None
