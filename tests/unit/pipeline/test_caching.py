"""Which caches a plan needs, who shares one, what is refused, and what is identity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdscale.api import Loss, Modifier, PluginConfig
from kdscale.cache.folder import CacheFolder
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.config.load import load
from kdscale.errors import ConfigError, TapError
from kdscale.losses.kd import SoftTargets
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.cache_need import CacheNeed, part_of
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage

SMALL: dict[str, Any] = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
EXPERIMENT: dict[str, Any] = {
    "name": "caching",
    "data": {
        "name": "synthetic", "val_fraction": 0.1, "augment": {"flip": True},
        "options": {"train_rows": 720, "size": 16, "classes": 10},
    },
    "train": {"epochs": 3, "batch_size": 32, "precision": "fp32"},
    "engine": {"processes": 1},
    "stages": {
        "teacher": {"student": SMALL | {"widths": [8, 8, 16]}, "losses": [{"name": "ce"}], "train": {"epochs": 1}},
        "student": {
            "student": SMALL,
            "teachers": {"t": {"from": "teacher", "cache": {"views": 2}}},
            "losses": [{"name": "ce"}, {"name": "kd", "temperature": 4}],
        },
    },
}  # fmt: skip
CACHE = "stages.student.teachers.t.cache"
MANY = "data.options.classes=300"

Planning = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planning:
    def make(*overrides: str, said: list[str] | None = None, root: Path | None = None) -> Plan:
        config = tmp_path / "caching.yaml"
        config.write_text(yaml.safe_dump(EXPERIMENT))
        say = said.append if said is not None else lambda _: None
        return make_plan(load(config, overrides), Root(root or tmp_path / "runs"), say=say)

    return make


def stages(plan: Plan, name: str) -> list[PlannedStage]:
    return [stage for stage in plan.stages.values() if stage.name == name]


def student(plan: Plan) -> PlannedStage:
    return stages(plan, "student")[0]


def need(plan: Plan, role: str = "t") -> CacheNeed:
    return CacheNeed.of(student(plan).definition["caches"][role]["need"])


class TestFillStages:
    def test_a_student_waits_for_the_stage_that_fills_its_cache(self, plan: Planning) -> None:
        made = plan()
        (fill,) = stages(made, "teacher-cache")
        teacher = stages(made, "teacher")[0]
        assert fill.kind == "fill"
        assert fill.parents["teacher"] == (teacher.digest, "last")
        assert student(made).parents["cache:t"] == (fill.digest, "cache")
        assert [teacher.depth, fill.depth, student(made).depth] == [1, 2, 3]
        assert fill.cost.steps == 2 * 2  # 648 rows are two blocks of 512, over two views
        assert fill.cost.bytes >= 4 * 512 * 24
        assert student(made).cost.saved_flops == 60 * 32 * teacher.cost.flops
        assert student(made).cost.train_flops == 60 * 32 * student(made).cost.step_flops

    def test_filled_on_use_nobody_is_waited_for(self, plan: Planning) -> None:
        made = plan(f"{CACHE}.fill=on_use")
        assert not stages(made, "teacher-cache")
        assert set(student(made).parents) == {"t", "data"}
        assert student(made).digest == student(plan()).digest

    def test_students_of_one_cache_share_its_filling(self, plan: Planning) -> None:
        made = plan("seed=range(3)", "stages.teacher.seed=0", "stages.student.losses.kd.weight=0.5,1")
        assert len(stages(made, "student")) == 6
        assert len(stages(made, "teacher-cache")) == 1

    def test_the_most_views_rows_and_temperatures_are_filled_once(self, plan: Planning) -> None:
        made = plan(
            MANY, f"{CACHE}.k=5", f"{CACHE}.views=1,3", "stages.student.losses.kd.temperature=2,4",
            "stages.student.data.limit=100,200",
        )  # fmt: skip
        assert len(stages(made, "student")) == 8
        (fill,) = stages(made, "teacher-cache")
        united = CacheNeed.of(fill.definition["need"])
        assert (united.views, united.limit, united.layout.temperatures) == (3, 200, (1.0, 2.0, 4.0))

    def test_what_changes_records_is_filled_apart(self, plan: Planning) -> None:
        axes = ["record=dense,dense_fp32", "fold=true,false", "precision=fp32,bf16", "block_rows=128,256"]
        for axis in axes:
            assert len(stages(plan(f"{CACHE}.{axis}"), "teacher-cache")) == 2, axis
        assert len(stages(plan("data.view_seed=0,1", "stages.teacher.data.view_seed=0"), "teacher-cache")) == 2
        assert len(stages(plan("seed=0,1"), "teacher-cache")) == 2  # two teachers

    def test_partners_of_a_mixture_are_drawn_among_the_rows_that_train(self, plan: Planning) -> None:
        axis = ["stages.student.data.limit=100,200"]
        assert len(stages(plan(*axis), "teacher-cache")) == 1
        mixed = plan(*axis, "stages.student.data.augment.mixup=1.0")
        assert len(stages(mixed, "teacher-cache")) == 2

    def test_parts_are_stages_that_share_the_blocks(self, plan: Planning) -> None:
        made = plan(f"{CACHE}.parts=3", f"{CACHE}.block_rows=64")
        fills = [stage for stage in made.stages.values() if stage.kind == "fill"]
        assert [stage.name for stage in fills] == [f"teacher-cache-{n}of3" for n in (1, 2, 3)]
        assert {d for role, (d, _) in student(made).parents.items() if role.startswith("cache:")} == {
            stage.digest for stage in fills
        }
        ranges = [part_of(22, stage.definition["part"]) for stage in fills]
        assert [block for first, last in ranges for block in range(first, last)] == list(range(22))
        assert student(made).digest == student(plan(f"{CACHE}.block_rows=64")).digest

    def test_a_cache_that_holds_more_serves_as_well(self, plan: Planning, tmp_path: Path) -> None:
        """Seen before the teacher is at hand: which temperatures are asked for does not orphan what was filled."""
        larger = need(plan(MANY, f"{CACHE}.k=5", "stages.student.losses.kd.temperature=2,4"))
        numbers = np.arange(10)
        manifest = Manifest(
            identity=larger.identity("weights"), rows=10, rows_hash=hash_of_rows(numbers),
            record_bytes=larger.layout.record_bytes, block_rows=512, shard_records=512, views=2,
        )  # fmt: skip
        CacheFolder.create(tmp_path / "runs" / "caches", manifest, numbers)
        smaller = plan(MANY, f"{CACHE}.k=5", "stages.student.losses.kd.temperature=4")
        assert need(smaller).layout.temperatures == (1.0, 2.0, 4.0)
        other = plan(MANY, f"{CACHE}.k=5", "stages.student.losses.kd.temperature=3")
        assert need(other).layout.temperatures == (1.0, 3.0)


class TestIdentity:
    def test_what_decides_a_student_and_what_does_not(self, plan: Planning) -> None:
        base = student(plan()).digest
        for same in ("fill=on_use", "parts=4", "shard_mb=1", "precision=fp32", "record=dense"):
            assert student(plan(f"{CACHE}.{same}")).digest == base, same
        for other in ("views=1", "record=dense_fp32", "fold=false", "precision=bf16", "block_rows=64", "pooled=true"):
            assert student(plan(f"{CACHE}.{other}")).digest != base, other

    def test_views_that_no_epoch_shows_are_neither_filled_nor_counted(self, plan: Planning) -> None:
        assert student(plan(f"{CACHE}.views=3")).digest == student(plan(f"{CACHE}.views=100")).digest
        assert need(plan(f"{CACHE}.views=100")).views == 3

    def test_without_augmentation_there_is_one_view(self, plan: Planning) -> None:
        made = plan("data.augment={}")
        assert need(made).views == 1

    def test_more_views_than_one_make_another_stage_than_a_live_teacher(self, plan: Planning) -> None:
        assert student(plan()).digest != student(plan(f"{CACHE}=null")).digest

    def test_an_identity_names_everything_that_decides_a_record(self, plan: Planning) -> None:
        found = need(plan()).identity("3f21")
        assert set(found) == {
            "teacher", "data", "record", "precision", "fold", "block_rows", "numerics", "revision"
        }  # fmt: skip
        assert found["teacher"] == {"stage": stages(plan(), "teacher")[0].digest, "selector": "last", "weights": "3f21"}
        assert found["data"]["split"] == {"val_fraction": 0.1, "split_seed": 0, "limit": None}

    def test_a_need_survives_its_document(self, plan: Planning) -> None:
        found = need(plan(MANY, f"{CACHE}.k=7"))
        assert CacheNeed.of(yaml.safe_load(yaml.safe_dump(found.document()))) == found


class Correlated(Loss):
    """Reads logits as they are, as most losses do unless they say otherwise."""


class Centred(Modifier):
    """Needs every logit."""

    class Config(PluginConfig):
        """None."""

    reads = "logits"


class TestRefused:
    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            ([f"{CACHE}.k=5"], "cache.k: is for record: topk; 10 classes are kept dense"),
            ([f"{CACHE}.record=topk"], "cache.k: 16 of 10 classes is all of them: set record: dense"),
            ([MANY, f"{CACHE}={{views: 2, draws: 5}}"], "cache.draws: is for residual: sampled, not uniform"),
            (["stages.student.train.epochs=0"], "a stage that does not train reads no cache"),
            (
                ["stages.student.losses.kd.taps={student: [stage1], teacher: [stage1]}"],
                r"losses.kd.taps: the cache of t holds no feature maps \(stage1\)",
            ),
            (
                ["stages.student.losses.kd.taps={student: pooled, teacher: {tap: stage3, as: pooled}}"],
                r"losses.kd.taps: the cache of t holds no feature maps \(stage3 as pooled\)",
            ),
            (
                ["stages.student.losses.kd.taps={student: [pooled], teacher: [pooled]}"],
                "set stages.student.teachers.t.cache.pooled: true to keep them",
            ),
            (
                ["stages.student.teachers.u={from: teacher, cache: {views: 3}}", "stages.student.losses.kd.teacher=t"],
                r"a student sees one view at a time: equal views \(t 2, u 3\)",
            ),
        ],
    )
    def test_at_planning_with_the_key(self, plan: Planning, overrides: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            plan(*overrides)

    def test_a_pooled_feature_that_is_no_vector(self, plan: Planning) -> None:
        with pytest.raises(TapError, match=r"teachers.t.cache.pooled: keeps vectors, not \[8, .*taps: \{pooled: MOD"):
            plan(f"{CACHE}.pooled=true", "stages.teacher.student.taps={pooled: stage1}")

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("record=dense,k=5", "k is for record: topk; dense keeps every logit"),
            ("residual=uniform,draws=5", "draws is for residual: sampled, not uniform"),
            ("fill=on_use,parts=2", "parts is for fill: stage"),
            ("block_rows=100", "multiple of 16"),
            ("veiws=3", "did you mean views"),
        ],
    )
    def test_when_it_is_read(self, plan: Planning, override: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            plan(f"{CACHE}={{{override.replace('=', ': ').replace(',', ', ')}}}")

    def test_terms_that_compare_logits_as_they_are(self, plan: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
        plan(MANY)
        monkeypatch.setattr(SoftTargets, "reads", Correlated.reads)
        plan()  # a dense record has them all
        with pytest.raises(ConfigError, match=r"losses.kd: kd compares logits as they are.*set .*cache.record: dense"):
            plan(MANY)

    def test_renorm_is_warned_of(self, plan: Planning) -> None:
        said: list[str] = []
        plan(MANY, f"{CACHE}.residual=renorm", said=said)
        assert any("renorm takes all probability" in line for line in said)
        said.clear()
        plan(MANY, said=said)
        assert not any("renorm" in line for line in said)


def test_a_soft_temperature_is_warned_of_where_few_logits_are_kept(plan: Planning) -> None:
    said: list[str] = []
    plan(MANY, said=said)
    assert any("at temperature 4 most of the probability lies outside the 16 of 300" in line for line in said)
    said.clear()
    plan(MANY, "stages.student.losses.kd.temperature=1", said=said)
    plan(MANY, f"{CACHE}.record=dense", said=said)
    assert not any("most of the probability" in line for line in said)


def test_true_is_a_cache_as_it_comes(plan: Planning) -> None:
    assert student(plan(f"{CACHE}=true")).digest == student(plan(f"{CACHE}={{}}")).digest
    assert "caches" not in student(plan(f"{CACHE}=false")).definition


def test_parts_cover_everything_once() -> None:
    for blocks in (1, 7, 22):
        for parts in (1, 3, 8):
            ranges = [part_of(blocks, (number, parts)) for number in range(parts)]
            assert [b for first, last in ranges for b in range(first, last)] == list(range(blocks))


WISE = (
    "stages.student.losses=null",
    "stages.student.passes={main: [{name: ce, modifiers: [{name: misclassified}]}, {name: kd, temperature: 4, "
    "modifiers: [{name: misclassified}, {name: lift_target}]}]}",
)


def test_whether_a_teacher_is_right_is_told_by_its_largest_logits(plan: Planning) -> None:
    """A term on labels alone then listens too, and asks for nothing that records lack."""
    found = need(plan(MANY, f"{CACHE}.k=5", *WISE))
    assert (found.layout.kind, found.layout.temperatures) == ("topk", (1.0, 4.0))
