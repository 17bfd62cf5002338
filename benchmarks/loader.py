"""Our FFCV loader against bare FFCV on real Fashion-MNIST: images a second, ratios of interleaved medians.

    python benchmarks/loader.py [--rounds 9] [--batch-size 128] [--workers 1]

Bare FFCV makes the same kind of view (crop with padding, flip) with its own operations, whose randomness cannot be
repeated, and yields batches that it overwrites later; ours can be repeated for any row, and its batches stay.
Besides: both without augmentation, and our torch loader, which needs no FFCV.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from kdscale import plugins
from kdscale.config.schema import AugmentConfig, DataConfig
from kdscale.data.ffcv_fence import open_ffcv
from kdscale.data.loader import TrainLoader
from kdscale.data.store import Store, write_store

RESULTS = Path(__file__).resolve().parent / "results"
PAD = 2
CROP_FLIP, PLAIN = AugmentConfig(crop=PAD, flip=True), AugmentConfig()
GOAL = 0.8


def bare(store: Store, batch_size: int, workers: int, *, augmented: bool) -> Callable[[int], Iterator[Any]]:
    """FFCV as its documentation uses it: random order, its own flip and translation, tensors out."""
    open_ffcv()
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage

    views = [RandomHorizontalFlip(), RandomTranslate(PAD, fill=(0,))] if augmented else []
    loader = Loader(
        str(store.path / "train.beton"), batch_size=batch_size, num_workers=workers, order=OrderOption.RANDOM,
        os_cache=True, drop_last=True, seed=0,
        pipelines={
            "image": [NDArrayDecoder(), *views, ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )  # fmt: skip
    return lambda epoch: iter(loader)


def ours(store: Store, data: DataConfig, batch_size: int, workers: int) -> Callable[[int], Iterator[Any]]:
    """Our loader, all of it: order, views, rows, labels, own memory."""
    loader = TrainLoader(store, data, batch_size=batch_size, seed=0, rank=0, world=1, workers=workers)
    return loader.epoch


def images_per_s(batches: Iterator[Any], batch_size: int) -> float:
    """Images a second over one epoch; every batch is taken, none is looked at."""
    begun = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * batch_size / (time.perf_counter() - begun)


def measure(folder: Path, batch_size: int, workers: int, rounds: int) -> dict[str, Any]:
    """Rates of each way to load, taken in turns so that the machine's moods meet all alike."""
    data = DataConfig(name="fashion_mnist", val_fraction=0, augment=CROP_FLIP)
    dataset = plugins.load("datasets", "fashion_mnist")(data)
    stores = {kind: write_store(dataset, data, folder / kind / "store", kind) for kind in ("ffcv", "torch")}  # type: ignore[arg-type]
    plain = data.model_copy(update={"augment": PLAIN})
    ways = {
        "bare": bare(stores["ffcv"], batch_size, workers, augmented=True),
        "ffcv": ours(stores["ffcv"], data, batch_size, workers),
        "torch": ours(stores["torch"], data, batch_size, workers),
        "bare_plain": bare(stores["ffcv"], batch_size, workers, augmented=False),
        "ffcv_plain": ours(stores["ffcv"], plain, batch_size, workers),
    }
    for way in ways.values():  # compiles
        images_per_s(way(0), batch_size)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(1, rounds + 1):
        for name, way in ways.items():
            rates[name].append(images_per_s(way(epoch), batch_size))
    return {name: {"median": statistics.median(values), "all": values} for name, values in rates.items()}


STARTUP = """
import time
import torch
begun = time.perf_counter()
from pathlib import Path
from kdscale.config.schema import AugmentConfig, DataConfig
from kdscale.data.loader import TrainLoader
from kdscale.data.store import Store
data = DataConfig(augment=AugmentConfig(crop=2, flip=True))
loader = TrainLoader(Store.open(Path({path!r})), data, batch_size=128, seed=0, rank=0, world=1)
next(loader.epoch(0))
print(time.perf_counter() - begun)
"""


def startup_s(store: Path) -> list[float]:
    """Seconds from torch imported to the first batch, each in a fresh process that finds compiled kernels on disk."""
    command = [sys.executable, "-W", "ignore", "-c", STARTUP.format(path=str(store))]
    return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]


def main() -> None:
    """Measure, print the ratios, keep them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder), chosen.batch_size, chosen.workers, chosen.rounds)
        startups = startup_s(Path(folder) / "ffcv" / "store")
    median = {name: entry["median"] for name, entry in rates.items()}
    ratios = {
        "ffcv_to_bare_crop_flip": median["ffcv"] / median["bare"],
        "ffcv_to_bare_plain": median["ffcv_plain"] / median["bare_plain"],
        "torch_to_bare_crop_flip": median["torch"] / median["bare"],
    }
    for name, value in median.items():
        print(f"{name:<12} {value:>12,.0f} images/s")
    for name, value in ratios.items():
        print(f"{name:<24} {value:.2f}")
    print(f"first batch after {statistics.median(startups):.2f} s in a fresh process, beyond importing torch")
    print(f"goal: ffcv_to_bare_crop_flip >= {GOAL}: {'met' if ratios['ffcv_to_bare_crop_flip'] >= GOAL else 'MISSED'}")
    document = {
        "schema": 1, "goal": GOAL, "ratios": ratios, "images_per_s": rates, "startup_s": startups,
        "batch_size": chosen.batch_size, "workers": chosen.workers, "machine": platform.machine(),
        "cores": os.cpu_count(), "torch": torch.__version__, "numpy": np.__version__,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "loader.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
