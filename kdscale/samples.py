"""What data sets give and steps consume; other folders take these from `kdscale.api`.

Shapes: B samples of one rank's batch, K channels, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["IGNORED", "Batch", "Dataset", "DatasetInfo", "Source"]

IGNORED = 255
"""Label of a pixel that no loss and no figure counts."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What the planner knows about a data set before a byte of it is converted."""

    classes: int
    channels: int
    size: int
    """Pixels a side, as stored (square)."""
    train_rows: int
    test_rows: int
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    per_pixel: bool = False
    """Whether pixels have classes: an image then has one more channel, its class + 1, or 0 where that is not known."""

    @property
    def planes(self) -> int:
        """Channels as stored, with the classes of pixels."""
        return self.channels + self.per_pixel

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> DatasetInfo:
        """Take up what was written as JSON or YAML, where tuples become lists."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**fields)


@runtime_checkable
class Source(Protocol):
    """Read-only samples in row order: `source[row]` is (uint8 image (H, W, planes), label).

    Where pixels have classes the label is the one that rows are stratified by.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]: ...


@runtime_checkable
class Dataset(Protocol):
    """A plug-in of datasets/: finds, checks and reads one data set."""

    @property
    def info(self) -> DatasetInfo: ...

    def fingerprint(self) -> str:
        """Digest of published checksums, or of the list of (path, size); reads no pixels."""

    def open(self, split: Literal["train", "test"]) -> Source:
        """Open one split. Raises: DataError when the data is missing or damaged."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of one step: one uint8 view of each row, before any network's normalisation."""

    images: UInt8[Tensor, "B K H W"]
    labels: Int64[Tensor, "B *pixels"]
    """(B, H, W) where pixels have classes, IGNORED among them."""
    rows: Int64[Tensor, "B"]
    """Row numbers of the full train set (of the test set in evaluation)."""
    view: int
    step: int = 0
    labels_b: Int64[Tensor, "B"] | None = None
    """Label of each sample's mixing partner; None without mixup or cutmix."""
    lam: Float[Tensor, "B"] | None = None
    """Share of `labels` in each mixed sample; the partner has 1 - lam."""
    records: Mapping[str, UInt8[Tensor, "B R"]] = field(default_factory=dict)
    """What caches hold of these rows in this view, by teacher: R bytes each."""

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to `device` without waiting."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """A copy in page-locked memory of the host, which a GPU reads while the host goes on."""
        return self._each(Tensor.pin_memory)

    def tensors(self) -> list[Tensor]:
        """Every tensor that it holds."""
        return [t for t in (getattr(self, f.name) for f in fields(self)) if isinstance(t, Tensor)] + [
            *self.records.values()
        ]

    def first(self, count: int) -> Batch:
        """The first `count` samples."""
        return self._each(lambda t: t[:count])

    def split(self, parts: int) -> list[Batch]:
        """Cut into equal consecutive micro-batches for gradient accumulation."""
        size = len(self.rows) // parts
        return [self._each(lambda t, i=i: t[i * size : (i + 1) * size]) for i in range(parts)]  # type: ignore[misc]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        old = {f.name: getattr(self, f.name) for f in fields(self)}
        new: dict[str, Any] = {k: change(v) for k, v in old.items() if isinstance(v, Tensor)}
        return replace(self, records={k: change(v) for k, v in self.records.items()}, **new)
