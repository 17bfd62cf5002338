"""Which line of somebody's file first makes a number that is not finite, forwards or backwards."""

from __future__ import annotations

import linecache
import math
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdscale.contract.checks import Broken, shown

__all__ = ["require_finite"]

_MEND = "widen with kdscale.nn.precision.at_least_fp32 first; log_softmax and logsumexp do not overflow, exp does"
_MEND_BACK = "the slope there is infinite or 0/0: add a small constant inside, or clamp before"


def require_finite(run: Callable[[], Tensor], leaves: Iterable[Tensor], file: Path, given: str) -> None:
    """Differentiate a value, and demand that it and its gradients are finite.

    Args:
        run: computes the value, () or (B,), anew.
        leaves: whose gradients are looked at.
        file: where the line is looked for.
        given: what went in, for the message.

    Raises:
        Broken: with the line and the operation, where they can be found.
    """
    leaves = list(leaves)
    value = run()
    if not _finite(value):
        line, name = _forwards(run, file)
        raise Broken(f"{given}: {_kind(value)}{f' from {name}' if name else ''}", _MEND, where=_at(file, line))
    value.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    bad = [leaf.grad for leaf in leaves if leaf.grad is not None and not _finite(leaf.grad)]
    if bad:
        line, name = _backwards(run, file)
        said = f"{given}: {_kind(bad[0])} in the gradient{f' of {name}' if name else ''}"
        raise Broken(said, _MEND_BACK, where=_at(file, line))


def _kind(tensor: Tensor) -> str:
    return "nan" if bool(tensor.isnan().any()) else "inf"


def _at(file: Path, line: int) -> str:
    return f"{shown(file)}:{line}: {linecache.getline(str(file), line).strip()}" if line else ""


def _finite(*values: Any) -> bool:
    """Whether numbers and tensors anywhere in some values are all finite."""
    for one in tree_leaves(values):
        if isinstance(one, Tensor) and one.is_floating_point() and not bool(torch.isfinite(one).all()):
            return False
        if isinstance(one, float) and not math.isfinite(one):
            return False
    return True


def _has_nan(*values: Any) -> bool:
    return any(isinstance(one, Tensor) and bool(one.isnan().any()) for one in tree_leaves(values))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the first operation that made finite numbers infinite, and the first that made nan of what was not."""

    def __init__(self, file: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._file = str(file)
        self.found: list[tuple[int, str]] = []
        self.nan: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _finite(out):
            if _finite(args, kwargs):
                self.found.append(self._here(func))
            elif _has_nan(out) and not _has_nan(args, kwargs):
                self.nan.append(self._here(func))
        return out

    def _here(self, func: Any) -> tuple[int, str]:
        lines = [frame.lineno or 0 for frame in traceback.extract_stack() if frame.filename == self._file]
        return (lines[-1] if lines else 0), str(func.overloadpacket.__name__)


def _forwards(run: Callable[[], Tensor], file: Path) -> tuple[int, str]:
    with _Watch(file) as watch:
        run()
    return next(iter([*watch.found, *watch.nan]), (0, ""))


def _backwards(run: Callable[[], Tensor], file: Path) -> tuple[int, str]:
    found: list[tuple[int, str]] = []
    with torch.autograd.set_detect_anomaly(mode=True, check_nan=False):  # keeps each operation's lines
        value = run().mean()
        for node in _nodes(value.grad_fn):
            node.register_hook(_told(node, found, file))
        value.backward()  # type: ignore[no-untyped-call]
    return next(iter(found), (0, ""))


def _told(node: Any, found: list[tuple[int, str]], file: Path) -> Callable[[Any, Any], None]:
    def look(outgoing: Any, incoming: Any) -> None:
        if _finite(incoming) and not _finite(outgoing):
            lines = re.findall(rf'File "{re.escape(str(file))}", line (\d+)', "".join(node.metadata["traceback_"]))
            name = re.sub(r"Backward\d*$", "", node.name()).lower()
            found.append((int(lines[-1]) if lines else 0, name))

    return look


def _nodes(start: Any) -> Iterator[Any]:
    seen, todo = set[Any](), [start]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [following for following, _ in node.next_functions]
