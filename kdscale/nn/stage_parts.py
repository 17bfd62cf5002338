"""What a strategy may want of its stage besides the student and the terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdscale.config.schema import TrainConfig
from kdscale.nn.network import Network

__all__ = ["StageParts"]


@dataclass(frozen=True)
class StageParts:
    """Handed to `Strategy.build`."""

    teachers: Mapping[str, Network]
    """The teachers' networks by name; a strategy that runs parts of one keeps it out of its own modules."""
    train: TrainConfig
    seed: int
    total_steps: int
    size: int
    """Pixels a side of the views."""
    fresh: Callable[[str], Network]
    """Another network like the student, with initial weights of its own by the name of the part that it is."""
