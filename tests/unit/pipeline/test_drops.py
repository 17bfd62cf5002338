"""Which terms are dropped: those that hear a teacher, so many at each step, as a stage says and nobody else."""

from __future__ import annotations

import pytest

from kdscale.api import DatasetInfo, Shapes, Term
from kdscale.config.schema import StageSpec
from kdscale.losses.ce import CrossEntropy
from kdscale.losses.kd import SoftTargets
from kdscale.pipeline.assemble import Parent, assemble
from kdscale.pipeline.drops import with_drops

SHAPES = Shapes(classes=3)
STEPS = range(40)


def terms() -> list[Term]:
    hard = Term("ce", CrossEntropy(CrossEntropy.Config(), SHAPES), lambda step: 0.5)
    soft = [Term(f"kd_{t}", SoftTargets(SoftTargets.Config(), SHAPES), lambda step: 1 + step, t) for t in "abc"]
    return [hard, *soft]


def test_without_drops_every_weight_is_what_it_was() -> None:
    for term, left in zip(terms(), with_drops(terms(), 0, seed=0), strict=True):
        assert [left.weight(step) for step in STEPS] == [term.weight(step) for step in STEPS]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_terms_that_hear_nobody_are_never_dropped(count: int) -> None:
    hard, *soft = with_drops(terms(), count, seed=0)
    for step in STEPS:
        assert hard.weight(step) == 0.5
        assert sorted(term.weight(step) for term in soft) == [0] * count + [1 + step] * (3 - count)


def test_a_stage_drops_by_its_own_seed() -> None:
    info = DatasetInfo(5, 1, 12, 100, 10, (0.5,), (0.25,), tuple("abcde"))
    student = {"model": "resnet_cifar", "depth": 8, "widths": [4, 4, 4]}
    teacher = Parent(StageSpec.model_validate({"name": "t", "student": student, "passes": {}}), info)

    def weights(seed: int) -> list[tuple[float, ...]]:
        heard = [{"name": "kd", "id": role, "teacher": role} for role in ("a", "b")]
        spec = StageSpec.model_validate(
            {"name": "s", "student": student, "teachers": {"a": {"from": "t"}, "b": {"from": "t"}}, "drop": 1,
             "passes": {"main": heard}, "seed": seed}
        )  # fmt: skip
        made = assemble(spec, info, {"a": teacher, "b": teacher}, total_steps=10, train_rows=100)
        return [tuple(term.weight(step) for term in made.strategy._terms["main"]) for step in STEPS]

    assert set(weights(0)) == {(0.0, 1.0), (1.0, 0.0)}
    assert weights(0) == weights(0) != weights(1)
