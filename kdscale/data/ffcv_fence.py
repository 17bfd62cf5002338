"""The one door to FFCV 1.0.2: opened without its side effects, and an epoch of it without its traps.

What is mended here, each with a test: importing it takes seconds and changes torch's thread count, and
so does every epoch; an epoch that is left early leaks its thread; an error in its thread hangs the
consumer; indices beyond the data are read all the same; a loader's length is frozen when it is made; a
batch is overwritten while somebody still holds it; two epochs at once, several workers each, may end the
process; opening a loader makes numba's one type of byte arrays read-only, for everybody's kernels; each
loader compiles the same code again.
"""

from __future__ import annotations

import copy
import queue
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, no_type_check

import numpy as np

from kdscale.data.views import Bytes, Rows, ViewFunction
from kdscale.errors import DataError

__all__ = ["Epoch", "compile_array_decoder", "open_ffcv", "open_loader", "start_epoch"]

Loader = Any
"""ffcv.Loader, which has no types."""

DECODING = Lock()
"""Held while several workers decode: numba's simplest thread pool aborts the process when two epochs use it at once."""

LOOK_EVERY_S = 1.0
"""How often a waiting consumer looks whether the thread that fills its queue still lives."""


class _Closed(Exception):
    """Ends the thread of an epoch that nobody reads any more."""


@cache
def open_ffcv() -> Any:
    """Import FFCV, once.

    FFCV makes a numba typed dict while it is imported, which compiles for four seconds, for a table of two
    names that only plain Python reads. And its `Compiler` sets torch's threads to its own number of workers,
    from its threads too, so that nobody could set them back in time: it keeps numba's alone.
    """
    import numba.typed
    import torch

    typed_dict, threads = numba.typed.Dict, torch.get_num_threads()
    numba.typed.Dict = dict
    try:
        with _quiet():
            import ffcv
            from ffcv.memory_managers.os_cache import OSCacheManager
            from ffcv.pipeline.compiler import Compiler
    finally:
        numba.typed.Dict = typed_dict
        torch.set_num_threads(threads)
    Compiler.set_num_threads = classmethod(_set_numba_threads)
    Compiler.compile = classmethod(_compile_once)
    OSCacheManager.__init__ = _look_up_places
    OSCacheManager.compile_reader = _compile_reader
    return ffcv


