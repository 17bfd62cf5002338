"""What one GPU makes of a distillation: images a second, share of its peak, copies, kdscale's step beside a bare loop.

    python -m benchmarks.gpu [--rounds 5] [--quick] [--device cuda|cpu]

For a machine with CUDA that has torch, numpy and the few wheels that kdscale itself needs; under eight minutes.

    rungs   ResNet-18 at 32 pixels and ResNet-50 at 224, a student that trains on labels (`synthetic`) or on a teacher's
            logits as well (`cached`), both lying on the GPU: eager fp32, TF32, channels-last, bf16, compiled, and the
            whole step as one CUDA graph. In turns; utilisation is 3 forwards of an image over the bf16 peak.
    copies  the same step with batches of uint8 that come from the host: one after the other, and as kdscale moves them;
            `hidden` is the share of the copy's time that is no longer seen.
    step    kdscale's whole stage beside a bare bf16 loop (this file with --bare), in turns

With `--device cpu` it runs as well, slower, without what a CPU has not: for trying out, as the tests do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import Row, row, write
from benchmarks.gpu_nets import ResNet18
from benchmarks.gpu_rungs import CASES, QUICK_CASES, RUNGS, Case, Rung, Step
from benchmarks.turns import Turns, Workers, forget_peak

STEP_GOAL = 0.97
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12, "A10": 125e12}
"""bf16 operations a second without sparsity, by what the GPU's name holds; NVIDIA's data sheets, SXM's of two."""


def settled(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], None], times: int, device: torch.device) -> float:
    """Of one call among several, the last awaited."""
    settled(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    settled(device)
    return (time.perf_counter() - begun) / times


def forward_flops(case: Case) -> float:
    """Of one image; two for each multiplication and addition. Counted on tensors without memory."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        case.network(classes=case.classes)(torch.empty(1, 3, case.size, case.size))
    return float(counter.get_total_flops())


def peak_of(device: torch.device) -> float | None:
    """bf16 operations a second; None where nobody told."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return next((flops for known, flops in PEAKS.items() if known in name), None)


# ------------------------------------------------------------------------------- rungs


def climb(case: Case, rounds: int, device: torch.device, rungs: Sequence[Rung]) -> dict[str, Any]:
    """Images a second of every rung, in turns, and its share of the peak; a rung that fails says why."""
    steps, failed = {}, {}
    for rung in rungs:
        try:
            steps[rung.name] = made = Step(case, rung, device)
            made.prepare()
        except Exception as error:  # noqa: BLE001  # one rung less: no compiler, too little memory
            steps.pop(rung.name, None)
            failed[rung.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            rates[name].append(case.batch / seconds(step, case.steps, device))
    flops, peak = 3 * forward_flops(case), peak_of(device)
    found = {}
    for name, rate in rates.items():
        median = statistics.median(rate)
        found[name] = {"images_per_s": median, "all": rate, "utilisation": peak and median * flops / peak}
    return {"rungs": found, "failed": failed, "training_flops_an_image": flops}


# ------------------------------------------------------------------------------- copies


def copied(case: Case, rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of a step, of a copy, of both after one another and of both as kdscale does it; medians."""
    from kdscale.api import Batch
    from kdscale.train.moving import moved_to

    step = Step(case, Rung("bf16"), device)
    step.prepare()
    numbers = torch.arange(case.batch)
    batch = Batch(step.images.cpu(), numbers, numbers, view=0)

    def take(images: Tensor) -> None:
        step.images = images
        step()

    def endless() -> Iterator[Batch]:
        while True:
            yield batch

    moved = moved_to(device, endless())
    ways: Mapping[str, Callable[[], None]] = {
        "step": step, "copy": lambda: (batch.to(device), None)[1], "in_turn": lambda: take(batch.to(device).images),
        "beside": lambda: take(next(moved).images),
    }  # fmt: skip
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            spent[name].append(seconds(work, case.steps, device))
    found = {f"{name}_s": statistics.median(values) for name, values in spent.items()}
    return found | {"hidden": 1 - (found["beside_s"] - found["step_s"]) / max(found["copy_s"], 1e-9)}


# ------------------------------------------------------------------------------- kdscale's step


def bare(steps: int, size: int, batch: int, device: torch.device) -> None:
    """The bare side of `step`: batches on the device, bf16, channels-last, and nothing else; takes turns."""
    turns = Turns(steps, forget_peak())
    case = Case("bare", ResNet18, 10, size, batch, steps)
    step = Step(case, Rung("bf16"), device)
    for _ in turns.over(10**9):
        step()


def beside_bare(rounds: int, steps: int, size: int, batch: int, device: torch.device) -> list[float]:
    """Rates of a whole kdscale stage over those of the bare loop, a round each."""
    from benchmarks.gpu_stage import planned

    with tempfile.TemporaryDirectory() as folder:
        root, digest = planned(Path(folder), size=size, batch=batch)
        shape = [str(steps), str(size), str(batch), device.type]
        sides = [
            Workers(["benchmarks.ours", str(root), digest, str(steps)], 1),
            Workers(["benchmarks.gpu", "--bare", *shape], 1),
        ]
        try:
            for side in sides:
                side.turn()
            spent = [[side.turn() for side in sides] for _ in range(rounds)]
        finally:
            for side in sides:
                side.close()
    return [theirs / ours for ours, theirs in spent]


def run(*, quick: bool, rounds: int, device: torch.device) -> list[Row]:
    """Measure everything, print it, keep it."""
    cases, rungs = (QUICK_CASES, RUNGS[::3]) if quick else (CASES, RUNGS)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found: dict[str, Any] = {"gpu": name, "bf16_peak_flops": peak_of(device)}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for case in cases:
            found[case.name] = climb(case, rounds, device, rungs) | {"copies": copied(case, rounds, device)}
            print(*lines(case, found[case.name]), sep="\n", flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    steps, size, batch = (2, 16, 8) if quick else (60, 32, 512)
    found["step"] = ratios = beside_bare(rounds, steps, size, batch, device)
    rows = [row(f"{name}: kdscale's step to a bare loop", ratios, "x", ">=", STEP_GOAL)]
    write("gpu", rows, quick=quick, **found)
    return rows


def lines(case: Case, found: Mapping[str, Any]) -> Iterator[str]:
    """What was found of one network, for people."""
    yield f"{case.name}, batch {case.batch}"
    for name, rung in found["rungs"].items():
        share = f"  {100 * rung['utilisation']:.1f} % of the bf16 peak" if rung["utilisation"] else ""
        yield f"  {name:<38} {rung['images_per_s']:>10,.0f} images/s{share}"
    for name, reason in found["failed"].items():
        yield f"  {name:<38} not run: {reason}"
    copies = found["copies"]
    yield (
        f"  step {1e3 * copies['step_s']:.2f} ms, copy {1e3 * copies['copy_s']:.2f} ms; one after the other "
        f"{1e3 * copies['in_turn_s']:.2f} ms, as kdscale moves batches {1e3 * copies['beside_s']:.2f} ms"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: for trying out only")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--bare", nargs=4, metavar=("STEPS", "SIZE", "BATCH", "DEVICE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.bare:
        steps, size, batch = map(int, chosen.bare[:3])
        bare(steps, size, batch, torch.device(chosen.bare[3]))
        return
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu tries the script out")
    for entry in run(quick=chosen.quick, rounds=chosen.rounds, device=torch.device(chosen.device)):
        print(entry.line)


if __name__ == "__main__":
    main()
