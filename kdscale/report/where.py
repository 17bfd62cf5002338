"""`--where "params_m<=5 and method==crd"`: a filter read as data. Nothing is ever evaluated as Python."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdscale.errors import ConfigError

__all__ = ["Filter"]

Value = float | str | bool | None
_LONGEST = 1000

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Filter:
    """A condition over figures and axes.

    Comparisons with a figure that is not there yet are false. An axis value may stand without quotes.

    Args:
        text: comparisons joined by and, or, not; arithmetic + - * /; `x in (a, b)`.
        names: figures and axes that it may name.
        words: axis values that may stand without quotes.

    Raises:
        ConfigError: the text is no such condition, or names something unknown.
    """

    def __init__(self, text: str, names: Iterable[str], words: Iterable[str] = ()) -> None:
        self._text = text
        self._names, self._words = set(names), set(words)
        self.used: set[str] = set()
        self._tree = self._parse()
        self._check(self._tree)

    def __call__(self, values: Mapping[str, Value]) -> bool:
        """Whether the condition holds for one set of figures and axis values."""
        return bool(self._value(self._tree, values))

    def _parse(self) -> ast.expr:
        if len(self._text) > _LONGEST:
            raise ConfigError(f"--where is longer than {_LONGEST} characters")
        try:
            return ast.parse(self._text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ConfigError(
                f"--where {self._text!r} is no condition: write e.g. \"params_m<=5 and method=='crd'\" (== compares)"
            ) from None

    def _check(self, node: ast.expr) -> None:
        """Refuse everything that is not named here, before any row is looked at."""
        if _dotted(node):
            self._check_name(_dotted(node))
            return
        kinds = (ast.BoolOp, ast.UnaryOp, ast.Compare, ast.BinOp, ast.Constant, ast.Tuple, ast.List)
        if not isinstance(node, kinds) or not _allowed(node):
            raise ConfigError(
                f"--where {self._text!r}: {ast.unparse(node)!r} is not allowed there; it takes comparisons"
            )
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._check(child)

    def _check_name(self, name: str) -> None:
        self.used.add(name)
        if name in self._names or name in self._words:
            return
        near = difflib.get_close_matches(name, [*self._names, *self._words], 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(self._names))}"
        raise ConfigError(f"--where {self._text!r}: nothing is called {name}; {hint}")

    def _value(self, node: ast.expr, values: Mapping[str, Value]) -> Any:
        if name := _dotted(node):
            return values.get(name) if name in self._names else name
        match node:
            case ast.Constant():
                return node.value
            case ast.Tuple() | ast.List():
                return [self._value(item, values) for item in node.elts]
            case ast.BoolOp():
                join = all if isinstance(node.op, ast.And) else any
                return join(self._value(item, values) for item in node.values)
            case ast.UnaryOp():
                inner = self._value(node.operand, values)
                return not inner if isinstance(node.op, ast.Not) else _negative(inner)
            case ast.BinOp():
                return _calculate(node.op, self._value(node.left, values), self._value(node.right, values))
            case ast.Compare():
                return self._compare(node, values)
        raise AssertionError(ast.dump(node))

    def _compare(self, node: ast.Compare, values: Mapping[str, Value]) -> bool:
        sides = [self._value(item, values) for item in (node.left, *node.comparators)]
        return all(_holds(op, a, b) for op, a, b in zip(node.ops, sides, sides[1:], strict=False))


def _dotted(node: ast.expr) -> str:
    """`train.lr` as one name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return isinstance(node.value, int | float | str) and not isinstance(node.value, bool)
        case ast.UnaryOp():
            return isinstance(node.op, ast.Not | ast.USub)
        case ast.BinOp():
            return type(node.op) in _ARITHMETIC
        case ast.Compare():
            return all(type(op) in _COMPARE or isinstance(op, ast.In | ast.NotIn) for op in node.ops)
    return True


def _holds(op: ast.cmpop, left: Any, right: Any) -> bool:
    if left is None or right is None:
        return False
    if isinstance(op, ast.In | ast.NotIn):
        found = isinstance(right, list) and any(_holds(ast.Eq(), left, item) for item in right)
        return found == isinstance(op, ast.In)
    left, right = _alike(left, right)
    if isinstance(left, str) != isinstance(right, str) or isinstance(left, list) or isinstance(right, list):
        return isinstance(op, ast.NotEq)
    return _COMPARE[type(op)](left, right)


def _alike(left: Any, right: Any) -> tuple[Any, Any]:
    """Axis values are text: against a number they are read as one, where they can be."""
    if isinstance(left, str) and isinstance(right, int | float):
        return _as_number(left), right
    if isinstance(right, str) and isinstance(left, int | float):
        return left, _as_number(right)
    return left, right


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _negative(value: Any) -> float | None:
    return -value if isinstance(value, int | float) else None


def _calculate(op: ast.operator, left: Any, right: Any) -> float | None:
    a, b = (_as_number(side) if isinstance(side, str) else side for side in (left, right))
    if not isinstance(a, int | float) or not isinstance(b, int | float):
        return None
    try:
        return _ARITHMETIC[type(op)](a, b)
    except (ZeroDivisionError, OverflowError):
        return None
