"""Formulas on relations: between samples, or between channels."""

from __future__ import annotations

from math import exp, factorial

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from tests.parity.plain.logits import Hyper, Plain, Tensors
from tests.parity.plain.maps import batch_norm

__all__ = ["PLAIN"]


def _length(x: Tensor) -> Tensor:
    """The norm, with a derivative of zero at zero."""
    square = (x**2).sum(-1, keepdim=True)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def pkt(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    eps, size = hp["eps"], len(x["f_s"])

    def kernel(f: Tensor) -> Tensor:
        f = f / (_length(f) + eps)
        return (f @ f.T + 1) / 2

    def divergence(k_s: Tensor, k_t: Tensor) -> Tensor:
        q, p = k_s / k_s.sum(1, keepdim=True), k_t / k_t.sum(1, keepdim=True)
        return p * ((p + eps) / (q + eps)).log()

    k_s, k_t = kernel(x["f_s"]), kernel(x["f_t"])
    pairs = divergence(k_s, k_t)
    others = 1 - torch.eye(size, dtype=k_s.dtype)
    return {
        "loss": pairs.sum() / size**2,
        "loss_row_kl": pairs.sum() / size,
        "paper_offdiag": divergence(k_s * others, k_t * others).sum() / size,
    }


def rkd(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    def distances(f: Tensor) -> Tensor:
        size = len(f)
        square = torch.stack([torch.stack([((f[i] - f[j]) ** 2).sum() for j in range(size)]) for i in range(size)])
        off = ~torch.eye(size, dtype=torch.bool)
        apart = torch.where(off, square.clamp(min=hp["eps"]).sqrt(), 0.0)
        return apart / apart[apart > 0].mean()

    def angles(f: Tensor) -> Tensor:
        unit = normalize(f[None] - f[:, None], dim=2, eps=1e-12)  # [j, i]: from j to i
        return torch.einsum("jid,jkd->jik", unit, unit)

    distance = smooth_l1_loss(distances(x["f_s"]), distances(x["f_t"]))
    angle = smooth_l1_loss(angles(x["f_s"]), angles(x["f_t"]))
    return {
        "loss_dist": distance,
        "loss_angle": angle,
        "loss_25_50": 25 * distance + 50 * angle,
        "loss_1_2": distance + 2 * angle,
    }


def sp(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    def similar(f: Tensor) -> Tensor:
        rows = f.flatten(1)
        return normalize(rows @ rows.T, dim=1, eps=hp["eps"])

    return {"loss": ((similar(x["f_s"]) - similar(x["f_t"])) ** 2).sum() / len(x["f_s"]) ** 2}


def cc(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    e_s, e_t = (x[f"f_{side}"] @ w[f"embed_{side}.linear.weight"].T + w[f"embed_{side}.linear.bias"] for side in "st")
    size = len(e_s)

    def rbf(e: Tensor) -> Tensor:
        cosine, g = normalize(e, dim=1) @ normalize(e, dim=1).T, hp["gamma"]
        total = torch.zeros_like(cosine)
        for p in range(hp["P"] + 1):
            total = total + exp(-2 * g) * (2 * g) ** p / factorial(p) * cosine**p
        return total

    apart = (e_s - e_t).abs()
    return {
        "e_s": e_s,
        "e_t": e_t,
        "loss_rbf": ((rbf(e_s) - rbf(e_t)) ** 2).sum() / size**2,
        "loss_bilinear": ((e_s @ e_s.T - e_t @ e_t.T) ** 2).sum() / size**2,
        "loss_author": torch.stack([(apart[i] * apart[i + 1]).sum() for i in range(size - 1)]).mean(),
    }


def ickd(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    mapped = torch.nn.functional.conv2d(x["f_s"], w["embed_s.conv2d.weight"])
    mapped = batch_norm(mapped, w["embed_s.l2norm.weight"], w["embed_s.l2norm.bias"])

    def correlated(f: Tensor) -> Tensor:
        rows = f.flatten(2)
        return normalize(rows @ rows.mT, dim=2)

    total = ((correlated(mapped) - correlated(x["f_t"])) ** 2).sum()
    size, channels = x["f_t"].shape[:2]
    return {
        "loss": total / (channels * size),
        "loss_c2": total / (channels**2 * size),
        "loss_imagenet": total / (channels * size**2),
    }


PLAIN: dict[str, Plain] = {"pkt": pkt, "rkd": rkd, "sp": sp, "cc": cc, "ickd": ickd}
