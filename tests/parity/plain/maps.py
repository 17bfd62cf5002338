"""Formulas on feature maps and on pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.parity.plain.logits import Hyper, Plain, Tensors

__all__ = ["PLAIN", "batch_norm", "layers", "smaller"]


def layers(x: Tensors, side: str) -> list[Tensor]:
    """`f_s.0`, `f_s.1` ... in order."""
    return [x[f"f_{side}.{i}"] for i in range(sum(name.startswith(f"f_{side}.") for name in x))]


def smaller(a: Tensor, b: Tensor, pool: str = "avg") -> tuple[Tensor, Tensor]:
    """Both maps at the smaller one's size."""
    size = [min(m, n) for m, n in zip(a.shape[2:], b.shape[2:], strict=True)]
    to = functional.adaptive_avg_pool2d if pool == "avg" else functional.adaptive_max_pool2d
    return to(a, size), to(b, size)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In training: over samples and positions, the variance biased, eps 1e-5."""
    over, shape = [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)]
    mean = x.mean(over, keepdim=True)
    variance = ((x - mean) ** 2).mean(over, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


def at(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    codes, papers = [], []
    for f_s, f_t in zip(layers(x, "s"), layers(x, "t"), strict=True):
        q_s, q_t = (
            functional.normalize((f.abs() ** hp["p"]).sum(1).flatten(1), dim=1, eps=hp["eps"])
            for f in smaller(f_s, f_t)
        )
        codes.append(((q_s - q_t) ** 2).mean())
        papers.append((q_s - q_t).norm(dim=1).mean())
    return {
        "loss": sum(codes[1:], codes[0]),
        "loss_layers": torch.stack(codes),
        "loss_paper_norm": sum(papers[1:], papers[0]),
    }


def at_grad(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    def derivative(side: str) -> Tensor:
        maps = functional.conv2d(x["x"], w[f"{side}.conv.weight"], w[f"{side}.conv.bias"], padding=1)
        logits = functional.softplus(maps).flatten(1) @ w[f"{side}.fc.weight"].T + w[f"{side}.fc.bias"]
        value = -logits.log_softmax(1)[range(len(logits)), x["y"]].sum()
        return torch.autograd.grad(value, x["x"], create_graph=True)[0]

    j_s, j_t = derivative("s"), derivative("t")
    square = ((j_s - j_t.detach()) ** 2).flatten(1).sum(1)
    return {"J_s": j_s, "J_t": j_t, "loss_norm": square.sqrt().mean(), "loss_sq": square.mean()}


def fsp(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    def matrix(f1: Tensor, f2: Tensor, pool: str) -> Tensor:
        f1, f2 = smaller(f1, f2, pool)
        return torch.einsum("nihw,njhw->nij", f1, f2) / (f1.shape[2] * f1.shape[3])

    out: dict[str, Tensor] = {}
    paper, mean, columns = [], [], []
    for k in range(len(layers(x, "s")) - 1):
        g = {(s, pool): matrix(*layers(x, s)[k : k + 2], pool) for s in "st" for pool in ("max", "avg")}
        out |= {f"G_s_max.{k}": g["s", "max"], f"G_s_avg.{k}": g["s", "avg"]}
        gap = g["s", "max"] - g["t", "max"]
        paper.append((gap**2).sum((1, 2)).mean())
        columns.append(gap.norm(dim=1).sum(1).mean())
        mean.append(((g["s", "avg"] - g["t", "avg"]) ** 2).mean())
    return {
        **out,
        "loss_paper": hp["lambda_i"] * torch.stack(paper).sum(),
        "loss_torchdistill": torch.stack(columns).sum(),
        "loss_repdistiller": torch.stack(mean).sum(),
        "loss_layers_repdistiller": torch.stack(mean),
    }


def _regressed(f_s: Tensor, w: Tensors, target: torch.Size) -> Tensor:
    weight, bias, (own, theirs) = w["conv.weight"], w["conv.bias"], (f_s.shape[2], target[2])
    if own == 2 * theirs:
        return functional.conv2d(f_s, weight, bias, stride=2, padding=1)
    if 2 * own == theirs:
        return functional.conv_transpose2d(f_s, weight, bias, stride=2, padding=1)
    return functional.conv2d(f_s, weight, bias)  # 1x1, or a valid one of kernel 1 + own - theirs


def fitnet(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    f_s, f_t = x["f_s"], x["f_t"]
    if "use_relu" not in hp:
        return {"loss": ((functional.conv2d(f_s, w["transform.weight"]) - f_t) ** 2).mean()}
    regressed = batch_norm(_regressed(f_s, w, f_t.shape), w["bn.weight"], w["bn.bias"])
    regressed = regressed.relu() if hp["use_relu"] else regressed
    squares = (regressed - f_t) ** 2
    return {
        "regressed": regressed,
        "loss": squares.mean(),
        "loss_half_sum_per_sample": squares.sum() / (2 * len(squares)),
    }


def ab(x: Tensors, w: Tensors, hp: Hyper) -> dict[str, Tensor]:
    mu, out = hp["margin"], {}
    sums, means, mismatch = [], [], []
    for j, (f_s, f_t) in enumerate(zip(layers(x, "s"), layers(x, "t"), strict=True)):
        mapped = functional.conv2d(f_s, w[f"connector.{j}.0.weight"])
        mapped = batch_norm(mapped, w[f"connector.{j}.1.weight"], w[f"connector.{j}.1.bias"])
        out[f"mapped_s{j}"] = mapped
        active = (f_t > 0).to(f_t.dtype)
        values = active * (mu - mapped).clamp(min=0) ** 2 + (1 - active) * (mu + mapped).clamp(min=0) ** 2
        sums.append(values.sum())
        means.append(values.mean())
        mismatch.append(((mapped > 0) != (f_t > 0)).to(f_t.dtype).mean())
    last, size = len(sums) - 1, len(x["f_s.0"])
    weighted = [total / size * 3 / 1000 * 2.0 ** (j - last) for j, total in enumerate(sums)]
    return {
        **out,
        "loss": torch.stack(weighted).sum(),
        "loss_layers_sum": torch.stack(sums),
        "loss_mean": torch.stack(means).sum(),
        "mismatch_fraction": torch.stack(mismatch),
    }


PLAIN: dict[str, Plain] = {"at": at, "at_grad": at_grad, "fsp": fsp, "fitnet": fitnet, "ab": ab}
