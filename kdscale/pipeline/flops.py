"""FLOPs, counted by torch as operations run; a multiply-add counts as two."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kdscale.api import DatasetInfo
from kdscale.nn.modes import evaluating

__all__ = ["CountFlops", "forward_flops"]


def forward_flops(network: nn.Module, info: DatasetInfo, size: int) -> int:
    """FLOPs of one image's forward pass, counted by torch on the real network."""
    images = torch.zeros(1, info.channels, size, size, dtype=torch.uint8)
    counted = CountFlops()
    with torch.no_grad(), evaluating(network), counted:
        network(images)
    return counted.total


class CountFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up torch's own formulas (those of FlopCounterMode) over all operations.

    FlopCounterMode itself also tracks modules, for which it imports the whole compiler: 1.4 s of a start.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: true hides a mode from the compiler, and imports the compiler for that."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        return result
