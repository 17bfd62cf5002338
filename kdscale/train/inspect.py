"""A first look at a stage before it trains: what each term weighs, and what the networks see.

Written once per stage, from the first batch, on a copy of the strategy: training is not touched.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdscale import atomic
from kdscale.api import Batch, Outputs, Strategy, Teacher
from kdscale.nn.network import Network
from kdscale.pipeline.assemble import Assembled

__all__ = ["write_first_look"]

SAMPLES = 64


def write_first_look(
    folder: Path, assembled: Assembled, teachers: Sequence[Teacher], batch: Batch, device: torch.device
) -> None:
    """Write step0.json (terms: value, weight, gradient norm) and views.npz (images as the student sees them)."""
    few = batch.first(SAMPLES).to(device)
    with torch.no_grad():
        taught = {teacher.name: teacher(few) for teacher in teachers}
    strategy = copy.deepcopy(assembled.strategy)
    atomic.write_json(folder / "step0.json", {"schema": 1, "samples": len(few.rows), "terms": _terms(strategy, few, taught)})
    _write_views(folder / "views.npz", assembled.network, few, taught)


def _terms(strategy: Strategy, batch: Batch, taught: Mapping[str, Outputs]) -> list[dict[str, object]]:
    """Each term's value, weighted value, and the norm of its gradient on the student's parameters."""
    parameters = [p for p in strategy.student.parameters() if p.requires_grad]
    rows: list[dict[str, object]] = []
    for pass_ in strategy.passes:
        for term in strategy.weighted(batch, taught, pass_):
            grads = torch.autograd.grad(term.weight * term.value, parameters, retain_graph=True, allow_unused=True)
            norm = torch.stack([g.norm() for g in grads if g is not None]).norm().item() if any(
                g is not None for g in grads
            ) else 0.0
            rows.append(
                {
                    "id": term.id, "pass": pass_, "value": term.value.item(), "weight": term.weight,
                    "weighted": term.weight * term.value.item(), "gradient_norm": norm,
                }  # fmt: skip
            )
    whole = sum(float(str(row["gradient_norm"])) for row in rows) or 1.0
    return [row | {"gradient_share": float(str(row["gradient_norm"])) / whole} for row in rows]


def _write_views(path: Path, network: Network, batch: Batch, taught: Mapping[str, Outputs]) -> None:
    seen = network.input.seen(batch.images)
    arrays = {"images": _pixels(seen), "labels": batch.labels.cpu().numpy()}
    if taught:
        first: Tensor = next(iter(taught.values())).logits.float().softmax(dim=1)
        confidence, top1 = first.max(dim=1)
        arrays |= {"teacher_top1": top1.cpu().numpy(), "teacher_confidence": confidence.cpu().numpy()}
    with atomic.aside(path) as side, side.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _pixels(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(B, K, H, W) in [0, 1] to uint8 (B, H, W, K)."""
    scaled = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