def compile_array_decoder() -> None:
    """Compile, on no data, what reads stored arrays of any size: processes forked from this one then share it."""
    open_ffcv()
    from ffcv.fields.decoders import NDArrayDecoder
    from ffcv.pipeline.compiler import Compiler

    decoder = NDArrayDecoder()
    decoder.accept_globals(None, _compile_reader())
    no_rows, images = np.zeros(0, np.int64), np.zeros((0, 1, 1, 1), np.uint8)
    file, places = np.zeros(0, np.uint8), np.zeros((2, 2), np.uint64)[:, 0]  # a column of FFCV's table
    file.flags.writeable = places.flags.writeable = False
    pages = (file, np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    Compiler.compile(decoder.generate_code())(no_rows, images, places, pages)


def _set_numba_threads(compiler: Any, count: int) -> None:
    import numba

    compiler.num_threads = min(count, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(compiler.num_threads)


def _compile_once(compiler: Any, code: Any, signature: Any = None) -> Any:
    """What FFCV would compile anew for each loader, and wrap anew for each epoch, though it is the same code."""
    import numba

    parallel = getattr(code, "is_parallel", False) and compiler.num_threads > 1
    compiled = numba.njit(signature, fastmath=True, nogil=True, error_model="numpy", parallel=parallel)
    closure = tuple(cell.cell_contents for cell in code.__closure__ or ())
    key = code.__code__, closure, signature, parallel
    try:
        hash(key)
    except TypeError:  # it holds arrays, as FFCV's own augmentations do
        return compiled(code)
    if key not in _COMPILED:
        _COMPILED[key] = compiled(code)
    return _COMPILED[key]


_COMPILED: dict[Any, Any] = {}


def _look_up_places(manager: Any, reader: Any) -> None:
    """Where each sample lies, in the two arrays that are read.

    FFCV makes tables of samples and pages besides, half a GB for a million images, which its other cache needs.
    """
    from ffcv.memory_managers.os_cache import OSCacheContext

    table = reader.alloc_table
    order = np.argsort(table["ptr"])
    manager.reader, manager.ptrs, manager.sizes = reader, table["ptr"][order], table["size"][order]
    manager.context = OSCacheContext(manager)


def _compile_reader(manager: Any = None) -> Any:
    """Compile what finds a sample's bytes, with the types that it is called with.

    FFCV declares them, and to say that the data is read-only it changes numba's `uint8[::1]` itself, of which
    a process has one: kernels that were compiled for it before are lost, and what calls them cannot compile.
    """
    from ffcv.pipeline.compiler import Compiler

    @no_type_check
    def read(address, state):
        data, pointers, sizes = state
        return data[address : address + sizes[np.searchsorted(pointers, address)]]

    return Compiler.compile(read)


@contextmanager
def _quiet() -> Iterator[None]:
    """FFCV uses what Python and torch have deprecated since."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_loader(path: Path, encoding: str, workers: int) -> Loader:
    """Make a loader that yields stored images of a .beton as NumPy arrays (B, T, T, K).

    One loader serves all epochs and purposes of a process: each costs time to compile and tens of MB.
    """
    ffcv = open_ffcv()
    with _quiet():
        from ffcv.fields.decoders import NDArrayDecoder, SimpleRGBImageDecoder

        decoder = SimpleRGBImageDecoder() if encoding == "jpeg" else NDArrayDecoder()
        loader = ffcv.Loader(
            str(path), batch_size=1, num_workers=workers, os_cache=True, seed=0, drop_last=False,
            pipelines={"image": [decoder], "label": None},
        )  # fmt: skip
    # half a MB for ten thousand images, read while the loader was made
    loader.reader.alloc_table = loader.indices = loader.first_traversal_order = None
    return loader


def start_epoch(loader: Loader, rows: Rows, batch_size: int, views: ViewFunction) -> Epoch:
    """Start FFCV's thread over any order of rows, of any length: nothing of it is fixed in the loader.

    Args:
        loader: from `open_loader`.
        rows: what to read, in this order.
        batch_size: rows at a time; the last batch may be smaller.
        views: makes what is yielded; called in FFCV's thread.

    Raises:
        DataError: a row that the data does not have, which FFCV would read from wherever it points.
    """
    count = loader.reader.num_samples
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise DataError(f"{loader.fname}: rows {rows.min()} to {rows.max()} were asked of {count}")
    epoch: Epoch = _epoch_class()(loader, np.array(rows, np.int64), batch_size, views)
    return epoch


class Epoch(Thread):
    """One pass over rows, made by `start_epoch`: what FFCV's own thread, the next base, does otherwise."""

    terminate_event: Event
    output_queue: queue.Queue[tuple[int, Bytes] | None]

    def __init__(self, loader: Loader, rows: Rows, batch_size: int, views: ViewFunction) -> None:
        self._views = views
        self._workers = loader.num_workers
        self._failure: BaseException | None = None
        of_this_size = copy.copy(loader)
        of_this_size.batch_size = batch_size
        super().__init__(of_this_size, rows)  # type: ignore[arg-type]

    def run(self) -> None:
        try:
            super().run()
        except _Closed:
            pass
        except BaseException as error:  # noqa: BLE001  # raised again by whoever takes the batches
            self._failure = error
            self._put_end()

    def run_pipeline(self, b_ix: int, batch_indices: Rows, batch_slot: int, cuda_event: Any) -> Bytes:
        """Decode a batch, and make the views in memory of their own: FFCV will overwrite what it decoded."""
        if self.terminate_event.is_set():
            raise _Closed
        with DECODING if self._workers > 1 else nullcontext():
            (images,) = super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)  # type: ignore[misc]
        return self._views(images, batch_indices)

    def __iter__(self) -> Iterator[Bytes]:
        return self

    def __next__(self) -> Bytes:
        item = self._next_item()
        if item is not None:
            return item[1]
        self.close()
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """End the thread, however far it is."""
        self.terminate_event.set()
        while self.is_alive():
            with suppress(queue.Empty):
                self.output_queue.get_nowait()  # the thread may be waiting for a place
            self.join(0.01)

    def __del__(self) -> None:
        """Nothing: a thread that runs is never collected, so there is nothing left to end."""

    def _next_item(self) -> tuple[int, Bytes] | None:
        while self.is_alive() or not self.output_queue.empty():
            with suppress(queue.Empty):
                return self.output_queue.get(timeout=LOOK_EVERY_S)
        return None

    def _put_end(self) -> None:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(None, timeout=0.1)
            except queue.Full:
                continue
            return


@cache
def _epoch_class() -> type[Any]:
    from ffcv.loader.epoch_iterator import EpochIterator

    return type("FencedEpoch", (Epoch, EpochIterator), {})
