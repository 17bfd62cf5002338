"""What a teacher cache costs a step, and what it saves: in turns, in one process of one thread.

    python -m benchmarks.cache [--rounds 9] [--quick]

For a ResNet-8 student at batch 128 on Fashion-MNIST: its step alone (cross-entropy), from a live teacher, and from that
teacher's cache; with ResNet-26 and ResNet-56 teachers, 10 classes, dense records; and with 1,000 made-up classes and
top-16 records. Then how fast a cache is filled beside a bare loop of the same network over images in memory, and how
long it takes to gather 1,024 rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.figures import Row, row, write
from kdscale.api import Batch
from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import BlockWriter
from kdscale.config.load import load
from kdscale.jobs.inline import run_one
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.train.build import Parts, build
from kdscale.train.device import settle_heap
from kdscale.train.filler import SLICE_ON_CPU, Filler
from kdscale.train.loop import train_step
from kdscale.train.metrics import Meter
from kdscale.train.stop import Stop

BATCH, BLOCK_ROWS = 128, 4096
STEPS = 8
"""Of one side's turn."""
OVERHEAD_ROUNDS = 4
"""As many times the rounds of the rest, for a ratio that lies within the noise of few."""
CPU = torch.device("cpu")
PIXELS = {"name": "fashion_mnist", "limit": 20_000}
CLASSES = {"name": "synthetic", "options": {"classes": 1000, "train_rows": 20_000, "test_rows": 1000, "size": 28}}
CASES: dict[str, dict[str, Any]] = {
    "resnet26": {"depth": 26, "data": PIXELS, "most": 1.02},
    "resnet56": {"depth": 56, "data": PIXELS, "most": 1.02},
    "1000 classes": {"depth": 26, "data": CLASSES, "most": 1.05},
}


def experiment(case: dict[str, Any]) -> dict[str, Any]:
    """A teacher that is not trained (its figures do not matter here), and the student three ways."""
    kd = [{"name": "ce", "weight": 0.1}, {"name": "kd", "weight": 0.9, "temperature": 4, "teacher": "t"}]
    student = {"student": {"model": "resnet_cifar", "depth": 8}}
    return {
        "name": "bench", "data": {**case["data"], "val_fraction": 0, "augment": {"crop": 2, "flip": True}},
        "train": {"epochs": 1000, "batch_size": BATCH, "lr": 0.01}, "engine": {"processes": 1},
        "stages": {
            "teacher": {"student": {"model": "resnet_cifar", "depth": case["depth"]}, "train": {"epochs": 0}},
            "alone": student | {"losses": [{"name": "ce"}]},
            "live": student | {"teachers": {"t": {"from": "teacher"}}, "losses": kd},
            "cached": student | {"teachers": {"t": {"from": "teacher", "cache": {"views": 1}}}, "losses": kd},
        },
    }  # fmt: skip


def prepare(case: dict[str, Any], folder: Path) -> dict[str, Parts]:
    """Make data, teacher and cache; build each student as a worker does."""
    folder.mkdir()
    return built(experiment(case), folder, ("alone", "live", "cached"))


def built(settings: dict[str, Any], folder: Path, wanted: Sequence[str]) -> dict[str, Parts]:
    """Run what some stages of an experiment need, and build these as a worker of one thread does."""
    config = folder / "bench.yaml"
    config.write_text(yaml.safe_dump(settings))
    root = Root(folder / "runs")
    plan = make_plan(load(config, []), root)
    prepare_folders(root, plan, retry_failed=False)
    students = {}
    for digest, stage in plan.stages.items():
        if stage.name in wanted:
            students[stage.name] = digest
        elif run_one(root, stage, Stop()) != "done":
            raise RuntimeError(f"{stage.name} is not done")
    torch.set_num_threads(1)
    found = {}
    for name, digest in students.items():
        made = root.stage(digest)
        assert made is not None
        found[name] = build(made.definition(), root, CPU)
    return found


def stepping(parts: Parts) -> Callable[[], float]:
    """A function that trains one turn and returns its seconds a step."""
    meter = Meter([term.id for terms in parts.spec.passes.values() for term in terms], CPU)
    batches: Iterator[Batch] = iter(())
    step = epoch = 0

    def turn() -> float:
        nonlocal batches, step, epoch
        begun = time.perf_counter()
        for _ in range(STEPS):
            batch = next(batches, None)
            if batch is None:
                batches = parts.batches.epoch(epoch)
                epoch += 1
                batch = next(batches)
            train_step(parts.engine, parts.teachers, replace(batch, step=step), 1, meter)
            parts.engine.end_step(step)
            step += 1
        return (time.perf_counter() - begun) / STEPS

    return turn


def answering(parts: Parts) -> Callable[[], float]:
    """The teacher alone, on batches of training, in seconds a batch."""
    batch = parts.first_batch()

    def turn() -> float:
        begun = time.perf_counter()
        for _ in range(STEPS):
            parts.live[0](batch)
        return (time.perf_counter() - begun) / STEPS

    return turn


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every side once a round, forwards and backwards; after one round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            value = sides[name]()
            if number:
                found[name].append(value)
    return found


