"""What a stage writes down about itself: who runs it, and what came out."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdscale import __version__, ranks
from kdscale.config.schema import Expectation, StageSpec
from kdscale.errors import StageError
from kdscale.train.build import Parts
from kdscale.train.evaluate import Figures, latency_ms
from kdscale.train.loop import LoopState
from kdscale.train.pixels import PixelFigures

__all__ = ["attempt_record", "demand_expected", "link_last", "missed", "results_of"]


def attempt_record(definition: Mapping[str, Any], spec: StageSpec, device: torch.device) -> dict[str, Any]:
    """What may differ between attempts without changing what a stage is."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    return {
        "started": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "world": ranks.world(),
        "engine": spec.engine.name,
        "loader": definition["data"]["loader"],
        "device": name,
        "threads": torch.get_num_threads(),
        "precision": spec.train.precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kdscale": __version__,
    }


def demand_expected(spec: StageSpec, figures: Figures | PixelFigures) -> None:
    """Hold a stage's figures on test against those that its config says must come out. Raises: StageError."""
    if spec.expect is not None and (said := missed(spec.expect, figures)):
        raise StageError(f"stages.{spec.name}.expect: {said}")


def missed(expect: Expectation, figures: Figures | PixelFigures) -> str:
    """How a stage's figure on test misses the one that must come out; empty where it does not."""
    wanted: float = getattr(expect, figures.rated_by)
    if abs(figures.rating - wanted) <= expect.within:
        return ""
    return f"{figures.rated_by} {figures.rating:.4f} on test, expected {wanted} within {expect.within}"


def results_of(
    parts: Parts,
    state: LoopState,
    figures: Figures | PixelFigures,
    definition: Mapping[str, Any],
    attempts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The results of a finished stage, as state.json holds them; accuracies in [0, 1].

    Args:
        parts: holding the exported weights' network.
        state: of the loop at its end.
        figures: on test, of the last weights.
        definition: of the stage.
        attempts: all of them, for the wall time.
    """
    median, p95 = latency_ms(parts.network, parts.blank_image())
    caches = {
        cache.role: {
            "digest": cache.folder.manifest.digest, "views": cache.need.views, "record": cache.need.record,
        }
        for cache in parts.caches
    }  # fmt: skip
    validated = state.best_epoch >= 0
    return {
        "model": definition["model"],
        "params": sum(p.numel() for p in parts.network.model.parameters()),
        "flops": definition["cost"]["flops"],
        **figures.results(),
        "best_epoch": state.best_epoch if validated else None,
        f"best_{figures.rated_by}": state.best_rating if validated else None,
        **({f"best_{figures.rated_by}_on_test": state.best_rating_on_test} if state.best_rating_on_test >= 0 else {}),
        "latency_ms": median,
        "latency_p95_ms": p95,
        "images_per_s": state.images / state.seconds if state.seconds else None,
        "wall_s": _wall_s(attempts),
        "per_class": figures.per_class,
        "class_names": list(definition["data"]["info"]["class_names"]),
        "test_rows": figures.samples,
        "extra": {
            name: found
            for name, found in (("cache", caches), ("top1_of", figures.top1_of), ("wire", definition.get("wire")))
            if found
        },
    }


def link_last(folder: Path) -> None:
    """Have `student.safetensors` in a stage's folder lead to its last snapshot."""
    link = folder / "student.safetensors"
    side = link.with_suffix(".link")
    side.unlink(missing_ok=True)
    side.symlink_to(Path("snapshots") / "last" / "student.safetensors")
    os.replace(side, link)


def _wall_s(attempts: Sequence[Mapping[str, Any]]) -> float:
    """Seconds over all attempts; one that was killed counts until its last sign of life."""
    return float(sum((attempt.get("ended") or time.time()) - attempt["started"] for attempt in attempts))
