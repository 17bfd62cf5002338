"""Transfer sets: no label of their rows is read, and no row of them taught the teachers."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdscale import plugins
from kdscale.config.load import load
from kdscale.config.schema import DataConfig
from kdscale.data.split import carve
from kdscale.errors import ConfigError
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "pipelines" / "compression.yaml"
NET = {"model": "resnet_cifar", "depth": 8, "widths": [4, 4, 8]}
KD = {"name": "kd"}
Planning = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planning:
    """Plan a teacher on 100 rows with labels, and a student on others without."""

    def make(student: dict[str, Any] | None = None, data: dict[str, Any] | None = None, classes: int = 4) -> Plan:
        whole = {
            "name": "synthetic", "val_fraction": 0.1, "limit": 100,
            "options": {"train_rows": 720, "size": 16, "classes": classes},
        }  # fmt: skip
        taught = {
            "student": NET, "teachers": {"t": {"from": "teacher", "cache": {}}}, "losses": [KD],
            "data": {"transfer": 100, "limit": None} | (data or {}),
        }  # fmt: skip
        stages = {"teacher": {"student": NET, "losses": [{"name": "ce"}]}, "student": taught | (student or {})}
        train = {"epochs": 2, "batch_size": 32, "precision": "fp32"}
        document = {"name": "x", "data": whole, "train": train, "engine": {"processes": 1}, "stages": stages}
        config = tmp_path / "x.yaml"
        config.write_text(yaml.safe_dump(document))
        return make_plan(load(config), Root(tmp_path / "runs"))

    return make


def named(of: Plan, name: str) -> PlannedStage:
    [found] = [stage for stage in of.stages.values() if stage.name == name]
    return found


def split_of(stage: PlannedStage) -> DataConfig:
    return DataConfig(**stage.definition["spec"]["data"])


def test_the_transfer_set_begins_where_the_teachers_rows_end(plan: Planning) -> None:
    found = plan()
    labels = np.arange(720) % 4
    teacher, student = (carve(labels, split_of(named(found, name))) for name in ("teacher", "student"))
    assert (len(teacher.train), len(student.train)) == (100, 548)
    assert not set(teacher.train) & set(student.train)
    assert not set(student.train) & set(student.val)
    assert np.array_equal(teacher.val, student.val)
    assert named(found, "student").cost.steps == 2 * (548 // 32)


def test_a_cache_holds_the_transfer_set_alone(plan: Planning) -> None:
    split = named(plan(), "teacher-cache").definition["need"]["data"]["split"]
    assert split == {"val_fraction": 0.1, "split_seed": 0, "limit": None, "transfer": 100}


def test_another_transfer_set_is_another_student_of_the_same_teacher(plan: Planning) -> None:
    one, other = plan(), plan(data={"transfer": 200})
    assert named(one, "teacher").digest == named(other, "teacher").digest
    for name in ("teacher-cache", "student"):
        assert named(one, name).digest != named(other, name).digest


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"losses": [KD, {"name": "ce"}]}, r"losses\.ce: ce compares with the labels"),
        ({"losses": [{"name": "dkd"}]}, r"losses\.dkd: dkd compares with the labels"),
        (
            {"losses": [{"name": "kd", "modifiers": [{"name": "misclassified"}]}]},
            r"losses\.kd\.modifiers\.misclassified: it asks whether the teacher is right",
        ),
        ({"teachers": {"t": {"virtual": {}}}}, r"teachers\.t\.virtual: a virtual teacher answers from the labels"),
        ({"teachers": {"t": {"from": "teacher", "cache": {"record": "topk", "k": 2}}}}, r"t\.cache\.record: topk"),
        ({"passes": {"a": [KD], "b": [{"name": "ce"}]}, "losses": None}, r"passes\.b\.ce: ce compares"),
    ],
)
def test_who_would_read_a_label_is_refused(student: dict[str, Any], said: str, plan: Planning) -> None:
    with pytest.raises(ConfigError, match=rf"stages\.student\..*{said}.*data\.transfer trains on rows without labels"):
        plan(student)


def test_a_transfer_set_without_a_row_is_refused(plan: Planning) -> None:
    with pytest.raises(ConfigError, match=r"student\.data\.transfer: 648 leaves no row of the 648 that are not for"):
        plan(data={"transfer": 648})


def test_a_network_that_is_only_measured_learns_from_nobody(plan: Planning) -> None:
    measured = {"train": {"epochs": 0}, "teachers": {}, "losses": [{"name": "ce"}]}
    assert named(plan(measured), "student").cost.steps == 0


@pytest.mark.parametrize("name", plugins.available("losses"))
def test_a_loss_that_reads_labels_says_so(name: str) -> None:
    cls = plugins.load("losses", name)
    read = {node.attr for node in ast.walk(_source(cls)) if isinstance(node, ast.Attribute)}
    called = {node.func.id for node in ast.walk(_source(cls)) if _calls_a_name(node)}  # type: ignore[attr-defined]
    assert ("labels" in cls.needs) == ("labels" in read or "by_share" in called)


def test_compression_compares_equal_budgets_on_disjoint_rows(tmp_path: Path) -> None:
    plan = make_plan(load(CONFIG), Root(tmp_path))
    trials = {trial.label: {n: plan.stages[d] for n, d in trial.stages.items()} for trial in plan.trials}
    students = {label: stages["student"] for label, stages in trials.items()}
    images = {label: student.cost.steps * 128 for label, student in students.items()}
    assert images == {"labels": 188_416, "seen": 188_416, "unseen": 192_000}
    data = {label: student.definition["spec"]["data"] for label, student in students.items()}
    assert [(d.get("transfer"), d.get("limit")) for d in data.values()] == [(None, 6000), (0, 6000), (6000, None)]
    assert {trials[label][t].digest for label in trials for t in ("t1", "t2", "t3")} == {
        stage.digest for stage in plan.stages.values() if stage.name in ("t1", "t2", "t3")
    }
    assert all(trials["unseen"][t].definition["spec"]["data"]["limit"] == 6000 for t in ("t1", "t2", "t3"))
    assert [student.cost.saved_flops > 0 for student in students.values()] == [False, True, True]


def _source(cls: type) -> ast.Module:
    return ast.parse(inspect.getsource(inspect.getmodule(cls)))  # type: ignore[arg-type]


def _calls_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
