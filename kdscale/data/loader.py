"""Batches of one rank, from a store: the same whichever of the two backends reads them."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from kdscale.api import Batch, DatasetInfo
from kdscale.config.schema import AugmentConfig, DataConfig
from kdscale.data.convert import stored_side
from kdscale.data.order import epoch_order, rank_rows
from kdscale.data.split import carve, test_rows
from kdscale.data.store import Kind, SplitName, Store
from kdscale.data.views import (
    VIEWS_REVISION,
    Bytes,
    Rows,
    ViewFunction,
    ViewScheme,
    eval_views,
    make_views,
    mix,
    parted,
    partner_rows,
)
from kdscale.errors import ConfigError, DataError

__all__ = ["EvalLoader", "TrainLoader", "TrainViews", "resolve_loader", "view_scheme"]


Views = tuple[Bytes, dict[str, Tensor]]
"""A batch of views, and what mixing adds to a Batch."""


@runtime_checkable
class Reader(Protocol):
    """Reads views of rows of one split, in any order."""

    def read(self, rows: Rows, batch_size: int, views: ViewFunction) -> Generator[Bytes, None, None]: ...


class TrainViews:
    """Augmented views of any training rows in any order: what batches, and a teacher's cache, are made of.

    Args:
        store: converted data.
        data: the stage's data section.
        workers: threads that make views.
    """

    def __init__(self, store: Store, data: DataConfig, workers: int = 1) -> None:
        self.scheme = ViewScheme.of(data, store.info)
        self.labels = store.labels("train")
        """(N,) of the full train set."""
        self.rows = carve(self.labels, data).train
        """Row numbers that train, ascending."""
        self._store, self._workers = store, workers

    def batches(self, rows: Sequence[Rows], view: int) -> Generator[Batch, None, None]:
        """Yield view `view` of each list of rows; the lists are of one length, the last may be shorter.

        Each batch has memory of its own. Closing the generator, at any point, ends what it started.
        """
        if not rows:
            return
        with closing(self._mixed(rows, view) if self.scheme.augment.mixes else self._plain(rows, view)) as views:
            for mine, (images, mixed) in zip(rows, views, strict=True):
                batch = _batch(images, self.labels, mine, view, per_pixel=self.scheme.per_pixel)
                yield replace(batch, labels_b=mixed.get("labels_b"), lam=mixed.get("lam"))

    def _plain(self, rows: Sequence[Rows], view: int) -> Generator[Views, None, None]:
        with closing(self._read(rows, view)) as views:
            for images in views:
                yield images, {}

    def _mixed(self, rows: Sequence[Rows], view: int) -> Generator[Views, None, None]:
        """As `_plain`, while a second reader runs over the partners."""
        theirs = [partner_rows(mine, view, self.scheme, self.rows) for mine in rows]
        with closing(self._read(rows, view)) as views, closing(self._read(theirs, view)) as others:
            for mine, partners in zip(rows, theirs, strict=True):
                images = next(views)
                lam = mix(images, next(others), mine, view, self.scheme)
                yield images, {"labels_b": torch.from_numpy(self.labels[partners]), "lam": torch.from_numpy(lam)}

    def _read(self, batches: Sequence[Rows], view: int) -> Generator[Bytes, None, None]:
        views = partial(make_views, view=view, scheme=self.scheme)
        return _reader(self._store, "train", self._workers).read(np.concatenate(batches), len(batches[0]), views)


class TrainLoader:
    """Shuffled, augmented batches of the rows that train.

    Args:
        store: converted data.
        data: the stage's data section.
        batch_size: global: over all ranks.
        seed: decides the order.
        rank: this process among `world`.
        world: number of processes; global batches do not depend on it.
        workers: threads that make batches.
        views: how many views each row has; by default a new one each epoch.

    Raises:
        ConfigError: a global batch cannot be divided, or there is not one whole batch.
    """

    def __init__(  # noqa: PLR0913
        self, store: Store, data: DataConfig, *, batch_size: int, seed: int, rank: int, world: int,
        workers: int = 1, views: int | None = None,
    ) -> None:  # fmt: skip
        if batch_size % world:
            raise ConfigError(f"train.batch_size: {batch_size} cannot be divided among {world} processes")
        self.data = data
        self.channels = store.info.channels
        self.views = TrainViews(store, data, workers)
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._many = views
        self._open: WeakSet[Generator[Batch, None, None]] = WeakSet()
        self.samples = len(self.views.rows)
        """Rows that train, over all ranks."""
        self.steps_per_epoch = self.samples // batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                f"train.batch_size: {batch_size} is more than the {self.samples} rows that train: "
                "lower it, or raise data.limit"
            )

    def view_of(self, epoch: int) -> int:
        """Number of the view that an epoch shows."""
        return epoch % self._many if self._many else epoch

    def rows(self, epoch: int, start: int = 0) -> list[Rows]:
        """Row numbers of this rank's batches of one epoch, from batch `start` on."""
        order = epoch_order(self.views.rows, self._seed, epoch)
        steps = range(start, self.steps_per_epoch)
        return [rank_rows(order, step, self._batch_size, self._rank, self._world) for step in steps]

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield this rank's batches of one epoch, from batch `start` on.

        Each batch has memory of its own. Closing the generator, at any point, ends what it started.
        """
        batches = self._epoch(epoch, start)
        self._open.add(batches)
        return batches

    def close(self) -> None:
        """End every epoch that was left before its end."""
        for batches in list(self._open):
            batches.close()

    def _epoch(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        steps = range(start, self.steps_per_epoch)
        with closing(self.views.batches(self.rows(epoch, start), self.view_of(epoch))) as batches:
            for step, batch in zip(steps, batches, strict=True):
                yield replace(batch, step=epoch * self.steps_per_epoch + step)


class EvalLoader:
    """Plain views of one split: every row exactly once over all ranks, in an order that never changes.

    Args:
        store: converted data.
        data: the stage's data section.
        split: val and train are rows of the train set.
        batch_size: rows of one rank's batch; the last may be smaller.
        rank: this process among `world`.
        world: number of processes; their shares differ by at most one row.
        workers: threads that make batches.
    """

    def __init__(  # noqa: PLR0913
        self, store: Store, data: DataConfig, split: Literal["train", "val", "test"], *, batch_size: int,
        rank: int, world: int, workers: int = 1,
    ) -> None:  # fmt: skip
        self._store, self._workers, self._batch_size = store, workers, batch_size
        self._file: SplitName = "test" if split == "test" else "train"
        self._labels = store.labels(self._file)
        carved = carve(self._labels, data)
        rows = {"train": carved.train, "val": carved.val}.get(split)
        rows = test_rows(self._labels, data) if rows is None else rows
        self.samples = len(rows)
        """Rows over all ranks."""
        self._rows = np.ascontiguousarray(rows[rank::world])
        self._size = data.size or store.info.size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        if not len(self._rows):
            return
        reader = _reader(self._store, self._file, self._workers)
        with closing(reader.read(self._rows, self._batch_size, self._views)) as views:
            for index, images in enumerate(views):
                rows = self._rows[index * self._batch_size : (index + 1) * self._batch_size]
                per_pixel = self._store.info.per_pixel
                yield replace(_batch(images, self._labels, rows.copy(), 0, per_pixel=per_pixel), step=index)

    def _views(self, images: Bytes, rows: Rows) -> Bytes:
        del rows
        return eval_views(images, self._size, per_pixel=self._store.info.per_pixel)


def _batch(views: Bytes, labels: Rows, rows: Rows, view: int, *, per_pixel: bool) -> Batch:
    """A batch of views, with each row's label (B,), or those of its pixels (B, S, S), which are the last plane."""
    images, own = parted(views) if per_pixel else (views, labels[rows])
    return Batch(_tensor(images), torch.from_numpy(own), torch.from_numpy(rows), view)


