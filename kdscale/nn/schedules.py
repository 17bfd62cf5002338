"""Weights that change over training, as pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from kdscale.draws import uniform
from kdscale.errors import ConfigError

__all__ = ["SCHEDULES", "some_dropped", "weight_schedule"]

Weight = Callable[[int], float]
"""At a step."""


def weight_schedule(weight: float | str | dict[str, Any], total_steps: int) -> Weight:
    """Return the weight at each step.

    Args:
        weight: a number, or one schedule by name, such as {linear: [4, 1]}.
        total_steps: steps of the stage.

    Raises:
        ConfigError: the schedule is unknown, or its arguments do not fit.
    """
    if not isinstance(weight, dict):
        value = float(weight)
        return lambda step: value
    if len(weight) != 1 or next(iter(weight)) not in SCHEDULES:
        raise ConfigError(f"weight {weight} is not a schedule; known: {', '.join(SCHEDULES)}")
    [(name, arguments)] = weight.items()
    try:
        return SCHEDULES[name](arguments, total_steps)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"weight {{{name}: {arguments}}} does not fit: {error}") from error


def some_dropped(weights: Mapping[str, Weight], count: int, seed: int) -> dict[str, Weight]:
    """Return the weights of terms of which `count` weigh nothing at each step, every choice as likely as any other.

    Source: Son et al., "Densely Guided Knowledge Distillation", arXiv:2009.08825, section 3.2. The choice is a
    function of (seed, step, term), so that all ranks, micro-batches and resumed runs make the same.
    """
    if not count:
        return dict(weights)

    @lru_cache(maxsize=1)
    def dropped(step: int) -> frozenset[str]:
        return frozenset(sorted(weights, key=lambda term: uniform(seed, "drop", step, term))[:count])

    def left(term: str, weight: Weight) -> Weight:
        return lambda step: 0.0 if term in dropped(step) else weight(step)

    return {term: left(term, weight) for term, weight in weights.items()}


def _linear(arguments: Any, total_steps: int) -> Weight:
    """[first, last]: a straight line from the first step to the last."""
    first, last = (float(x) for x in arguments)
    span = max(1, total_steps - 1)
    return lambda step: first + (last - first) * min(step, span) / span


def _periodic(arguments: Any, total_steps: int) -> Weight:
    """[first, last, periods]: the straight line, restarted so many times."""
    first, last, periods = (float(x) for x in arguments)
    span = total_steps / periods
    return lambda step: first + (last - first) * (step % span) / span


def _warmup(arguments: Any, total_steps: int) -> Weight:
    """[weight, share]: a straight line from 0 over the first `share` of the steps, then `weight` to the end."""
    weight, share = (float(x) for x in arguments)
    rise = share * total_steps
    return lambda step: weight * min(1.0, step / rise)


SCHEDULES: dict[str, Callable[[Any, int], Weight]] = {
    "linear": _linear,
    "periodic": _periodic,
    "warmup": _warmup,
}
