"""`launch/cache.py plan`: what a cache costs, what it saves, and that it says when it does not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from kdscale.config.load import load
from kdscale.jobs.cache_plan import Forecast, caches_of_plan
from kdscale.jobs.cache_plan_screen import lines_of, show_caches, verdict
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan
from tests.small_caches import CONFIG


def planned(root: Root, folder: Path, *overrides: str, **stages: Any) -> tuple[Plan, dict[str, Forecast]]:
    """The plan, and its caches by the kind of their records."""
    config = copy.deepcopy(CONFIG)
    config["stages"] |= stages
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(config))
    plan = make_plan(load(file, overrides), root)
    found = caches_of_plan(plan, root)
    return plan, {cache.students[0].name: cache for cache in found}


def text_of(cache: Forecast) -> dict[str, str]:
    return dict(lines_of(cache))


def test_nothing_is_written(tmp_path: Path) -> None:
    planned(Root(tmp_path / "runs"), tmp_path)
    assert not (tmp_path / "runs").exists()


def test_what_it_holds_and_takes(tmp_path: Path) -> None:
    plan, caches = planned(Root(tmp_path / "runs"), tmp_path, "stages.exact.train.epochs=4")
    assert set(caches) == {"exact", "sparse", "mixed"}
    one = caches["exact"]
    assert (one.need.views, one.rows, one.cost.steps, one.teacher_images) == (2, 108, 8, 8 * 32)
    assert one.cost.train_flops == one.teacher_images * plan.stages[one.need.teacher].cost.flops
    text = text_of(one)
    assert text["cache"].endswith("2 views x 108 rows")
    assert text["record"] == "dense fp32, 40 B   beside 44 B of TinyViT's with K=10, 20 B of dense fp16"
    assert "beside 16 B of TinyViT's with K=3" in text_of(caches["sparse"])["record"]
    assert "256 teacher forwards" in text["filling"]
    assert "nobody knows how long" in text["filling"]
    assert "none of it is there" in text["on disk"]
    assert text["reading"].startswith("0.04 MB/s for every 1,000 images/s")


def test_it_pays_when_the_students_epochs_are_more_than_its_views(tmp_path: Path) -> None:
    _, caches = planned(
        Root(tmp_path / "runs"), tmp_path, "seed=0,1,2", "stages.teacher.seed=0", "stages.exact.train.epochs=5"
    )
    one = caches["exact"]
    assert (one.epochs, one.pays) == (15, True)
    assert verdict(one).startswith("3 students x 5 epochs = 15 > 2 views: pays, 7.5 x fewer teacher images; ")
    steps = 5 * (108 // 32)
    assert one.live_flops == 3 * steps * 32 * one.cost.flops


def test_epochs_that_differ_are_added_up(tmp_path: Path) -> None:
    other = copy.deepcopy(CONFIG["stages"]["exact"]) | {"train": {"epochs": 7}}
    _, caches = planned(Root(tmp_path / "runs"), tmp_path, other=other)
    assert "1 student x 2 epochs + 1 student x 7 epochs = 9 > 2 views: pays, 4.5 x" in verdict(caches["exact"])


def test_one_that_does_not_pay_says_what_would(tmp_path: Path) -> None:
    _, caches = planned(Root(tmp_path / "runs"), tmp_path)
    assert not caches["exact"].pays
    said = verdict(caches["exact"])
    assert said.startswith("1 student x 2 epochs = 2 = 2 views: does not pay, saves nothing; ")
    assert "cache: {views: 1} or fewer" in said
    assert "more students or seeds that read it (2 of 2 epochs)" in said


def test_a_student_of_one_epoch_cannot_be_mended_by_fewer_views(tmp_path: Path) -> None:
    _, caches = planned(Root(tmp_path / "runs"), tmp_path, "stages.exact.train.epochs=1")
    assert "views:" not in verdict(caches["exact"]).partition("It would")[2]


def test_two_teachers_of_one_student_share_what_it_saves(tmp_path: Path) -> None:
    both = copy.deepcopy(CONFIG["stages"]["exact"])
    wide = {"student": {"model": "resnet_cifar", "depth": 8, "widths": [8, 8, 16]}, "losses": [{"name": "ce"}]}
    both["teachers"]["u"] = {"from": "wide", "cache": both["teachers"]["t"]["cache"]}
    both["losses"] = [
        {"name": "ce", "weight": 0.5},
        {"name": "kd", "id": "a", "weight": 0.25, "teacher": "t"},
        {"name": "kd", "id": "b", "weight": 0.25, "teacher": "u"},
    ]
    config = copy.deepcopy(CONFIG)
    config["stages"] = {"teacher": CONFIG["stages"]["teacher"], "wide": wide, "both": both}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    root = Root(tmp_path / "runs")
    plan = make_plan(load(tmp_path / "two.yaml", []), root)
    found = caches_of_plan(plan, root)
    assert [cache.teacher for cache in found] == ["teacher", "wide"]
    assert [cache.live_flops for cache in found] == [6 * 32 * cache.cost.flops for cache in found]
    assert sum(cache.live_flops for cache in found) == plan.stages[found[0].students[0].digest].cost.saved_flops


def test_what_is_there_and_how_fast_it_went(caches: Root, tmp_path: Path) -> None:
    _, found = planned(caches, tmp_path)
    one = found["sparse"]
    assert (one.present, one.cost.steps, one.students[0].done) == (8, 8, True)
    assert "all of it is there" in text_of(one)["on disk"]
    assert text_of(one)["filling"].endswith(": done")
    assert one.students[0].rate is not None
    assert one.students[0].rate.stage.startswith("sparse-")
    assert "as sparse-" in text_of(one)["reading"]


def test_another_cache_of_a_timed_teacher_is_foretold_in_seconds(caches: Root, tmp_path: Path) -> None:
    fill = next(stage for stage in caches.stages() if stage.name == "teacher-cache")
    for stage in caches.stages():
        if stage.name == "teacher-cache":
            stage.write_state(results={"images_per_s": 64.0})
    _, found = planned(caches, tmp_path, "stages.exact.teachers.t.cache.block_rows=64")
    one = found["exact"]
    assert (one.present, one.rate.images_per_s if one.rate else None) == (0, 64.0)
    assert one.seconds == 2 * 2 * 64 / 64
    assert fill.name in text_of(one)["filling"]


def test_half_of_it_is_there(caches: Root, tmp_path: Path) -> None:
    _, found = planned(caches, tmp_path)
    place = found["exact"].place
    assert place is not None
    with (Path(place) / "blocks.bin").open("r+b") as file:
        file.truncate(5 * 16)
    _, found = planned(caches, tmp_path)
    assert "5 of them are there" in text_of(found["exact"])["on disk"]


def test_as_json(caches: Root, tmp_path: Path, capsys: Any) -> None:
    plan, found = planned(caches, tmp_path)
    show_caches(list(found.values()), plan.folder_name, Console(width=200), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [(one["blocks"], one["blocks_there"], one["pays"]) for one in document["caches"]] == [(8, 8, False)] * 3


def test_a_plan_without_caches_says_how_to_ask_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    show_caches([], "birds-12345678", Console(width=200), as_json=False)
    assert "no student of this plan reads a cache" in capsys.readouterr().out
