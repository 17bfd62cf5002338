"""Each of FFCV 1.0.2's traps, sprung: what must not happen behind the fence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdscale.config.schema import DataConfig
from kdscale.data.loader import EvalLoader, TrainLoader, ffcv_problem
from kdscale.data.store import Store, write_store
from kdscale.errors import DataError
from tests.unit.data.places import made_up

pytestmark = pytest.mark.skipif(bool(ffcv_problem()), reason=f"FFCV: {ffcv_problem()}")

Images = NDArray[np.uint8]
PICTURES = made_up(train=200, test=20, size=6)
ORIGINALS = PICTURES.splits["train"][0]
ROWS = np.arange(200, dtype=np.int64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(PICTURES, DataConfig(), tmp_path_factory.mktemp("fence") / "store", "ffcv")


@pytest.fixture(scope="module")
def loader(store: Store) -> Any:
    from kdscale.data.ffcv_fence import open_loader

    opened = open_loader(store.path / "train.beton", "raw", workers=1)
    everything(start(opened))  # the first batch compiles
    return opened


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def plain(images: Images, rows: NDArray[np.int64]) -> Images:
    del rows
    return images.copy()


def compiled_code(loader: Any) -> set[Any]:
    from numba.core.dispatcher import Dispatcher

    stages, _ = loader.code
    return {part for stage, _ in stages for part in stage.__globals__.values() if isinstance(part, Dispatcher)}


def start(loader: Any, rows: NDArray[np.int64] = ROWS, batch_size: int = 8, views: Any = plain) -> Any:
    from kdscale.data.ffcv_fence import start_epoch

    return start_epoch(loader, rows, batch_size, views)


def everything(epoch: Any) -> Images:
    return np.concatenate(list(epoch))


# --------------------------------------------------------------------------- memory


def test_batches_that_are_kept_are_never_overwritten(store: Store) -> None:
    """FFCV decodes into five places in turn; 25 batches are held here."""
    data = DataConfig(val_fraction=0)
    kept = list(TrainLoader(store, data, batch_size=8, seed=0, rank=0, world=1).epoch(0))
    kept += list(EvalLoader(store, data, "train", batch_size=8, rank=0, world=1))
    assert len(kept) == 50
    for batch in kept:
        expected = torch.from_numpy(ORIGINALS[batch.rows.numpy()]).permute(0, 3, 1, 2)
        assert torch.equal(batch.images, expected)
    assert len({batch.images.data_ptr() for batch in kept}) == 50


def test_a_batch_may_be_changed_without_changing_the_data(store: Store) -> None:
    data = DataConfig(val_fraction=0)
    for _ in range(2):
        for batch in EvalLoader(store, data, "train", batch_size=200, rank=0, world=1):
            assert torch.equal(batch.images, torch.from_numpy(ORIGINALS).permute(0, 3, 1, 2))
            batch.images.zero_()


# --------------------------------------------------------------------------- threads


@pytest.mark.parametrize("taken", [0, 1, 12, 22, 24, 25])
def test_closing_ends_the_thread(loader: Any, taken: int) -> None:
    """Also when all that remains is in the queue: there FFCV's thread waits for a place that never comes."""
    before = threading.active_count()
    epoch = start(loader)
    for _ in range(taken):
        next(epoch)
    time.sleep(0.02)  # the queue fills
    epoch.close()
    assert threading.active_count() == before


def test_an_epoch_read_to_its_end_ends_its_thread(loader: Any) -> None:
    np.testing.assert_array_equal(everything(start(loader)), ORIGINALS)


def test_an_end_can_be_asked_for_again(loader: Any) -> None:
    epoch = start(loader)
    everything(epoch)
    with pytest.raises(StopIteration):
        next(epoch)


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize("batch", [0, 1, 10, 24])
@pytest.mark.parametrize("kind", [ValueError, SystemExit, MemoryError])
def test_an_error_in_ffcvs_thread_is_raised_where_batches_are_taken(
    loader: Any, batch: int, kind: type[BaseException]
) -> None:
    def failing(images: Images, rows: NDArray[np.int64]) -> Images:
        if rows[0] == 8 * batch:
            raise kind("broken on purpose")
        return images.copy()

    epoch = start(loader, views=failing)
    for _ in range(batch):
        next(epoch)
    with pytest.raises(kind, match="broken on purpose"):
        next(epoch)


