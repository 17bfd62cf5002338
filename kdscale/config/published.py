"""Published figures that a sweep is compared with: `expect` at the top level of a config.

expect:
  - {where: {method: kd}, stage: student, top1: 0.7066, within: 0.004, source: "Tian et al., ICLR 2020, table 1"}
  - {where: {method: one}, over: {method: ce}, by_at_least: 0.01, source: "Lan et al., NeurIPS 2018, section 4"}

The report prints them beside what came out. They fail nothing and are part of no stage: what a stage itself must reach
stands in its own `expect`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from kdscale.config.complaints import KeyedError, hint
from kdscale.config.patches import label
from kdscale.config.sections import Model

__all__ = ["FIGURES", "Combination", "PublishedFigure", "those_that_apply"]

FIGURES = ("top1", "top1_best_on_test", "ensemble_top1")
"""Of test: the last epoch's, that of the epoch which is best on test, and that of the ensemble which a stage hears."""


class Combination(NamedTuple):
    """A trial, as far as a published figure can speak of it."""

    axes: Mapping[str, str]
    """Label by axis."""
    stages: Collection[str]


class PublishedFigure(Model):
    """One figure of a paper, or a difference that it finds, and which trials are to show it."""

    where: dict[str, Any] = Field({}, description="value, or values, by axis; default all trials")
    stage: str | list[str] | None = Field(
        None, description="of several the mean is compared; default the last stage, which no other needs"
    )
    top1: float | None = Field(None, ge=0, le=1, description="on test, of the last epoch")
    top1_best_on_test: float | None = Field(None, ge=0, le=1, description="of the best epoch: needs protocol: paper")
    ensemble_top1: float | None = Field(None, ge=0, le=1, description="of the ensemble that the stage hears")
    within: float | None = Field(None, gt=0, lt=1, description="largest difference that counts as reproduced")
    over: dict[str, str | int | float | bool] | None = Field(
        None, description="values of axes: those trials are exceeded, by `by_at_least` in top1 of the last epoch"
    )
    by_at_least: float | None = Field(None, ge=-1, le=1, description="least difference of top1")
    source: str = Field("", description="paper, and its table or section")

    @model_validator(mode="after")
    def _says_one_thing_and_whence(self) -> PublishedFigure:
        if not self.source.strip():
            raise ValueError('has no source: say one, such as source: "Tian et al., ICLR 2020, table 1"')
        said = [name for name in (*FIGURES, "by_at_least") if getattr(self, name) is not None]
        if len(said) != 1:
            found = f"has {', '.join(said)}" if said else "has no figure"
            raise ValueError(f"{found}: say one of {', '.join(FIGURES)}, or over and by_at_least for a difference")
        needed, foreign = ("over", "within") if said == ["by_at_least"] else ("within", "over")
        if getattr(self, needed) is None:
            raise ValueError(f"{said[0]} needs {needed}: {_MENDS[needed]}")
        if getattr(self, foreign) is not None:
            raise ValueError(f"{foreign} does not go with {said[0]}: leave it out")
        return self

    @property
    def figure(self) -> str:
        """Which of FIGURES is compared; a difference is one of top1."""
        return next((name for name in FIGURES if getattr(self, name) is not None), "top1")

    @property
    def value(self) -> float:
        """The paper's figure, or the least difference."""
        found: float | None = self.by_at_least if self.over is not None else getattr(self, self.figure)
        assert found is not None
        return found

    @property
    def stages(self) -> list[str]:
        """Names of the stages that it speaks of; none stands for each trial's last."""
        return [self.stage] if isinstance(self.stage, str) else self.stage or []

    def holds_for(self, axes: Mapping[str, str]) -> bool:
        """Whether a trial is one of those that it speaks of."""
        return all(axes.get(axis) in labels for axis, labels in _labels(self.where).items())

    def is_exceeded(self, axes: Mapping[str, str]) -> bool:
        """Whether a trial is one of those that the others are to exceed."""
        over = _labels(self.over or {})
        rest = {axis: labels for axis, labels in _labels(self.where).items() if axis not in over}
        return all(axes.get(axis) in labels for axis, labels in (rest | over).items())

    def without_over(self, axes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """What two trials share that are compared with each other."""
        return tuple((axis, value) for axis, value in axes.items() if axis not in (self.over or {}))


_MENDS = {
    "within": "the largest difference that counts as reproduced, such as 0.004",
    "over": "the values of axes whose trials are exceeded, such as {method: ce}",
}


def those_that_apply(
    published: Sequence[PublishedFigure], trials: Sequence[Combination], protocol: str, *, lenient: bool
) -> list[PublishedFigure]:
    """Check published figures against what is swept.

    Args:
        published: as configured.
        trials: of the sweep.
        protocol: of the sweep.
        lenient: the command line changed the axes, so that some may speak of what is not swept any more.

    Returns:
        Those that speak of trials there are.

    Raises:
        KeyedError: an axis, a value, a stage or a trial is not there, or nobody looks for the best epoch on test.
    """
    kept = []
    for index, one in enumerate(published):
        at = f"expect.{index}"
        if one.top1_best_on_test is not None and protocol != "paper":
            said = "needs protocol: paper, which looks at test each epoch; or say top1, the last epoch's"
            raise KeyedError(f"{at}.top1_best_on_test", said)
        wrong = next(_complaints(one, at, trials), None)
        if wrong is None:
            kept.append(one)
        elif not lenient:
            raise wrong
    return kept


def _complaints(one: PublishedFigure, at: str, trials: Sequence[Combination]) -> Iterator[KeyedError]:
    for key, labels in (("where", _labels(one.where)), ("over", _labels(one.over or {}))):
        yield from _unknown(f"{at}.{key}", labels, trials)
    meant = [trial for trial in trials if one.holds_for(trial.axes)]
    if not meant:
        yield KeyedError(f"{at}.where", "leaves no trial: sweep.exclude takes these combinations out")
    known = {stage for trial in meant for stage in trial.stages}
    for stage in one.stages:
        if stage not in known:
            yield KeyedError(f"{at}.stage", f"no such stage as {stage}{hint(stage, sorted(known))}")
    if one.over is not None:
        others = {one.without_over(trial.axes) for trial in trials if one.is_exceeded(trial.axes)}
        if any(one.is_exceeded(trial.axes) for trial in meant):
            yield KeyedError(f"{at}.over", "names trials of `where` itself: give it another value of an axis")
        if not any(one.without_over(trial.axes) in others for trial in meant):
            yield KeyedError(f"{at}.over", "leaves no trial to exceed: sweep.exclude takes these combinations out")


def _unknown(at: str, labels: Mapping[str, list[str]], trials: Sequence[Combination]) -> Iterator[KeyedError]:
    known: dict[str, list[str]] = {}
    for trial in trials:
        for axis, value in trial.axes.items():
            known.setdefault(axis, []).append(value)
    for axis, wanted in labels.items():
        if axis not in known:
            yield KeyedError(f"{at}.{axis}", f"no such axis{hint(axis, known)}")
        for value in wanted:
            if value not in known.get(axis, [value]):
                yield KeyedError(f"{at}.{axis}", f"{value} is no value of it{hint(value, dict.fromkeys(known[axis]))}")


def _labels(conditions: Mapping[str, Any]) -> dict[str, list[str]]:
    """Values of axes as they are called on screens."""
    return {
        axis: [label(value) for value in (values if isinstance(values, list) else [values])]
        for axis, values in conditions.items()
    }
