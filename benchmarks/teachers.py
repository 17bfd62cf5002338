"""A teacher's answers, beside the same network folded and called at once, and beside its plain form: in turns.

    python -m benchmarks.teachers [--rounds 9] [--quick]

One thread of a CPU, 32 pixels, a batch of 128, untrained networks: their figures decide no time.

    plain   the network as it was trained, in fp32, as people ask a live teacher
    folded  BatchNorm in the convolutions, channels-last, the precision that is asked for, the whole batch at once
    ours    what kdscale asks: fused, packed, in parts where that is thought to pay (kdscale/nn/fuse.py)

`ours` to `folded` is to be 1 at least for every network: what is thought to pay must not cost another one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import Row, row, write
from kdscale.api import Batch, DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.nn.build import build_network
from kdscale.nn.fold import fold
from kdscale.nn.network import Network
from kdscale.teachers.network import AUTOCAST, NetworkTeacher
from kdscale.train.device import settle_heap

NETWORKS: Sequence[Mapping[str, Any]] = (
    {"model": "resnet_cifar", "depth": 56}, {"model": "resnet_cifar", "depth": 20}, {"model": "wrn"},
    {"model": "vgg", "depth": 13}, {"model": "mobilenet_v2"}, {"model": "shufflenet_v2"},
    {"model": "torchvision:resnet18"}, {"model": "torchvision:efficientnet_b0"},
)  # fmt: skip
PIXELS, BATCH = 32, 128
INFO = DatasetInfo(10, 1, PIXELS, 100, 20, (0.3,), (0.35,), tuple("abcdefghij"))
GOAL = 0.97
"""Of the folded network's speed: networks that nothing is done to are at 1, give or take the machine's noise."""

Side = Callable[[], Tensor]


def sides(network: Mapping[str, Any], precision: str, images: Tensor) -> dict[str, Side]:
    """What answers the images, by name."""
    student = StudentConfig.model_validate(network)
    plain = build_network(student, INFO, PIXELS).eval()
    folded = fold(plain).eval().prepare(channels_last=True, device="cpu")
    teacher = NetworkTeacher("teacher", plain, device=torch.device("cpu"), precision=precision)
    rows = torch.arange(len(images))
    batch = Batch(images, rows, rows, view=0)
    return {
        "plain": lambda: _asked(plain, images, None),
        "folded": lambda: _asked(folded, images, AUTOCAST.get(precision)),
        "ours": lambda: teacher(batch).logits,
    }


@torch.no_grad()
def _asked(network: Network, images: Tensor, dtype: torch.dtype | None) -> Tensor:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logits: Tensor = network(images).logits
    return logits


def measure(asked: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, in turns whose order goes back and forth."""
    for side in asked.values():  # warms up
        side()
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(rounds):
        for name in [*asked][:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            asked[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def run(*, quick: bool = False, rounds: int = 9) -> list[Row]:
    """Measure all networks, keep the figures, return their rows."""
    torch.set_num_threads(1)
    settle_heap()
    images = torch.randint(0, 256, (8 if quick else BATCH, 1, PIXELS, PIXELS), dtype=torch.uint8)
    precisions = ["fp32", *(["bf16"] if torch.cpu._is_avx512_bf16_supported() else [])]
    rows, measured = [], {}
    for network in NETWORKS[:1] if quick else NETWORKS:
        name = "-".join(str(value) for value in network.values())
        for precision in precisions:
            seconds = measure(sides(network, precision, images), 2 if quick else rounds)
            ratios = {
                side: [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[side], strict=True)]
                for side in ("plain", "folded")
            }
            measured[f"{name} {precision}"] = {"seconds": seconds} | {
                f"to_{side}": statistics.median(found) for side, found in ratios.items()
            }
            rows.append(row(f"teacher {name} {precision}: kdscale to folded", ratios["folded"], "x", ">=", GOAL))
    write("teachers", rows, quick=quick, networks=measured, batch_size=len(images), pixels=PIXELS, threads=1)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one network, few images: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds):
        print(entry.line)


if __name__ == "__main__":
    main()