def _tensor(images: Bytes) -> Tensor:
    """(B, S, S, K) bytes as (B, K, S, S) in the same memory: channels last."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _reader(store: Store, split: SplitName, workers: int) -> Reader:
    """A split's reader, opened once a process."""
    key = (split, workers)
    if key not in store.readers:
        reader: type[Any]
        if store.kind == "ffcv":
            if problem := ffcv_problem():
                raise DataError(
                    f"{store.path} was converted for FFCV, which cannot be used here: {problem}; "
                    "data.loader: torch converts the data for the other loader"
                )
            from kdscale.data.ffcv_backend import FfcvReader as reader
        else:
            from kdscale.data.torch_backend import TorchReader as reader
        store.readers[key] = reader(store.path, split, store.encoding, store.info.channels, workers)
    opened: Reader = store.readers[key]
    return opened


# --------------------------------------------------------------------------- what the planner asks


def resolve_loader(data: DataConfig) -> Kind:
    """Which loader `data.loader` means here: FFCV where its libraries load, else torch.

    Raises:
        ConfigError: FFCV is demanded and cannot be loaded.
    """
    problem = ffcv_problem()
    if data.loader == "ffcv" and problem:
        raise ConfigError(
            f"data.loader: ffcv cannot be used here: {problem}. `make setup` installs it where its system libraries "
            "are; data.loader: torch gives the same batches on raw data"
        )
    if data.loader == "torch" or problem:
        return "torch"
    return "ffcv"


@cache
def ffcv_problem() -> str | None:
    """Why FFCV cannot be used, or None; loads its libraries without importing it, which takes long."""
    spec = importlib.util.find_spec("ffcv")
    if spec is None or not spec.submodule_search_locations:
        return "it is not installed"
    for place in spec.submodule_search_locations:
        for library in Path(place).glob("_libffcv*.so"):
            try:
                ctypes.CDLL(str(library))
            except OSError as error:
                return str(error)
            return None
    return "its compiled part is missing"


def view_scheme(data: DataConfig, info: DatasetInfo) -> dict[str, Any]:
    """What decides the pixels of training views of a data set, for digests of caches.

    Raw data gives the same pixels on both loaders; JPEG decoders differ by rounding.
    """
    scheme: dict[str, Any] = {
        "revision": VIEWS_REVISION,
        "size": data.size or info.size,
        "store_size": stored_side(info, data),
        "view_seed": data.view_seed if data.augment != AugmentConfig() else 0,
        "augment": data.augment.model_dump(mode="json", exclude_defaults=True),
    }
    if data.store == "jpeg":
        scheme["decoder"] = {"ffcv": "turbojpeg", "torch": "pillow"}[resolve_loader(data)]
    return scheme