def steps_of(parts: dict[str, Parts], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each side, and of the teacher alone."""
    sides = {name: stepping(one) for name, one in parts.items()}
    return in_turns({**sides, "teacher": answering(parts["live"])}, rounds)


def overheads(parts: dict[str, Parts], rounds: int) -> list[float]:
    """Cached step to student alone, in turns of these two alone.

    Among all sides the cached one would always come after a teacher's network, which empties the processor's caches,
    and the student alone after itself: worth a percent.
    """
    seconds = in_turns({side: stepping(parts[side]) for side in ("alone", "cached")}, OVERHEAD_ROUNDS * rounds)
    return [cached / alone for alone, cached in zip(seconds["alone"], seconds["cached"], strict=True)]


def filling(parts: dict[str, Parts], rounds: int) -> dict[str, list[float]]:
    """Seconds an image: filling a cache, and a bare loop of the same network over images in memory."""
    cache = parts["cached"].caches[0]
    images = torch.cat([next(parts["cached"].train_loader.epoch(n)).images for n in range(4)])
    manifest = cache.folder.manifest
    blocks = iter(range(manifest.blocks_per_view, (rounds + 2) * manifest.blocks_per_view))
    wanted = replace(manifest, views=rounds + 2)
    folder = CacheFolder.create(cache.folder.path.parent, wanted, np.asarray(cache.folder.rows))
    filler = Filler(folder, cache.need.layout, cache.live, cache.views, CPU, lambda: False)
    network = cache.live
    few = 4

    def fill() -> float:
        numbers = [next(blocks) for _ in range(few)]
        begun = time.perf_counter()
        filler.fill(numbers)
        return (time.perf_counter() - begun) / (few * manifest.block_rows)

    def bare() -> float:
        pieces = images.split(SLICE_ON_CPU)
        begun = time.perf_counter()
        for number in range(few * manifest.block_rows // SLICE_ON_CPU):
            piece = pieces[number % len(pieces)]
            network(Batch(piece, torch.zeros(len(piece), dtype=torch.int64), torch.arange(len(piece)), 0))
        return (time.perf_counter() - begun) / (few * manifest.block_rows)

    return in_turns({"fill": fill, "bare": bare}, rounds)


def make_cache(folder: Path, rows: int) -> CacheFolder:
    """A cache of noise: one view of so many rows, top 16 of 1,000 classes."""
    layout = Layout(classes=1000, kind="topk", k=16, temperatures=(1.0, 4.0))
    numbers = np.arange(rows)
    manifest = Manifest(
        identity={"record": layout.document()}, rows=rows, rows_hash=hash_of_rows(numbers),
        record_bytes=layout.record_bytes, block_rows=BLOCK_ROWS, shard_records=64 * BLOCK_ROWS, views=1,
    )  # fmt: skip
    cache = CacheFolder.create(folder, manifest, numbers)
    writer = BlockWriter(cache)
    noise = np.random.default_rng(0).integers(0, 256, (BLOCK_ROWS, layout.record_bytes), dtype=np.uint8)
    for block in range(manifest.blocks):
        writer.take(block)
        writer.write(block, noise[: len(cache.rows_of(block))])
    writer.close()
    return cache


def gathering(folder: Path, rounds: int) -> list[float]:
    """Milliseconds to gather 1,024 rows, anywhere in a cache of a million records of 1,000 classes, warm."""
    rows = np.arange(1_000_000)
    cache = make_cache(folder, len(rows))
    reader, draws = CacheReader(cache), np.random.default_rng(1)
    reader.gather(rows, 0)
    found = []
    for _ in range(20 * rounds):
        wanted = draws.choice(rows, 1024, replace=False)
        begun = time.perf_counter()
        reader.gather(wanted, 0)
        found.append(1e3 * (time.perf_counter() - begun))
    return found


def rows_of(name: str, case: dict[str, Any], seconds: dict[str, list[float]], costs: list[float]) -> list[Row]:
    """The figures of one case, and what they are to be."""
    paired = list(zip(*(seconds[side] for side in ("alone", "live", "cached", "teacher")), strict=True))
    gains = [(live / cached) / ((teacher + alone) / alone) for alone, live, cached, teacher in paired]
    return [
        row(f"{name}: cached step to student alone", costs, "x", "<=", case["most"]),
        row(f"{name}: gain to what is possible", gains, "x", ">=", 0.95),
    ]


def record_sizes() -> dict[str, dict[str, int]]:
    """Bytes a record, beside those of TinyViT (arXiv:2207.10666) and FKD (arXiv:2112.01528) with as many logits."""
    found = {"dense, 10 classes": {"kdscale": Layout(10, "dense").record_bytes, "fp32": 40}}
    for k in (5, 16, 100):
        layout = Layout(classes=1000, kind="topk", k=k, temperatures=(1.0, 4.0))
        fkd = 4 * 4 + 1 + 8 * k  # box and flip, then index and probability as floats
        found[f"top {k} of 1000"] = {"kdscale": layout.record_bytes, "TinyViT": 4 + 4 * k, "FKD": fkd, "dense": 2004}
    return found


def run(*, quick: bool = False, rounds: int = 15) -> list[Row]:
    """Measure everything, keep the figures, return their rows."""
    rounds = 3 if quick else rounds
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    settle_heap()
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, case) in enumerate(CASES.items()):
            parts = prepare(case, Path(scratch) / str(number))
            seconds = steps_of(parts, rounds)
            rows += rows_of(name, case, seconds, overheads(parts, rounds))
            measured[name] = {side: statistics.median(values) for side, values in seconds.items()}
            if name == "resnet26":
                filled = filling(parts, rounds)
                ratios = [bare / fill for fill, bare in zip(filled["fill"], filled["bare"], strict=True)]
                rows.append(row("fill rate to bare teacher", ratios, "x", ">=", 0.9))
                measured["images_per_s"] = {side: 1 / statistics.median(v) for side, v in filled.items()}
        rows.append(row("gather of 1,024 rows", gathering(Path(scratch) / "big", rounds), "ms", "<=", 0.5))
    measured["record_bytes"] = record_sizes()
    write("cache", rows, quick=quick, measured=measured, batch_size=BATCH)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few rounds: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds):
        print(entry.line)
    for what, sizes in record_sizes().items():
        print(f"{what:<20} " + "  ".join(f"{name} {size:,} B" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
