"""What `--dry-run` and `--explain` say of teacher caches, from the YAML on."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from kdscale.cache.folder import CacheFolder
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.config.load import Sweep, load
from kdscale.jobs.explanation import explain_screen
from kdscale.jobs.screens import plan_screen
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan

SMALL: dict[str, Any] = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
LOSSES = [{"name": "ce"}, {"name": "kd"}]
EXPERIMENT: dict[str, Any] = {
    "name": "cached",
    "data": {
        "name": "synthetic", "val_fraction": 0, "augment": {"flip": True}, "options": {"train_rows": 1024, "size": 16}
    },
    "train": {"epochs": 16, "batch_size": 32, "precision": "fp32"},
    "engine": {"processes": 1},
    "stages": {
        "teacher": {"student": SMALL, "losses": [{"name": "ce"}]},
        "student": {
            "student": SMALL, "losses": LOSSES, "teachers": {"teacher": {"from": "teacher", "cache": {"views": 8}}},
        },
    },
}  # fmt: skip

Planning = Callable[..., tuple[Plan, Sweep, Root]]


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    def make(*overrides: str, **stages: Any) -> tuple[Plan, Sweep, Root]:
        document = copy.deepcopy(EXPERIMENT)
        document["stages"] |= stages
        config = tmp_path / "cached.yaml"
        config.write_text(yaml.safe_dump(document, sort_keys=False))
        root = Root(tmp_path / "runs")
        sweep = load(config, overrides)
        return make_plan(sweep, root), sweep, root

    return make


def shown(renderable: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_every_stage_and_what_it_takes_from_can_be_read(planning: Planning, width: int) -> None:
    text = shown(plan_screen(planning()[0]), width)
    for said in ("data", "student", "teacher-cache", "16 blocks", "teacher, "):
        assert said in text
    assert "@cache" not in text
    assert max(map(len, text.splitlines())) <= width


def test_a_cache_that_pays_is_in_the_headline_and_in_the_totals(planning: Planning) -> None:
    text = shown(plan_screen(planning()[0]))
    assert "with 1 cache fill (8 views, 205 kB)" in text
    assert "without the cache; 8 views: it pays after 8 student-epochs) · longest chain" in text
    assert "does not pay" not in text


def test_a_cache_that_does_not_pay_is_said_with_its_mend(planning: Planning) -> None:
    text = " ".join(shown(plan_screen(planning("train.epochs=8")[0])).split())
    assert "asked for 8,192 images to fill it, 8,192 would answer its students" in text
    assert "set stages.student.teachers.teacher.cache.views to 7 at most, or leave" in text
    assert "it pays" not in text


def test_one_view_that_is_read_once_can_only_be_left_out(planning: Planning) -> None:
    text = shown(plan_screen(planning("train.epochs=1")[0]))
    assert "would answer its students: leave stages.student.teachers.teacher.cache out" in text


def test_two_caches_of_a_teacher_are_told_apart(planning: Planning) -> None:
    sparse = copy.deepcopy(EXPERIMENT["stages"]["student"])
    sparse["teachers"]["teacher"]["cache"] |= {"record": "topk", "k": 3, "parts": 2}
    plan = planning(sparse=sparse)[0]
    first = next(stage.digest[:6] for stage in plan.stages.values() if stage.kind == "fill" and "top 3" in stage.model)
    text = shown(plan_screen(plan))
    assert text.count(f"teacher, teacher-cache {first}") == 1, "two parts are one cache"
    assert "teacher-cache (top 3 + uniform), 8 views: it pays after 8 student-epochs" in text
    assert "with 2 cache fills (8 views, " in text


def test_forwards_backwards_and_who_hears_a_cache_are_one_line(planning: Planning) -> None:
    """16 epochs of 1,024 rows each; the cache's 8 views in their place, for both students."""
    other = copy.deepcopy(EXPERIMENT["stages"]["student"]) | {"seed": 1}
    text = shown(plan_screen(planning(other=other)[0]))
    said = "forwards 57.3 k (81.9 k without the cache) · backwards 49.2 k images · the cache answers 2 students"
    assert said in text.splitlines()
    assert "forwards" in next(line for line in text.splitlines() if line.startswith("stage"))


