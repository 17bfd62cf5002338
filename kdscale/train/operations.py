"""Operations that make nan or inf of finite inputs, and the line of the user's that asked for them."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdscale.train.ranges import Range, all_finite, bad_samples, floats_in

__all__ = ["FIRST_OPERATION", "TORCH", "Made", "Operations", "Stop"]

Stop = Callable[[FrameType | None], None]
"""Given the frame of the user's in which something happened."""
MOST_OPERATIONS = 10**9
"""In one forward pass: what keeps their numbers apart."""
FIRST_OPERATION = MOST_OPERATIONS + 1
_UNWRITTEN = ("empty", "new_empty")
"""Operations whose values are whatever the memory held."""
TORCH = str(Path(torch.__file__).parent)
"""Where torch's own files lie."""
_NOT_THE_USERS = (TORCH, __file__, "/jaxtyping/", "/beartype/", "<")


@dataclass
class Made:
    """An operation that made what is not finite of what is."""

    number: int
    operation: str
    place: str
    condition: str
    samples: list[int]


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation that makes what is not finite of what is.

    Args:
        begun: which forward pass of the step this is, from 1.
        batch: samples that it sees.
        stop_at: number of the operation behind which `stop` is called; pass 1 begins with FIRST_OPERATION.
        stop: opens a debugger, say.
    """

    def __init__(self, begun: int, batch: int, stop_at: int, stop: Stop | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[Made] = []
        self._count, self._batch, self._stop_at, self._stop = begun * MOST_OPERATIONS, batch, stop_at, stop
        self._unseen = False

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Compute something that is no part of the step."""
        self._unseen = True
        try:
            yield
        finally:
            self._unseen = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        if self._unseen or func.overloadpacket.__name__.startswith(_UNWRITTEN):
            return output
        self._look(func, (args, kwargs), output)  # what is computed in here does not come by here
        return output

    def _look(self, func: Any, inputs: Any, output: Any) -> None:
        self._count += 1
        if self._count == self._stop_at and self._stop is not None:
            self._stop(_frame_of_the_user())
        outputs = floats_in(output)
        if all_finite(outputs):
            return
        given = [tensor for tensor in floats_in(inputs) if all(tensor is not own for own in outputs)]
        if not all_finite(given):
            return
        name = func.overloadpacket.__name__
        condition = f"{name} of {' and '.join(str(Range.of(tensor)) for tensor in given[:3])}" if given else ""
        bad = next((found for tensor in outputs if (found := bad_samples(tensor, self._batch))), [])
        self.made.append(Made(self._count, str(func), _place(_frame_of_the_user()), condition, bad))


def _frame_of_the_user() -> FrameType | None:
    """The innermost frame that is neither torch's nor this file's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and any(part in frame.f_code.co_filename for part in _NOT_THE_USERS):
        frame = frame.f_back
    return frame


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    file = Path(frame.f_code.co_filename)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}:{frame.f_lineno}  `{linecache.getline(str(file), frame.f_lineno).strip()}`"
