"""Which GPUs of a machine the processes of a stage see, where several stages run there at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain

__all__ = ["Gpus"]

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Gpus:
    """Lends them to stages, first those that fewest others use.

    Args:
        ids: as `CUDA_VISIBLE_DEVICES` names them; by default those that this process may use.
    """

    def __init__(self, ids: Sequence[str] | None = None) -> None:
        self._ids = _visible() if ids is None else list(ids)
        self._lent: dict[str, list[str]] = {}

    def lend(self, stage: str, processes: int) -> dict[str, str]:
        """Environment of a stage's processes, each of which takes the GPU of its local rank; empty without GPUs."""
        if not self._ids:
            return {}
        used = Counter(chain.from_iterable(self._lent.values()))
        self._lent[stage] = sorted(self._ids, key=lambda gpu: used[gpu])[:processes]  # in their order where equal
        return {VISIBLE: ",".join(self._lent[stage])}

    def take_back(self, stage: str) -> None:
        """Its processes have ended."""
        self._lent.pop(stage, None)


def _visible() -> list[str]:
    import torch

    count = torch.cuda.device_count()  # asks the driver's management library, and so leaves processes that fork alone
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]
