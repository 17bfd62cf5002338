"""What ranks say to each other: calls and bytes of every collective, as the profiler of torch saw them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["Collectives"]

_BACKENDS = ("gloo:", "nccl:")
_BYTES = {"double": 8, "float": 4, "c10::BFloat16": 2, "c10::Half": 2, "long int": 8, "int": 4, "unsigned char": 1}
"""By the names that torch gives to types of tensors."""


class Collectives:
    """Counts between `start` and `stop`; a profiler runs meanwhile, so what is counted is not to be timed."""

    def __init__(self) -> None:
        self._profile: Any = None

    def start(self) -> None:
        """Begin to count."""
        self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self._profile.start()

    def stop(self) -> dict[str, dict[str, int]]:
        """Calls and bytes by collective since `start`; nothing where none was begun."""
        if self._profile is None:
            return {}
        self._profile.stop()
        found: dict[str, dict[str, int]] = defaultdict(lambda: {"calls": 0, "bytes": 0})
        for event in self._profile.profiler.kineto_results.events():
            if event.name().startswith(_BACKENDS):
                entry = found[event.name()]
                entry["calls"] += 1
                entry["bytes"] += _bytes(event.shapes(), event.dtypes())
        self._profile = None
        return dict(found)


def _bytes(shapes: list[list[int]], dtypes: list[str]) -> int:
    total = 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        count = _BYTES.get(dtype, 0)
        for size in shape:
            count *= size
        total += count if shape else 0
    return total
