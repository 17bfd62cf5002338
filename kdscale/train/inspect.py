"""A first look at a stage before it trains: what each term weighs, and what the student sees.

Written once a stage, from the first batch, on a copy of the strategy: training is not touched.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdscale import atomic
from kdscale.api import Batch, Outputs, Strategy, Weighted
from kdscale.config.schema import TrainConfig
from kdscale.nn.network import Network
from kdscale.nn.precision import autocast_of
from kdscale.train.asking import ask
from kdscale.train.build import Parts

__all__ = ["write_first_look"]

IMAGES = 64
"""That are kept to be shown."""


def write_first_look(folder: Path, parts: Parts, train: TrainConfig, *, write: bool) -> None:
    """Write step0.json (terms: value, weight, gradient norm) and views.npz (images as the student sees them).

    Called by all ranks, because a synchronised BatchNorm needs them all; one of them writes. A micro-batch of training,
    in its precision: whatever is compiled, chosen or kept for a shape serves training too, and memory stays below it.
    """
    batch = parts.first_batch().split(train.accumulation)[0].to(parts.device)
    taught = ask(parts.teachers, batch)
    with autocast_of(train.precision, parts.device):
        terms = _terms(copy.deepcopy(parts.assembled.strategy), batch, taught)
    if write:
        atomic.write_json(folder / "step0.json", {"schema": 1, "samples": len(batch.rows), "terms": terms})
        few = {name: Outputs(answer.logits[:IMAGES].detach(), []) for name, answer in taught.items()}
        _write_views(folder / "views.npz", parts.network, batch.first(IMAGES), few)


def _terms(strategy: Strategy, batch: Batch, taught: Mapping[str, Outputs]) -> list[dict[str, Any]]:
    """Each term's value, weighted value, and the norm of its gradient on the student's parameters."""
    rows: list[dict[str, Any]] = []
    for pass_ in strategy.passes:
        terms = list(strategy.weighted(batch, taught, pass_))
        while terms:
            term = terms.pop(0)
            rows.append(
                {
                    "id": term.id,
                    "pass": pass_,
                    "value": term.value.item(),
                    "weight": term.weight,
                    "weighted": term.weight * term.value.item(),
                    "gradient_norm": _gradient_norm(strategy, term, last=not terms),
                }
            )
    whole = sum(row["gradient_norm"] for row in rows) or 1.0
    return [row | {"gradient_share": row["gradient_norm"] / whole} for row in rows]


def _gradient_norm(strategy: Strategy, term: Weighted, *, last: bool) -> float:
    """Of a term, whose graph the terms after it need too; the last one gives its memory back while it runs."""
    parameters = [p for p in strategy.student.parameters() if p.requires_grad]
    if not term.value.requires_grad or not parameters:
        return 0.0
    found = torch.autograd.grad(term.weight * term.value, parameters, retain_graph=not last, allow_unused=True)
    norms = [gradient.norm() for gradient in found if gradient is not None]
    return torch.stack(norms).norm().item() if norms else 0.0


def _write_views(path: Path, network: Network, batch: Batch, taught: Mapping[str, Outputs]) -> None:
    arrays: dict[str, Any] = {"images": _pixels(network.input.seen(batch.images))}
    if batch.labels.dim() == 1:
        arrays["labels"] = batch.labels.cpu().numpy()
    elif batch.labels.shape[1:] == arrays["images"].shape[1:3]:  # a network may see another size than it answers
        arrays["classes"] = (batch.labels.cpu() + 1).to(torch.uint8).numpy()  # IGNORED becomes 0, as data sets have it
    if taught and batch.labels.dim() == 1:
        confidence, top1 = next(iter(taught.values())).logits.float().softmax(dim=1).max(dim=1)
        arrays |= {"teacher_top1": top1.cpu().numpy(), "teacher_confidence": confidence.cpu().numpy()}
    with atomic.aside(path) as side, side.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """(B, K, H, W) in [0, 1] to uint8 (B, H, W, K)."""
    scaled = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).cpu().numpy()
    return pixels
