"""Modules that live in this process, under a name that a config can give: `kdscale.library.live:Live`, by number."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

__all__ = ["Live", "at_hand"]

_MODULES: list[nn.Module] = []


class Live:
    """Makes a copy of a module at hand: what trains is a network of the stage's own, as any other.

    Args:
        number: of the module, in the order in which they were given.
    """

    def __new__(cls, number: int) -> nn.Module:  # type: ignore[misc]
        return copy.deepcopy(_MODULES[number])


@contextmanager
def at_hand(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Hold modules for the configs of one run."""
    _MODULES[:] = modules
    try:
        yield
    finally:
        _MODULES.clear()
