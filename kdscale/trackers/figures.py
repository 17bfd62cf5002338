"""Final figures of stages, trials and groups of seeds, as numbers that a server can sort and filter by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from kdscale.trackers.files import StageFiles, SweepFiles, Trial

__all__ = ["final_figures", "group_figures", "trial_figures"]

FINAL = {
    "top1": "final/top1", "top5": "final/top5", "nll": "final/nll", "ece": "final/ece",
    "best_top1": "final/best_val_top1", "top1_best_on_test": "final/top1_best_on_test",
    "best_top1_on_test": "final/top1_best_on_test", "latency_ms": "model/latency_ms",
    "miou": "final/miou", "pixel_accuracy": "final/pixel_accuracy", "best_miou": "final/best_val_miou",
    "best_miou_on_test": "final/miou_best_on_test",
    "latency_p95_ms": "model/latency_p95_ms", "wall_s": "cost/wall_s", "images_per_s": "cost/images_per_s",
}  # fmt: skip
SPREAD = "final/"


def final_figures(stage: StageFiles) -> dict[str, float]:
    """Figures of one stage that is done; accuracies in [0, 1], sizes in millions, FLOPs of one image in 1e9."""
    results = stage.results
    found = {name: float(results[key]) for key, name in FINAL.items() if results.get(key) is not None}
    for measure in ("agreement", "kl", "teacher_top1"):
        found |= _by_teacher(measure, results.get(measure) or {})
    if results.get("params") is not None:
        found["model/params_m"] = results["params"] / 1e6
    if results.get("flops") is not None:
        found["model/flops_g"] = results["flops"] / 1e9
    found |= dict(_measured({name: stage.measured.get(name) or {} for name in ("metrics", "sets")}, "final"))
    hours = _gpu_hours(stage)
    found |= {"cost/gpu_h": hours} if hours else {}
    return _short(found)


def trial_figures(sweep: SweepFiles, trial: Trial) -> dict[str, float]:
    """Figures of the trial's last stage, its teachers' accuracy beside it, and the gain over plain cross-entropy."""
    found = final_figures(trial.last)
    for stage in trial.stages:
        if stage is not trial.last and stage.results.get("top1") is not None:
            found[f"{stage.name}/top1"] = float(stage.results["top1"])
    baseline = sweep.baseline(trial)
    base = baseline.last.results.get("top1") if baseline else None
    if base is not None and "final/top1" in found:
        found["final/gain_over_ce"] = found["final/top1"] - float(base)
    return _short(found)


def group_figures(sweep: SweepFiles, done: Sequence[Trial]) -> dict[str, float]:
    """Means over seeds, with the half-width of the 95 % t-interval of the final figures.

    Seeds that share one stage are one outcome, not several.
    """
    outcomes = {trial.last.digest: trial_figures(sweep, trial) for trial in done}
    each = list(outcomes.values())
    found: dict[str, float] = {"n": float(len(each))}
    for name in each[0]:
        values = [figures[name] for figures in each if name in figures]
        if len(values) < len(each):
            continue
        if not name.startswith(SPREAD):
            found[name] = fmean(values)
            continue
        found[f"{name}_mean"] = fmean(values)
        if len(values) > 1:
            found[f"{name}_ci95"] = _t95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return _short(found)


def _short(figures: Mapping[str, float]) -> dict[str, float]:
    """Six digits: the table shows every digit it gets, and 0.9499999999 is hard to read."""
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def _by_teacher(measure: str, values: Mapping[str, float]) -> dict[str, float]:
    """One teacher needs no name; of several, each gets its own figure beside the first."""
    found = {f"final/{measure}": float(value) for value in list(values.values())[:1]}
    if len(values) > 1:
        found |= {f"final/{measure}_{teacher}": float(value) for teacher, value in values.items()}
    return found


def _measured(values: Mapping[str, Any], at: str) -> Iterator[tuple[str, float]]:
    """Own metrics and figures of further sets, by the path to each."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _measured(value, f"{at}/{name}")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield f"{at}/{name}", float(value)


def _gpu_hours(stage: StageFiles) -> float:
    on_gpu = [a for a in stage.attempts if str(a.get("device", "")).startswith("cuda") and a.get("ended")]
    seconds = sum(float(a["ended"] - a["started"]) * int(a.get("world", 1)) for a in on_gpu)
    return seconds / 3600


def _t95(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))
