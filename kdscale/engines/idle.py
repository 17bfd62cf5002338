"""Which passes of a step no rank has a sample for: asked of the device early, read by the host late.

Teachers answer before a step's first pass, so what they get wrong is known to the device while it still has that pass
to compute. The host waits for that number alone, and finds the device busy: its queue does not run dry.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from kdscale import ranks

__all__ = ["Idle"]


class Idle:
    """A container of passes; asked by all ranks, it says the same to all.

    Args:
        picked: how many of this rank's samples count, by pass; passes that count all samples are not in it.
    """

    def __init__(self, picked: Mapping[str, Int64[Tensor, ""]]) -> None:
        self._names = list(picked)
        self._known: torch.cuda.Event | None = None
        if picked:
            self._counts = self._on_the_host(ranks.sum_(torch.stack(list(picked.values()))))

    def __contains__(self, pass_: object) -> bool:
        if pass_ not in self._names:
            return False
        if self._known is not None:
            self._known.synchronize()
        return int(self._counts[self._names.index(str(pass_))]) == 0

    def _on_the_host(self, counts: Int64[Tensor, "P"]) -> Int64[Tensor, "P"]:
        if counts.device.type != "cuda":
            return counts
        pinned = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
        pinned.copy_(counts, non_blocking=True)
        self._known = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._known.record()
        return pinned