def test_without_a_cache_nothing_is_said_of_any(planning: Planning) -> None:
    text = shown(plan_screen(planning("stages.student.teachers.teacher.cache=null")[0]))
    assert "forwards 49.2 k · backwards 32.8 k images" in text.splitlines()


def test_what_is_said_of_several_caches_alike_is_said_once(planning: Planning) -> None:
    student = copy.deepcopy(EXPERIMENT["stages"]["student"])
    student["teachers"] = {name: {"from": name, "cache": {"views": 8}} for name in ("teacher", "second")}
    student["losses"] = [{"name": "kd", "id": f"kd_{name}", "teacher": name} for name in student["teachers"]]
    second = EXPERIMENT["stages"]["teacher"] | {"seed": 1}
    text = shown(plan_screen(planning(second=second, student=student)[0]))
    assert "with 2 cache fills (2 × 8 views, 205 kB)" in text
    assert "teacher-cache, second-cache (dense), 8 views: it pays after 8 student-epochs" in text.splitlines()
    assert "each cache answers 1 student" in text


def test_filling_on_use_counts_though_no_stage_does_it(planning: Planning) -> None:
    by_stage, on_use = planning()[0], planning("stages.student.teachers.teacher.cache.fill=on_use")[0]

    def computed(plan: Plan) -> str:
        return shown(plan_screen(plan)).partition("to compute ")[2].partition(" TFLOPs")[0]

    assert computed(by_stage) == computed(on_use)
    assert all(stage.kind != "fill" for stage in on_use.stages.values())


def test_explain_says_what_a_cache_waits_for(planning: Planning) -> None:
    text = shown(explain_screen(*planning()))
    line = next(line for line in text.splitlines() if line.startswith("teacher-cache"))
    assert "new" in line
    assert "never filled before; asks teacher, data" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.teacher.train.lr=0.3", "teacher changed"),
        ("stages.student.teachers.teacher.cache.views=4", "views 8 -> 4"),
        ("stages.student.teachers.teacher.cache.record=dense_fp32", "record.kind dense -> dense_fp32"),
    ],
)
def test_explain_says_why_a_cache_is_filled_again(planning: Planning, override: str, said: str) -> None:
    plan, _, root = planning()
    fill = next(stage for stage in plan.stages.values() if stage.kind == "fill")
    folder = root.create_stage(fill.name, fill.digest)
    (folder.path / "stage.yaml").write_text(yaml.safe_dump(fill.definition))
    folder.write_state(state="done")
    line = next(
        line for line in shown(explain_screen(*planning(override))).splitlines() if line.startswith("teacher-cache")
    )
    assert "refill" in line
    assert f"{said}   nearest: {folder.path.name}" in line


def test_a_cache_of_another_kind_of_record_does_not_serve(planning: Planning) -> None:
    """A plan beside a dense cache, of sparse students: the one has no temperatures that the other could take over."""
    plan, _, root = planning()
    need = CacheNeed.of(next(stage for stage in plan.stages.values() if stage.kind == "fill").definition["need"])
    manifest = Manifest(
        identity=need.identity("ab"), rows=1024, rows_hash=hash_of_rows(np.arange(1024)),
        record_bytes=need.layout.record_bytes, block_rows=512, shard_records=5120, views=8,
    )  # fmt: skip
    CacheFolder.create(root.caches, manifest, np.arange(1024))
    cache = "stages.student.teachers.teacher.cache"
    other = planning(f"{cache}.record=topk", f"{cache}.k=3")[0]
    assert [stage.model for stage in other.stages.values() if stage.kind == "fill"] == [
        "resnet_cifar depth=8: 8 views, top 3 + uniform, 26 B each"
    ]


def test_what_a_split_head_sends_is_said_beside_the_image(planning: Planning) -> None:
    head = {"split_at": "stage2", "channels": 3, "size": 4}
    hints = {"name": "fitnet", "regressor": "none", "taps": {"student": ["stage2"], "teacher": ["stage2"]}}
    split = {
        "student": SMALL | {"split_head": head}, "teachers": {"teacher": {"from": "teacher"}}, "init_from": "teacher",
        "strategy": "split_head", "losses": [hints],
    }  # fmt: skip
    text = shown(plan_screen(planning(student=split)[0]))
    assert "student: sends 48 bytes a sample, 18.8 % of its image's 256, after " in text
    assert "split_at=stage2 channels=3" in text
    assert "teacher: sends" not in text
