"""configs/methods: each file runs alone, merges by `use:` into another experiment, and all share one teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale import plugins
from kdscale.config.load import Sweep, load, resolve_stages
from kdscale.config.schema import StageSpec
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))
OWN: dict[str, Any] = {
    "name": "own",
    "data": {"name": "synthetic", "val_fraction": 0.1, "options": {"train_rows": 400, "size": 16, "classes": 7}},
    "train": {"epochs": 2, "batch_size": 32, "precision": "fp32"},
    "engine": {"processes": 1},
    "stages": {
        "teacher": {"seed": 0, "student": {"model": "wrn", "depth": 16, "widen": 1}, "losses": [{"name": "ce"}]},
        "student": {
            "student": {"model": "wrn", "depth": 10, "widen": 1},
            "teachers": {"teacher": {"from": "teacher"}},
            "losses": [{"name": "ce"}],
        },
    },
}  # fmt: skip
"""A user's own experiment: other data, other networks, of equal widths as some methods ask for."""


@pytest.fixture
def planned(tmp_path: Path) -> Any:
    def plan(sweep: Sweep) -> Plan:
        return make_plan(sweep, Root(tmp_path / "runs"))

    return plan


def written(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def features_are_read(spec: StageSpec) -> bool:
    return any(term.taps is not None and term.taps.teacher for terms in spec.passes.values() for term in terms)


def test_every_loss_and_modifier_has_a_file() -> None:
    in_files = {"zscore": "logit_std"}
    of_pipelines = {"lift_target", "misclassified", "adaptation", "pixel_ce"}
    for kind in ("losses", "modifiers"):
        assert {in_files.get(name, name) for name in plugins.available(kind)} - of_pipelines <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_it_can_be_planned_alone(method: str, planned: Any) -> None:
    sweep = load(CONFIGS / "methods" / f"{method}.yaml")
    assert sweep.name == method
    plan = planned(sweep)
    networks = {stage.name: stage.model for stage in plan.stages.values() if stage.kind == "train"}
    assert networks["student"] == "resnet_cifar depth=8"
    assert networks.get("teacher", "resnet_cifar depth=26") == "resnet_cifar depth=26"


@pytest.mark.parametrize("method", METHODS)
def test_merged_by_use_it_takes_the_networks_and_data_that_are_there(method: str, tmp_path: Path, planned: Any) -> None:
    sweep = {"method": {method: {"use": f"kdscale:methods/{method}.yaml"}}}
    plan = planned(load(written(tmp_path, OWN | {"sweep": sweep})))
    specs = [spec for stage in plan.stages.values() if (spec := stage.definition.get("spec"))]
    assert {spec["student"]["model"] for spec in specs} == {"wrn"}
    assert {spec["data"]["name"] for spec in specs} == {"synthetic"}


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_is_kept_where_its_logits_are_all_that_is_read(method: str) -> None:
    spec = resolve_stages(load(CONFIGS / "methods" / f"{method}.yaml").trials[0])["student"]
    gradients = any(
        plugins.load("losses", term.name).needs_input_grad for terms in spec.passes.values() for term in terms
    )
    for ref in spec.teachers.values():
        assert (ref.cache is None) == (features_are_read(spec) or gradients)


def test_no_file_names_a_network_or_a_data_set() -> None:
    for method in METHODS:
        own = yaml.safe_load((CONFIGS / "methods" / f"{method}.yaml").read_text())
        assert own.keys() == {"extends", "name", "stages"}
        assert not any("student" in stage for stage in own["stages"].values()), method


def test_the_comparison_goes_through_all_of_them_with_one_teacher(planned: Any) -> None:
    sweep = load(CONFIGS / "methods.yaml", ["seed=0,1"])
    assert sorted(sweep.axes["method"]) == METHODS
    assert (sweep.axes["method"][0], sweep.trials[0].experiment.data.limit) == ("ce", 10000)
    plan = planned(sweep)
    names = [stage.name for stage in plan.stages.values()]
    assert (names.count("teacher"), names.count("teacher-cache"), names.count("student")) == (1, 1, 2 * len(METHODS))
