"""What is to be measured is planned as stages that take from the trained ones, whose digests it leaves alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from kdscale.config.load import load
from kdscale.errors import KDScaleError
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage

EXPERIMENT: dict[str, Any] = {
    "name": "measured",
    "plugins": {"path": ["."], "allow": ["birdsong"]},
    "data": {"name": "synthetic", "options": {"train_rows": 90, "test_rows": 40, "size": 16, "classes": 2}},
    "train": {"epochs": 1, "batch_size": 32, "precision": "fp32"},
    "engine": {"processes": 2},
    "resources": {"nodes": 2, "time_min": 900, "gpus_per_process": 1},
    "stages": {
        "student": {
            "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]},
            "losses": [{"name": "ce"}],
        }
    },
}
OTHER = {"options": {"train_rows": 90, "test_rows": 30, "size": 16, "classes": 2, "seed": 5}}
METRIC = "def first(logits, labels):\n    return float(labels[0])\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a metric in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "birdsong", raising=False)
    (tmp_path / "birdsong.py").write_text(METRIC)
    return tmp_path


def planned(place: Path, *overrides: str, **changes: Any) -> Plan:
    (place / "x.yaml").write_text(yaml.safe_dump(EXPERIMENT | changes, sort_keys=False))
    return make_plan(load(place / "x.yaml", overrides), Root(place / "runs"))


def only(plan: Plan, name: str) -> PlannedStage:
    [found] = [stage for stage in plan.stages.values() if stage.name == name]
    return found


def folder_set(place: Path, *classes: str, under: str = "") -> dict[str, Any]:
    for name in classes:
        path = place / "pictures" / under / name / "1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(path)
    return {"name": "image_folder", "root": str(place / "pictures")}


def test_nothing_to_measure_is_no_stage(place: Path) -> None:
    assert [stage.kind for stage in planned(place).stages.values()] == ["convert", "train"]


def test_a_measurement_takes_from_the_trained_stage_and_leaves_its_digest_and_the_sweeps_alone(place: Path) -> None:
    before = planned(place)
    after = planned(place, eval={"metrics": ["macro_f1", "birdsong:first"], "sets": {"other": OTHER}})
    stage = only(after, "student-eval")
    trained = only(after, "student")
    assert trained.digest == only(before, "student").digest
    assert after.folder_name == before.folder_name
    assert stage.parents["student"] == (trained.digest, "last")
    assert after.stages[stage.parents["data:other"][0]].kind == "convert"
    assert stage.depth == trained.depth + 1
    assert stage.cost.steps == 40 + 30
    assert stage.digest not in after.trials[0].stages.values()


def test_one_process_measures_for_an_hour_at_most(place: Path) -> None:
    spec = only(planned(place, eval={"metrics": ["macro_f1"]}), "student-eval").definition["spec"]
    asked = spec["resources"]
    assert (spec["engine"]["processes"], asked.get("nodes", 1), asked.get("time_min", 60)) == (1, 1, 60)
    assert asked["gpus_per_process"] == 1


def digest(place: Path, **section: Any) -> str:
    return only(planned(place, eval=section), "student-eval").digest


def test_what_is_measured_is_its_identity(place: Path) -> None:
    whole = {"metrics": ["birdsong:first"], "sets": {"other": OTHER}}
    first = digest(place, **whole)
    assert digest(place, **whole) == first
    different = [
        {**whole, "metrics": ["birdsong:first", "macro_f1"]}, {**whole, "metrics": []}, {**whole, "sets": {}},
        {**whole, "sets": {"other": OTHER | {"limit": 20}}}, {**whole, "sets": {"other": OTHER | {"metrics": []}}},
        {**whole, "sets": {"other": {"options": OTHER["options"] | {"seed": 6}}}},
    ]  # fmt: skip
    assert len({first, *(digest(place, **other) for other in different)}) == 1 + len(different)
    (place / "birdsong.py").write_text(METRIC + "x = 1\n")
    assert digest(place, **whole) != first, "an edited metric is another"


def test_a_folder_without_training_images_is_a_test_set(place: Path) -> None:
    section = {"sets": {"wild": folder_set(place, "pattern 0", "pattern 1")}}
    plan = planned(place, "data.options.channels=3", eval=section)
    document = only(plan, "student-eval").definition["sets"]["wild"]
    assert document["info"]["train_rows"] == 0
    assert document["info"]["test_rows"] == 2
    assert document["data"]["size"] == 16, "seen as the network's own pictures are"


@pytest.mark.parametrize(
    ("one", "said"),
    [
        ({"options": {"classes": 3}}, "has 3 classes, and the network was made for 2"),
        ({"options": {"channels": 3}}, "has 3 channels, and the network was made for 1"),
        ({"name": "image_folder", "root": "nowhere"}, r"image_folder: .*nowhere.* has no class folders"),
    ],
    ids=["classes", "channels", "missing"],
)
def test_a_set_that_is_another_task_is_refused_by_its_key(place: Path, one: dict[str, Any], said: str) -> None:
    with pytest.raises(KDScaleError, match=f"stages.student.eval.sets.other: {said}"):
        planned(place, eval={"sets": {"other": one}})


def test_a_set_whose_classes_stand_in_another_order_is_refused(place: Path) -> None:
    section = {"sets": {"wild": folder_set(place, "pattern 0", "other")}}
    with pytest.raises(KDScaleError, match=r"sets\.wild: its class other stands where the network's data has pattern"):
        planned(place, "data.options.channels=3", eval=section)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("birdsong:second", ": .*birdsong.py has no function second"),
        ("birdsong:VALUE", " is a int, not a function"),
    ],
)
def test_a_metric_that_is_none_is_refused_by_its_key(place: Path, metric: str, said: str) -> None:
    (place / "birdsong.py").write_text("VALUE = 3\n")
    with pytest.raises(KDScaleError, match=f"stages.student.eval.metrics: {metric}{said}"):
        planned(place, eval={"metrics": [metric]})


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"metrics": ["macro_f1"]}, "eval.metrics"),
        ({"sets": {"few": {"limit": 5, "metrics": ["macro_f1"]}}}, "eval.sets.few.metrics"),
    ],
    ids=["own", "set"],
)
def test_data_that_labels_pixels_has_no_metrics_of_logits(place: Path, section: dict[str, Any], key: str) -> None:
    data = {"name": "fashion_scenes"}
    student = {"student": {"model": "segmentation"}, "losses": [{"name": "pixel_ce"}]}
    with pytest.raises(KDScaleError, match=rf"stages.student.{key}: .* labels pixels, and metrics take logits"):
        planned(place, data=data, stages={"student": student}, eval=section)


def test_an_export_is_in_the_plan_and_its_weights_are_kept(place: Path) -> None:
    export = {"formats": ["pt2"], "weights": "epoch:1"}
    plan = planned(place, f"stages.student.export={export}")
    stage = only(plan, "student")
    assert plan.document()["stages"][stage.digest]["export"] == export
    assert "epoch:1" in stage.definition["keep"]
    assert stage.digest == only(planned(place), "student").digest
    with pytest.raises(KDScaleError, match="has no validation rows to be best on"):
        planned(place, "stages.student.export.weights=best", "data.val_fraction=0")
