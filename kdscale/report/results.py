"""results.json and results.csv: one object per (trial, stage), with the figures of the last epoch on test."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.report.records import StageRecord, SweepRecord, TrialRecord

__all__ = ["SCHEMA", "collect", "figures", "write_results"]

SCHEMA = 1
_MEASURED = (
    "top1",
    "top5",
    "nll",
    "ece",
    "agreement",
    "best_epoch",
    "best_top1",
    "latency_ms",
    "images_per_s",
    "wall_s",
)
_OF_PIXELS = ("miou", "pixel_accuracy", "best_miou", "best_miou_on_test")
"""In the rows of data whose pixels have classes, beside those of _MEASURED, which are then null."""
_FURTHER = ("kl", "teacher_top1", "latency_p95_ms", "test_rows", "per_class", "class_names")


def collect(sweep_folder: Path) -> list[dict[str, Any]]:
    """Read the rows of results.json as they are now; figures of unfinished stages are null."""
    sweep = SweepRecord(sweep_folder)
    return [
        _row(sweep, trial, stage)
        for trial in sweep.trials
        for stage in (sweep.stages[digest] for digest in trial.stages.values())
        if stage.kind == "train"
    ]


def write_results(sweep_folder: Path) -> list[dict[str, Any]]:
    """Write results.json and results.csv into the sweep's folder; returns the rows."""
    rows = collect(sweep_folder)
    atomic.write_json(sweep_folder / "results.json", rows)
    atomic.write_text(sweep_folder / "results.csv", _csv(rows))
    return rows


def figures(stage: StageRecord) -> dict[str, float | None]:
    """All figures of a stage by the names that selection and filters use; shares are in [0, 1].

    `val/...` is the last epoch's validation; everything else is test, size or speed.
    """
    results = stage.results
    flat: dict[str, float | None] = {name: _number(results.get(name)) for name in _MEASURED if name != "agreement"}
    flat |= {name: _number(results[name]) for name in _OF_PIXELS if name in results}
    flat |= {"params": _number(stage.params), "flops": _number(stage.flops)}
    flat |= {"params_m": _scaled(stage.params, 1e6), "flops_m": _scaled(stage.flops, 1e6)}
    flat |= {"flops_g": _scaled(stage.flops, 1e9), "latency_p95_ms": _number(results.get("latency_p95_ms"))}
    extra = results.get("extra") or {}
    flat |= {f"top1_of/{name}": _number(top1) for name, top1 in (extra.get("top1_of") or {}).items()}
    flat |= {name: _number(value) for name, value in measured(extra).items()}
    wire = extra.get("wire") or {}
    flat |= {"wire_bytes": _number(wire.get("bytes")), "input_bytes": _number(wire.get("input_bytes"))}
    for name in ("agreement", "kl", "teacher_top1"):
        flat[name] = _number(next(iter((results.get(name) or {}).values()), None))
    flat |= {"rating": stage.rating}
    if stage.done:  # what is still training has no figure yet that could be compared
        flat |= {name: stage.last(name) for name in stage.curves if name.startswith("val/")}
        flat["val/rating"] = flat.get("val/top1", flat.get("val/miou"))
    return flat


def measured(extra: dict[str, Any]) -> dict[str, float]:
    """Own metrics and figures of further test sets, as `metrics.macro_f1` and `sets.ood.top1`."""
    flat = _flat({name: extra.get(name) or {} for name in ("metrics", "sets")})
    return {name: value for name, value in flat.items() if isinstance(value, int | float)}


def _row(sweep: SweepRecord, trial: TrialRecord, stage: StageRecord) -> dict[str, Any]:
    results = _without_nan(stage.results)
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "trial": trial.axes,
        "stage": stage.name,
        "digest": stage.digest,
        "state": stage.status,
        "model": stage.model,
        "params": stage.params,
        "flops": stage.flops,
    }
    row |= {name: results.get(name) for name in _MEASURED}
    row["agreement"] = row["agreement"] or {}
    row |= {name: results[name] for name in _OF_PIXELS if name in results}
    if results.get("best_top1_on_test") is not None:
        row |= {"top1_best_on_test": results["best_top1_on_test"], "biased": ["top1_best_on_test"]}
    extra = {"name": sweep.name_of(stage), "reused": stage.reused}
    extra |= {name: results[name] for name in _FURTHER if name in results}
    return row | {"extra": extra | dict(results.get("extra") or {})}


def _without_nan(value: Any) -> Any:
    """Replace nan and inf by None, which JSON can say."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: list[dict[str, Any]]) -> str:
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; a list stays one cell, as JSON."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(item) if isinstance(item, list) else item
    return flat


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _scaled(value: float | int | None, unit: float) -> float | None:
    return None if value is None else value / unit