def test_an_error_nobody_waits_for_ends_the_thread_too(loader: Any) -> None:
    def failing(images: Images, rows: NDArray[np.int64]) -> Images:
        if rows[0] == 40:
            raise ValueError
        return images.copy()

    epoch = start(loader, views=failing)
    time.sleep(0.05)
    epoch.close()


def test_a_thread_that_ends_without_a_word_is_noticed(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdscale.data import ffcv_fence

    monkeypatch.setattr(ffcv_fence, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(ffcv_fence.Epoch, "_put_end", lambda self: None)
    with pytest.raises(ZeroDivisionError):
        next(start(loader, views=lambda images, rows: 1 // 0))


@pytest.mark.parametrize("rows", [[200], [0, 5, 10**6], [-1], [3, -200]])
def test_rows_that_the_data_does_not_have_are_refused(loader: Any, rows: list[int]) -> None:
    with pytest.raises(DataError, match=r"train\.beton: rows .* were asked of 200"):
        start(loader, np.array(rows, np.int64))


# --------------------------------------------------------------------------- length and order


def test_every_epoch_has_its_own_length_and_order(loader: Any) -> None:
    """FFCV fixes a loader's length when it is made, so it would cut whatever is longer than the data it saw then."""
    for count in (3, 200, 17, 450):
        rows = np.resize(np.roll(ROWS, count), count)
        np.testing.assert_array_equal(everything(start(loader, rows, batch_size=5)), ORIGINALS[rows])


def test_one_loader_serves_several_epochs_at_once(loader: Any) -> None:
    first, second = start(loader, batch_size=8), start(loader, ROWS[::-1], batch_size=25)
    ahead = [next(second), next(first), next(second)]
    np.testing.assert_array_equal(np.concatenate([ahead[1], everything(first)]), ORIGINALS)
    np.testing.assert_array_equal(np.concatenate([ahead[0], ahead[2], everything(second)]), ORIGINALS[::-1])


def test_a_last_batch_of_one_keeps_its_shape(loader: Any) -> None:
    shapes = [batch.shape for batch in start(loader, ROWS[:9], batch_size=8)]
    assert shapes == [(8, 6, 6, 3), (1, 6, 6, 3)]


# --------------------------------------------------------------------------- side effects, each in a fresh process


def python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchs_threads_are_left_alone(store: Store) -> None:
    script = f"""
import torch
torch.set_num_threads(3)
from pathlib import Path
from kdscale.config.schema import DataConfig
from kdscale.data.loader import TrainLoader
from kdscale.data.store import Store
seen = []
store = Store.open(Path({str(store.path)!r}))
loader = TrainLoader(store, DataConfig(), batch_size=8, seed=0, rank=0, world=1, workers=2)
for epoch in range(2):
    for batch in loader.epoch(epoch):
        seen.append(torch.get_num_threads())
print(set(seen), torch.get_num_threads())
"""
    assert python(script).split() == ["{3}", "3"]


def test_two_epochs_of_several_workers_live_together_on_numbas_simplest_pool(tmp_path: Path) -> None:
    """Without the lock the process is aborted: "Concurrent access has been detected"."""
    write_store(made_up(train=600, size=32), DataConfig(store="jpeg"), tmp_path / "store", "ffcv")
    script = f"""
from pathlib import Path
from kdscale.config.schema import AugmentConfig, DataConfig
from kdscale.data.loader import TrainLoader
from kdscale.data.store import Store
data = DataConfig(store="jpeg", augment=AugmentConfig(mixup=1.0))
store = Store.open(Path({str(tmp_path / "store")!r}))
loader = TrainLoader(store, data, batch_size=8, seed=0, rank=0, world=1, workers=2)
print(sum(len(list(loader.epoch(epoch))) for epoch in range(3)))
import numba
print(numba.threading_layer())
"""
    assert python(script, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2").split() == ["201", "workqueue"]


def test_ffcv_is_imported_without_compiling() -> None:
    """As it comes it compiles a typed dict for seconds; compiled code in the process says so, a clock would not."""
    script = """
from numba.core.dispatcher import Dispatcher
from kdscale.data.ffcv_fence import open_ffcv
import numba, torch
compiled = []
compile = Dispatcher.compile
Dispatcher.compile = lambda self, sig: (compiled.append(self.py_func.__name__), compile(self, sig))[1]
typed = numba.typed.Dict
open_ffcv()
print(len(compiled), numba.typed.Dict is typed)
"""
    assert python(script).split() == ["0", "True"]


def test_numbas_types_stay_what_they_are(store: Store) -> None:
    """FFCV makes the one `uint8[::1]` of a process read-only in place: kernels compiled for it were lost."""
    import numba

    from kdscale.data import view_pixels
    from kdscale.data.ffcv_fence import open_loader

    view_pixels.clear(np.ones(4, np.uint8), 0, 4)
    everything(start(open_loader(store.path / "train.beton", "raw", workers=1)))
    assert numba.uint8[::1].mutable
    assert all(signature in view_pixels.clear.overloads for signature in list(view_pixels.clear.overloads.keys()))  # type: ignore[attr-defined]


def test_what_a_forked_worker_reads_arrays_with_is_compiled_before(tmp_path: Path) -> None:
    """With the very types that a loader calls it with, or each worker would compile it again."""
    write_store(PICTURES, DataConfig(), tmp_path / "store", "ffcv")
    script = f"""
from pathlib import Path
import numpy as np
from numba.core.dispatcher import Dispatcher
from kdscale.data.ffcv_fence import compile_array_decoder, open_loader, start_epoch
compile_array_decoder()
compiled = []
compile = Dispatcher.compile
Dispatcher.compile = lambda self, sig: (compiled.append((self.py_func.__name__, sig)), compile(self, sig))[1]
for _ in range(2):
    loader = open_loader(Path({str(tmp_path / "store" / "train.beton")!r}), "raw", workers=1)
    print(len(list(start_epoch(loader, np.arange(200), 8, lambda images, rows: images.copy()))), len(compiled))
assert not compiled, compiled
"""
    assert python(script).split() == ["25", "0", "25", "0"]


def test_loaders_share_what_is_compiled(store: Store) -> None:
    """FFCV compiles the same code anew for each loader, which takes seconds and tens of MB."""
    from kdscale.data.ffcv_fence import open_loader

    first, second = (open_loader(store.path / "train.beton", "raw", workers=1) for _ in range(2))
    assert compiled_code(first) == compiled_code(second)


def test_ffcvs_own_pipelines_still_compile(store: Store) -> None:
    """Whoever uses FFCV beside kdscale, with augmentations whose code holds arrays, or its other cache."""
    script = f"""
from kdscale.data.ffcv_fence import open_ffcv
open_ffcv()
import ffcv
from ffcv.fields.decoders import NDArrayDecoder
from ffcv.transforms import RandomHorizontalFlip, RandomTranslate
for os_cache in (True, False):
    image = [NDArrayDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=1, fill=(0,))]
    pipelines = {{"image": image, "label": None}}
    loader = ffcv.Loader({str(store.path / "train.beton")!r}, 50, num_workers=1, os_cache=os_cache, pipelines=pipelines)
    print([tuple(batch[0].shape[:3]) for batch in loader])
"""
    assert python(script).splitlines() == ["[(50, 6, 6), (50, 6, 6), (50, 6, 6), (50, 6, 6)]"] * 2


KERNEL = """
import numpy as np
from kdscale.data import view_draws
for seed in range(3):
    view_draws.row_states(np.uint64(seed), np.arange(4))
stats = view_draws.row_states.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""


def test_kernels_are_compiled_once_a_machine(tmp_path: Path) -> None:
    """A second process finds them on disk, and further epochs compile nothing."""
    assert python(KERNEL, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["1", "0"]
    assert python(KERNEL, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0", "1"]


def test_kernels_work_where_nothing_can_be_cached() -> None:
    no_place = "from numba.core.caching import CacheImpl\nCacheImpl._locator_classes = []\n"
    assert python(no_place + KERNEL).split() == ["1", "0"]
