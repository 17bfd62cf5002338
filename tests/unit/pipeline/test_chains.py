"""Pipelines of networks that teach each other, as shipped: what is planned, shared, and asked of teachers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.config.load import load
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "pipelines"
NAMES = ["blkd", "takd", "dgkd", "gskd", "rekd", "dekd", "tfkd_self", "tfkd_reg"]
SMALL = [
    "data.name=synthetic", "data.options={train_rows: 700, size: 16}", "train.epochs=2", "train.batch_size=32",
    "train.precision=fp32", "engine.processes=1",
]  # fmt: skip


def planned(tmp_path: Path, name: str, *overrides: str) -> Plan:
    return make_plan(load(CONFIGS / f"{name}.yaml", [*SMALL, *overrides]), Root(tmp_path / "runs"))


def trained(plan: Plan, trial: int = 0) -> dict[str, PlannedStage]:
    """The training stages of a trial, by name."""
    return {name: plan.stages[digest] for name, digest in plan.trials[trial].stages.items()}


def fills(plan: Plan) -> list[str]:
    return sorted(stage.name for stage in plan.stages.values() if stage.kind == "fill")


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_planned_and_costs_what_its_teachers_do(name: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, name)
    assert plan.name == name
    stages = trained(plan)
    cost = {stage.digest: stage.cost.flops for stage in plan.stages.values()}
    for stage in stages.values():
        heard = [cost[digest] for role, (digest, _) in stage.parents.items() if role in _teachers(stage)]
        images = stage.cost.steps * 32
        assert stage.cost.teacher_flops == sum(heard)
        assert stage.cost.train_flops == images * stage.cost.step_flops  # caches answer
        assert stage.cost.saved_flops == images * sum(heard)


@pytest.mark.parametrize(
    ("name", "macro", "heard"),
    [
        ("takd", "chain", {"r20": ["r26"], "r14": ["r20"], "r8": ["r14"]}),
        ("dgkd", "dense", {"r20": ["r26"], "r14": ["r26", "r20"], "r8": ["r26", "r20", "r14"]}),
        ("gskd", "grow", {"r8": ["r26"], "r14": ["r26", "r8"], "r20": ["r26", "r14"], "r26b": ["r26", "r20"]}),
    ],
)
def test_teacher_forwards_with_and_without_caches(
    name: str, macro: str, heard: dict[str, list[str]], tmp_path: Path
) -> None:
    cached, live = planned(tmp_path, name), planned(tmp_path, name, f"{macro}.cache=false")
    stages = trained(live)
    flops = {n: stage.cost.flops for n, stage in stages.items()}
    for student, teachers in heard.items():
        of = stages[student].cost
        asked = sum(flops[teacher] for teacher in teachers)
        assert of.train_flops == of.steps * 32 * (of.step_flops + asked)
        names = {live.stages[digest].name for _, (digest, _) in stages[student].parents.items()}
        assert names == {"data", *teachers}  # who taught its teachers is nothing to it
    assert fills(live) == []
    assert fills(cached) == sorted({f"{teacher}-cache" for teachers in heard.values() for teacher in teachers})


def test_five_methods_share_one_teacher(tmp_path: Path) -> None:
    roles = {"blkd": "teacher", "dekd": "teacher", "takd": "r26", "dgkd": "r26", "gskd": "r26"}
    assert len({trained(planned(tmp_path, name))[stage].digest for name, stage in roles.items()}) == 1


def test_paths_share_their_prefixes(tmp_path: Path) -> None:
    plan = planned(tmp_path, "takd", "chain.path=[r26,r8],[r26,r14,r8],[r26,r14,r20,r8],[r26,r14]")
    trials = [trained(plan, number) for number in range(4)]
    assert len({trial["r26"].digest for trial in trials}) == 1
    assert len({trial["r14"].digest for trial in trials[1:]}) == 1
    assert len({trial["r8"].digest for trial in trials[:3]}) == 3
    assert sum(stage.kind == "train" for stage in plan.stages.values()) == 1 + 1 + 1 + 3


def test_a_sweep_of_the_young_weight_trains_the_first_student_once(tmp_path: Path) -> None:
    plan = planned(tmp_path, "gskd", "params.gam=0,0.1", "grow.path=[r26,r8,r14]")
    one, other = trained(plan, 0), trained(plan, 1)
    assert {name for name in one if one[name].digest == other[name].digest} == {"r26", "r8"}


def test_a_seed_that_is_swept_leaves_the_teacher_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, "takd", "seed=0,1", "chain.path=[r26,r8]")
    assert sum(stage.kind == "train" for stage in plan.stages.values()) == 3


def test_a_defective_teacher_at_its_best_is_plain_distillation(tmp_path: Path) -> None:
    as_dekd = [
        "params.lam=0.16",
        "stages.student.losses.kd.temperature=20",
        "stages.student.losses.kd.reduction=elementmean",
    ]
    plain = trained(planned(tmp_path, "blkd", *as_dekd))["student"]
    early = trained(planned(tmp_path, "dekd"))["student"]
    best = trained(planned(tmp_path, "dekd", "stages.student.teachers.teacher.from=teacher@best"))["student"]
    assert best.digest == plain.digest != early.digest


def test_teaching_oneself_is_one_generation_of_a_chain_of_copies(tmp_path: Path) -> None:
    stages = trained(planned(tmp_path, "tfkd_self"))
    first, again = (stages[name].definition["spec"] for name in ("first", "again"))
    assert first["student"] == again["student"]
    assert first["seed"] != again.get("seed", 0)
    assert stages["again"].parents["teacher"] == (stages["first"].digest, "best")


def test_a_virtual_teacher_costs_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tfkd_reg")
    assert trained(plan)["student"].cost.teacher_flops == 0
    assert sorted(stage.kind for stage in plan.stages.values()) == ["convert", "train"]


def _teachers(stage: PlannedStage) -> set[str]:
    return set(stage.definition["spec"].get("teachers", {}))
