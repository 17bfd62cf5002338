"""What a loss measures besides its value, for whoever watches it train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor

__all__ = ["Measures"]


class Measures:
    """A loss with figures of its own: `Distill` hands them on as TERM/NAME."""

    figures: Sequence[str] = ()
    measured: Mapping[str, Float[Tensor, ""]] = MappingProxyType({})
    """One value for each figure, of the last forward: detached, and always finite."""
