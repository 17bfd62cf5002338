"""What a plan says of work: images forwards and backwards through networks, with and without caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.config.load import load
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage
from tests.unit.pipeline.test_chains import CONFIGS, planned, trained

ROWS = 630


def totals(plan: Plan) -> tuple[int, int]:
    """Forwards and backwards of all stages."""
    costs = [stage.cost for stage in plan.stages.values()]
    return sum(cost.forwards for cost in costs), sum(cost.backwards for cost in costs)


@pytest.mark.parametrize(
    ("name", "macro", "asked"),
    [
        ("takd", "chain", {"r26": 0, "r20": 1, "r14": 1, "r8": 1}),
        ("dgkd", "dense", {"r26": 0, "r20": 1, "r14": 2, "r8": 3}),
        ("gskd", "grow", {"r26": 0, "r8": 1, "r14": 2, "r20": 2, "r26b": 2}),
    ],
)
def test_forwards_of_chains_with_and_without_caches(
    name: str, macro: str, asked: dict[str, int], tmp_path: Path
) -> None:
    live, cached = planned(tmp_path, name, f"{macro}.cache=false"), planned(tmp_path, name)
    for stage, teachers in asked.items():
        with_, without = trained(cached)[stage].cost, trained(live)[stage].cost
        assert without.images == without.backwards == with_.forwards == with_.backwards
        assert without.forwards == without.images * (1 + teachers)
        assert (with_.saved_forwards, without.saved_forwards) == (with_.images * teachers, 0)
    fills = [stage for stage in cached.stages.values() if stage.kind == "fill"]
    assert len(fills) == len({teacher for stage in fills for teacher, _ in [stage.parents["teacher"]]})
    images = trained(live)["r26"].cost.images
    assert totals(live) == (images * (len(asked) + sum(asked.values())), images * len(asked))
    filled = sum(stage.cost.forwards for stage in fills)
    assert totals(cached) == (images * len(asked) + filled, images * len(asked))
    assert all(stage.cost.forwards == stage.cost.images >= 2 * ROWS for stage in fills)


def test_each_pass_goes_forwards_and_backwards_and_asks_its_teacher_once(tmp_path: Path) -> None:
    student = trained(planned(tmp_path, "wskd"))["student"].cost
    assert (student.forwards, student.backwards) == (2 * student.images, 2 * student.images)
    assert student.saved_forwards == student.images


def test_a_teacher_that_no_term_hears_is_not_asked_in_training(tmp_path: Path) -> None:
    heard, measured = (
        student_of(planned(tmp_path, "blkd", "stages.student.teachers.teacher.cache=null", *overrides))
        for overrides in ([], ["stages.student.losses=[{name: ce}]"])
    )
    assert (heard.cost.forwards, measured.cost.forwards) == (2 * heard.cost.images, measured.cost.images)
    assert measured.cost.train_flops == measured.cost.images * measured.cost.step_flops
    assert measured.cost.teacher_flops == 0


def test_the_two_stages_of_fsp_ask_the_teacher_in_the_first_alone(tmp_path: Path) -> None:
    plan = make_plan(load(CONFIGS / "fsp.yaml"), Root(tmp_path / "runs"))
    trial = next(trial.stages for trial in plan.trials if "init1" in trial.stages)
    first, second, ensemble = (plan.stages[trial[name]].cost for name in ("init1", "net1", "ensemble"))
    assert (first.forwards, first.backwards) == (2 * first.images, first.images)
    assert (second.forwards, second.backwards) == (second.images, second.images)
    assert (ensemble.forwards, ensemble.backwards) == (0, 0)


def student_of(plan: Plan) -> PlannedStage:
    return trained(plan)["student"]
