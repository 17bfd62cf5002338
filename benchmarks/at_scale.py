"""On paper: a data-parallel step on 8 to 512 GPUs, from its arithmetic, its bytes and the network between nodes.

    python -m benchmarks.at_scale        writes benchmarks/results/at_scale.json, .md and .png

Nothing here was measured but what a step says to other ranks (benchmarks/results/scaling.json). Each assumption is an
attribute of `Machine` or `Work` below, with where it is from; the formula is `step`:

    compute   images · (3 · student's forward + teacher's forward) / (peak · utilisation); a cached teacher costs none
    gradients 4 bytes a parameter, in buckets of 25 MiB, as DistributedDataParallel cuts them
    reduced   within a node as a ring over its GPUs, then between nodes as a ring over them:
              2 (n - 1) / n · bytes / bandwidth, n the GPUs of a node or the nodes; and a bucket's latencies,
              2 (n - 1) of the ring within a node and 2 log2(n) between nodes, where NCCL takes trees for small messages
    hidden    all buckets but the last are reduced while the backward pass (2/3 of the student's work) goes on
    agreed    every 4 steps all hosts agree whether to go on: a message of 8 bytes, 2 log2(ranks) host latencies
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from benchmarks.figures import RESULTS
from kdscale.train.stop import AGREE_EVERY_STEPS

BUCKET_BYTES = 25 * 2**20
GRADIENT_BYTES = 4
GPUS = (8, 16, 32, 64, 128, 256, 512)
NETWORKS_GBIT = {"Ethernet 25": 25.0, "Ethernet 100": 100.0, "InfiniBand 400": 400.0, "8 x InfiniBand 400": 3200.0}
"""Of a node, each way."""


@dataclass(frozen=True)
class Machine:
    """A node of eight GPUs; figures of NVIDIA's H100 SXM data sheet unless said otherwise."""

    peak_flops: float = 989e12
    """bf16, dense."""
    utilisation: float = 0.35
    """Assumed: convolutions of ResNets at bf16, channels-last, are seldom above it."""
    gpus_a_node: int = 8
    inside_bytes_s: float = 370e9
    """Assumed: what NCCL's all-reduce gets of NVLink's 450 GB/s each way."""
    network_share: float = 0.85
    """Assumed: of the network's nominal bandwidth that an all-reduce gets."""
    gpu_latency_s: float = 5e-6
    """Assumed: of a hop of a collective, between nodes as well."""
    host_latency_s: float = 30e-6
    """Assumed: of a message between hosts over TCP, which is what gloo takes."""


@dataclass(frozen=True)
class Work:
    """A distillation: a student that trains, and a teacher that answers or lies in a cache."""

    name: str
    images: int
    """A GPU and step."""
    parameters: float
    forward_flops: float
    """Of the student, an image; two for each multiplication and addition."""
    teacher_flops: float = 0.0


WORKS = (
    Work("ResNet-18 at 32 pixels, teacher cached", 128, 11.2e6, 1.11e9),
    Work("ResNet-18 at 32 pixels, ResNet-50 online", 128, 11.2e6, 1.11e9, 2.6e9),
    Work("ResNet-50 at 224 pixels, teacher cached", 128, 25.6e6, 8.2e9),
    Work("ResNet-50 at 224 pixels, ResNet-152 online", 128, 25.6e6, 8.2e9, 23.1e9),
)
"""Parameters and operations as torchvision's table and the planner's counter have them."""


def step(work: Work, machine: Machine, gpus: int, network_gbit: float) -> dict[str, float]:
    """Seconds of a step and of its parts."""
    speed = machine.peak_flops * machine.utilisation
    student = 3 * work.images * work.forward_flops / speed
    compute = student + work.images * work.teacher_flops / speed
    volume = GRADIENT_BYTES * work.parameters
    buckets = math.ceil(volume / BUCKET_BYTES)
    reduced = _reduced(machine, gpus, volume, buckets, network_gbit * 1e9 / 8 * machine.network_share)
    open_to_overlap = (buckets - 1) / buckets
    exposed = reduced - min(reduced * open_to_overlap, student * 2 / 3 * open_to_overlap)
    agreed = 2 * math.log2(gpus) * machine.host_latency_s / AGREE_EVERY_STEPS
    total = compute + exposed + agreed
    return {
        "compute_s": compute, "reduced_s": reduced, "exposed_s": exposed, "agreed_s": agreed, "step_s": total,
        "efficiency": compute / total, "images_per_s": gpus * work.images / total,
    }  # fmt: skip


def _reduced(machine: Machine, gpus: int, volume: float, buckets: int, network_bytes_s: float) -> float:
    inside, nodes = min(gpus, machine.gpus_a_node), math.ceil(gpus / machine.gpus_a_node)
    seconds = _ring(inside, volume, machine.inside_bytes_s) + _ring(nodes, volume, network_bytes_s)
    hops = 2 * (inside - 1) + 2 * math.log2(nodes)
    return seconds + buckets * hops * machine.gpu_latency_s


def _ring(count: int, volume: float, bytes_s: float) -> float:
    return 2 * (count - 1) / count * volume / bytes_s


def table(machine: Machine) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """Every work on every network and number of GPUs."""
    return {
        work.name: {
            name: {gpus: step(work, machine, gpus, gbit) for gpus in GPUS} for name, gbit in NETWORKS_GBIT.items()
        }
        for work in WORKS
    }


def markdown(found: Mapping[str, Mapping[str, Mapping[int, Mapping[str, float]]]], machine: Machine) -> str:
    """The efficiencies as tables, under the assumptions."""
    said = (__doc__ or "").strip().splitlines()
    text = [
        f"# {said[0]}",
        "",
        *said[4:],
        "",
        "Assumed: " + ", ".join(f"{k} {v:g}" for k, v in asdict(machine).items()),
    ]
    for work, networks in found.items():
        one = next(iter(networks.values()))[GPUS[0]]
        text += ["", f"## {work}", "", f"Compute {one['compute_s'] * 1e3:.2f} ms a step.", ""]
        text += ["| network of a node | " + " | ".join(map(str, GPUS)) + " |", "|---|" + "--:|" * len(GPUS)]
        for name, by_gpus in networks.items():
            text.append(
                f"| {name} | " + " | ".join(f"{100 * by_gpus[gpus]['efficiency']:.0f} %" for gpus in GPUS) + " |"
            )
    return "\n".join(text) + "\n"


def draw(found: Mapping[str, Mapping[str, Mapping[int, Mapping[str, float]]]]) -> None:
    """Efficiency over the number of GPUs, a panel for each work."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for axes, (work, networks) in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, found.items(), strict=True):
        for name, by_gpus in networks.items():
            axes.plot(GPUS, [100 * by_gpus[gpus]["efficiency"] for gpus in GPUS], marker="o", markersize=3, label=name)
        axes.set_title(work, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.3)
    figure.supxlabel("GPUs")
    figure.supylabel("efficiency, % (on paper)")
    lines = figure.axes[0].get_lines()
    figure.legend(handles=lines, loc="outside upper center", ncols=4, fontsize=8, title="network of a node, Gbit/s")
    figure.savefig(RESULTS / "at_scale.png", dpi=120)


def main() -> None:
    """Work it out and keep it."""
    machine = Machine()
    found = table(machine)
    document = {"machine": asdict(machine), "works": [asdict(work) for work in WORKS], "steps": found}
    (RESULTS / "at_scale.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "at_scale.md").write_text(markdown(found, machine))
    draw(found)
    print((RESULTS / "at_scale.md").read_text())


if __name__ == "__main__":
    main()
