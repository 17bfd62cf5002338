"""What a class's file says of it, read and not run."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["bare_draws", "dotted", "imported", "is_bare_draw"]

_DRAWS = re.compile(
    r"(torch|F|functional|nn\.functional)\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson|rand_like"
    r"|randn_like|randint_like|gumbel_softmax|dropout\w*)|(np|numpy)\.random\..*|random\.(?!Random$)\w+|os\.urandom"
    r"|.*\.(normal_|uniform_|random_|bernoulli_|exponential_|log_normal_|cauchy_|geometric_)"
)


def is_bare_draw(call: ast.Call) -> bool:
    """Whether a call draws from a generator that nobody seeded for this stage, step and part."""
    seeded = any(keyword.arg == "generator" for keyword in call.keywords)
    name = dotted(call.func)
    by_initialiser = name.startswith(("init.", "nn.init.", "torch.nn.init."))  # nn/build.py seeds what they read
    return bool(_DRAWS.fullmatch(name)) and not seeded and not by_initialiser


def bare_draws(file: Path, *, of_class: str | None = None) -> Iterator[tuple[int, str]]:
    """Lines of a file with a bare draw, and what draws.

    Args:
        file: of Python.
        of_class: leave other classes out, and constructors, which run with torch seeded.
    """
    tree = ast.parse(file.read_bytes())
    passed = set() if of_class is None else {id(inner) for node in _aside(tree, of_class) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in passed and is_bare_draw(node):
            yield node.lineno, dotted(node.func)


def _aside(tree: ast.Module, of_class: str) -> Iterator[ast.AST]:
    yield from (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != of_class)
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")


def imported(file: Path) -> set[str]:
    """Packages that a file imports, the standard library's aside."""
    tree = ast.parse(file.read_bytes())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return {name.partition(".")[0] or name for name in found} - sys.stdlib_module_names


def dotted(node: ast.expr) -> str:
    """`np.random.rand` of an expression made of names and attributes, else with a leading dot."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "", *reversed(parts)])
