"""Formulas whose own parts learn beside the student, or remember."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.parity.plain.logits import Hyper, Plain, Tensors
from tests.parity.plain.maps import batch_norm, layers, smaller

__all__ = ["PLAIN"]


def vid(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    f_s, f_t = smaller(x["f_s"], x["f_t"])
    mean = functional.conv2d(f_s, w["regressor.0.weight"]).relu()
    mean = functional.conv2d(mean, w["regressor.2.weight"]).relu()
    mean = functional.conv2d(mean, w["regressor.4.weight"])
    variance = ((1 + w["log_scale"].exp()).log() + hp["eps"]).view(1, -1, 1, 1)
    return {"loss": (((mean - f_t) ** 2 / variance + variance.log()) / 2).mean()}


def pad(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    f_s, f_t, scalar = x["f_s"], x["f_t"], x["log_var_scalar"]
    log_var = f_s @ w["var_estimator.0.weight"].T + w["var_estimator.0.bias"]
    log_var = batch_norm(log_var, w["var_estimator.1.weight"], w["var_estimator.1.bias"])
    values = (f_t - f_s) ** 2 / (hp["eps"] + log_var.exp()) + log_var
    return {
        "log_var": log_var,
        "loss": values.mean(),
        "loss_sum_dims": values.sum(1).mean(),
        "loss_scalar_var": (((f_t - f_s) ** 2).sum(1) / scalar.exp() + scalar).mean(),
    }


def projector(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    def standard(z: Tensor, eps: float) -> Tensor:
        mean = z.mean(0)
        return (z - mean) / (((z - mean) ** 2).mean(0) + eps).sqrt()

    mapped = x["z_s"] @ w["embed.weight"].T + w["embed.bias"]
    a, b = (standard(z, hp["bn_eps"]) for z in (mapped, x["z_t"]))
    c = (standard(mapped, 1e-5) * standard(x["z_t"], 1e-5)).mean(0)
    return {
        "loss": ((a - b).abs() ** hp["alpha"]).sum().log(),
        "loss_corr_diag": (((c - 1).abs() ** hp["alpha"]).sum() + 1e-5).log(),
    }


def _stack(x: Tensor, w: Tensors, name: str, *, transposed: bool = False) -> Tensor:
    convolve = functional.conv_transpose2d if transposed else functional.conv2d
    for i in range(3):
        x = functional.leaky_relu(convolve(x, w[f"{name}{i}.weight"], w[f"{name}{i}.bias"], padding=1), 0.1)
    return x


def ft(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    factor_t, factor_s = _stack(x["f_t"], w, "paraphraser.conv"), _stack(x["f_s"], w, "translator.conv")
    restored = _stack(factor_t, w, "paraphraser.deconv", transposed=True) - x["f_t"]

    def unit(factor: Tensor) -> Tensor:
        flat = factor.flatten(1)
        return flat / flat.norm(dim=1, keepdim=True)

    s, t = smaller(factor_s, factor_t.detach())  # the paraphraser is frozen beside the student
    gap = unit(s) - unit(t)
    attention = unit((s**2).mean(1)) - unit((t**2).mean(1))
    return {
        "factor_t": factor_t,
        "factor_s": factor_s,
        "loss": gap.abs().mean(),
        "loss_p2": gap.norm(dim=1).mean(),
        "loss_p1_sum_per_sample": gap.abs().sum(1).mean(),
        "loss_repdistiller": attention.abs().mean(),
        "loss_rec_l1": restored.abs().mean(),
        "loss_rec_mse": (restored**2).mean(),
    }


def crd(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    banks, out = {side: x[f"memory_{side}"].detach().clone() for side in "st"}, {}
    z: dict[str, Tensor] = {}
    count, rows, eps = hp["K"], hp["n_data"], hp["eps"]
    noise = count / rows
    for step in range(1, 1 + sum(name.startswith("idx.") for name in x)):
        own, contrasted = x[f"idx.{step}"], x[f"contrast_idx.{step}"]
        embedded, loss = {}, []
        for side in "st":
            e = x[f"f_{side}.{step}"] @ w[f"embed_{side}.linear.weight"].T + w[f"embed_{side}.linear.bias"]
            embedded[side] = e / e.norm(dim=1, keepdim=True)
        for side, other in ("st", "ts"):
            scores = (torch.einsum("nd,nkd->nk", embedded[side], banks[other][contrasted]) / hp["T"]).exp()
            z.setdefault(side, scores.detach().mean() * rows)
            e = scores / z[side]
            log_d1 = (e[:, 0] / (e[:, 0] + noise + eps)).log()
            log_d0 = (noise / (e[:, 1:] + noise + eps)).log()
            loss.append(-(log_d1.sum() + log_d0.sum()) / len(own))
        for side in "st":
            moved = hp["momentum"] * banks[side][own] + (1 - hp["momentum"]) * embedded[side].detach()
            banks[side][own] = moved / moved.norm(dim=1, keepdim=True)
            out[f"memory_{side}_after.{step}"] = banks[side].clone()
        out[f"loss.{step}"] = loss[0] + loss[1]
    return {**out, "Z_s": z["s"], "Z_t": z["t"]}


def _hcl(s: Tensor, t: Tensor, sizes: list[int]) -> Tensor:
    total, weights, weight = ((s - t) ** 2).mean(), 1.0, 1.0
    for size in sizes:
        if size >= s.shape[2]:
            continue
        weight /= 2
        pooled = [functional.adaptive_avg_pool2d(f, size) for f in (s, t)]
        total = total + weight * ((pooled[0] - pooled[1]) ** 2).mean()
        weights += weight
    return total / weights


def reviewkd(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    own, theirs, sizes = layers(x, "s"), layers(x, "t"), hp["pool_sizes"]
    if "mid_channel" not in hp:
        return {"loss": torch.stack([_hcl(s, t, sizes) for s, t in zip(own, theirs, strict=True)]).sum()}
    fused: dict[int, Tensor] = {}
    y = torch.empty(0)
    for j in reversed(range(len(own))):

        def block(f: Tensor, name: str, padding: int, j: int = j) -> Tensor:
            at = f"abf.{j}.{name}"
            return batch_norm(
                functional.conv2d(f, w[f"{at}.0.weight"], padding=padding), w[f"{at}.1.weight"], w[f"{at}.1.bias"]
            )

        f = block(own[j], "conv1", 0)
        if j < len(own) - 1:
            y = functional.interpolate(y, f.shape[2:], mode="nearest")
            both = functional.conv2d(
                torch.cat([f, y], 1), w[f"abf.{j}.att_conv.0.weight"], w[f"abf.{j}.att_conv.0.bias"]
            )
            z = 1 / (1 + (-both).exp())
            f = z[:, :1] * f + z[:, 1:] * y
        y = functional.interpolate(f, theirs[j].shape[2:], mode="nearest")
        fused[j] = block(y, "conv2", 1)
    loss = torch.stack([_hcl(fused[j], t, sizes) for j, t in enumerate(theirs)]).sum()
    return {"loss": loss, **{f"fused.{j}": f for j, f in fused.items()}}


PLAIN: dict[str, Plain] = {
    "vid": vid, "pad": pad, "projector": projector, "ft": ft, "crd": crd, "reviewkd": reviewkd,
}  # fmt: skip
