"""Formulas on logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["PLAIN", "Hyper", "Plain", "Tensors"]

Tensors = Mapping[str, Tensor]
Hyper = Mapping[str, Any]
Plain = Callable[[Tensors, Tensors, Hyper], dict[str, Tensor]]


def kd(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    size, t = len(x["z_s"]), hp["T"]
    p, q = (x["z_t"] / t).softmax(1), (x["z_s"] / t).softmax(1)
    divergence = t**2 * (p * (p.log() - q.log())).sum() / size
    soft = -(t**2) * (p * q.log()).sum() / size
    hard = -x["z_s"].softmax(1).log()[range(size), x["y"]].mean()
    return {
        "loss_kd": divergence,
        "loss_ce": hard,
        "loss_total": hp["ce_weight"] * hard + hp["kd_weight"] * divergence,
        "loss_soft_ce_T2": soft,
        "loss_seed_half": (soft + hard) / 2,
    }


def logits(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    squares = (x["z_s"] - x["z_t"]) ** 2
    return {"loss_mse_mean": squares.mean(), "loss_paper": squares.sum() / (2 * len(squares))}


def logit_std(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    def standard(z: Tensor, less: int) -> Tensor:
        centred = z - z.mean(1, keepdim=True)
        spread = ((z - z.mean(1, keepdim=True)) ** 2).sum(1, keepdim=True) / (z.shape[1] - less)
        # a constant row has no spread, and the derivative of its root none either
        root = torch.where(spread > 0, torch.where(spread > 0, spread, 1.0).sqrt(), 0.0)
        return centred / (root + hp["eps"])

    def soft(less: int) -> Tensor:
        p, q = ((standard(x[side], less) / hp["T"]).softmax(1) for side in ("z_t", "z_s"))
        return hp["T"] ** 2 * (p * (p.log() - q.log())).sum() / len(p)

    return {"loss": soft(1), "loss_biased_std": soft(0)}


def pearson(a: Tensor, b: Tensor, eps: float) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.norm() * b.norm() + eps)


def dist(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    rows = [z.movedim(1, -1).reshape(-1, z.shape[1]) for z in (x["z_s"], x["z_t"])]
    a, b = ((z / hp["tau"]).softmax(1) for z in rows)
    inter = 1 - torch.stack([pearson(m, n, hp["eps"]) for m, n in zip(a, b, strict=True)]).mean()
    intra = 1 - torch.stack([pearson(m, n, hp["eps"]) for m, n in zip(a.T, b.T, strict=True)]).mean()
    return {"loss": hp["tau"] ** 2 * (hp["beta"] * inter + hp["gamma"] * intra), "inter": inter, "intra": intra}


PLAIN: dict[str, Plain] = {"kd": kd, "logits": logits, "logit_std": logit_std, "dist": dist}
