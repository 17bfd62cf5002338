"""Weights written as arithmetic over `params`, such as `1 - lam - gam`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from kdscale.errors import ConfigError

__all__ = ["evaluate"]

_OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def evaluate(text: str, params: Mapping[str, float]) -> float:
    """Work out + - * / and brackets over numbers and params; nothing else is understood.

    Raises:
        ConfigError: anything else, an unknown name, or a division by zero.
    """
    try:
        return float(_value(ast.parse(text, mode="eval").body, params))
    except SyntaxError as error:
        raise ConfigError(f"{text!r} is no arithmetic") from error
    except ZeroDivisionError as error:
        raise ConfigError(f"{text!r} divides by zero") from error


def _value(node: ast.AST, params: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in params:
            raise ConfigError(f"{node.id} is not in params ({', '.join(params) or 'there are none'})")
        return params[node.id]
    kind = _OPERATORS.get(type(getattr(node, "op", None)))
    if kind is not None and isinstance(node, ast.BinOp):
        return kind(_value(node.left, params), _value(node.right, params))
    if kind is not None and isinstance(node, ast.UnaryOp):
        return kind(_value(node.operand, params))
    raise ConfigError(f"{ast.unparse(node)!r}: only + - * / and brackets over numbers and params")


def evaluated(weight: Any, params: Mapping[str, float]) -> Any:
    """A weight with its arithmetic done: a number, or a schedule of numbers."""
    if isinstance(weight, str):
        return evaluate(weight, params)
    if isinstance(weight, dict):
        return {name: evaluated(value, params) for name, value in weight.items()}
    if isinstance(weight, list):
        return [evaluated(value, params) for value in weight]
    return weight
