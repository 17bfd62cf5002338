"""Weights written as arithmetic over `params`, such as `1 - lam - gam`, and schedules of them."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from kdscale.errors import ConfigError

__all__ = ["SCHEDULES", "evaluate", "names_in", "weight_of"]

SCHEDULES = {"linear": 2, "periodic": 3, "warmup": 2}
"""Numbers that each schedule takes.

{linear: [first, last]}               a straight line over the stage
{periodic: [first, last, periods]}    that line, restarted so many times
{warmup: [weight, share]}             rises from 0 over that share of the stage, such as 1/12, then stays
"""

_OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def evaluate(text: str, params: Mapping[str, float]) -> float:
    """Work out + - * / and brackets over numbers and params; nothing else is understood.

    The result is rounded to 12 digits: 1 - 0.9 is the same weight as 0.1, and 1 - 0.9 - 0.1 is zero, not below.

    Raises:
        ConfigError: anything else, an unknown name, a division by zero, or a number too large.
    """
    try:
        value = float(_value(ast.parse(text.strip(), mode="eval").body, params))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{text!r} is no arithmetic over numbers and params") from error
    except (ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"{text!r}: {error}") from error
    return 0.0 if abs(value) < 1e-12 else float(f"{value:.12g}")


def names_in(text: str) -> set[str]:
    """The params that an arithmetic text names."""
    try:
        return {node.id for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError):
        return set()


def weight_of(weight: Any, params: Mapping[str, float]) -> Any:
    """A weight with its arithmetic done: a number, or a schedule of numbers, none below 0.

    Raises:
        ConfigError: it is neither, or below 0, or not finite.
    """
    if not isinstance(weight, dict):
        return _not_below_zero(weight, params)
    if len(weight) != 1 or next(iter(weight)) not in SCHEDULES:
        raise ConfigError(f"{weight} is no schedule; there are: {', '.join(SCHEDULES)}, such as {{linear: [4, 1]}}")
    [(name, numbers)] = weight.items()
    if not isinstance(numbers, list) or len(numbers) != SCHEDULES[name]:
        raise ConfigError(f"{{{name}: {numbers}}}: {name} takes a list of {SCHEDULES[name]} numbers")
    found = [_not_below_zero(number, params) for number in numbers]
    if name == "periodic" and found[2] <= 0:
        raise ConfigError(f"{{{name}: {numbers}}}: the number of periods must be above 0")
    if name == "warmup" and not 0 < found[1] <= 1:
        raise ConfigError(
            f"{{{name}: {numbers}}}: it rises over a share of the stage: above 0, at most 1, such as 1/12"
        )
    return {name: found}


def _not_below_zero(weight: Any, params: Mapping[str, float]) -> float:
    if not isinstance(weight, (str, int, float)) or isinstance(weight, bool):
        raise ConfigError(f"{weight!r} is no weight: give a number, arithmetic over params, or a schedule")
    value = evaluate(weight, params) if isinstance(weight, str) else float(weight)
    if value < 0 or not math.isfinite(value):
        said = f"{value:g}"
        if isinstance(weight, str):
            named = ", ".join(f"{name} {params[name]:g}" for name in sorted(names_in(weight)))
            said = f"{weight} is {value:g} here" + (f" ({named})" if named else "")
        raise ConfigError(f"{said}: a weight is a number that is not below 0")
    return value


def _value(node: ast.AST, params: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name):
        if node.id not in params:
            raise ConfigError(f"{node.id} is not in params ({', '.join(params) or 'there are none'})")
        return float(params[node.id])
    kind = _OPERATORS.get(type(getattr(node, "op", None)))
    if kind is not None and isinstance(node, ast.BinOp):
        return kind(_value(node.left, params), _value(node.right, params))
    if kind is not None and isinstance(node, ast.UnaryOp):
        return kind(_value(node.operand, params))
    raise ConfigError(f"{ast.unparse(node)!r}: only + - * / and brackets over numbers and params")
