"""Each method as a person would write it down, without a thought for memory or for degenerate input.

Options are the losses' defaults; what a loss trains (regressors, embeddings, banks) is taken from the loss, so that
both sides compute the same thing: tests/unit/benchmarks/test_plain_losses.py compares values and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.api import IGNORED, Batch, Outputs
from kdscale.nn.negatives import draw_negatives

__all__ = ["PLAIN", "Plain", "plain_angles", "plain_distances"]

Plain = Callable[[Any, Outputs, Outputs, Batch], Tensor]
"""Gives a loss's value () from the loss (for its options and parts), student, teacher and batch."""


# ------------------------------------------------------------------------------- logits


def _ce(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    return F.cross_entropy(s.logits, batch.labels)


def _soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, p = F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


def _pixel_ce(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    return F.cross_entropy(s.logits, batch.labels, ignore_index=IGNORED)


def _kd(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    return _soft(s.logits, t.logits, loss.config.temperature)


def _logits(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    return F.mse_loss(s.logits, t.logits)


def _dkd(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    """With the label's logit put down by 1000, as in the authors' code."""
    softer = loss.config.temperature
    label = F.one_hot(batch.labels, s.logits.shape[1])
    q, p = F.softmax(s.logits / softer, dim=1), F.softmax(t.logits / softer, dim=1)
    log_q2 = torch.stack([(q * label).sum(1), (q * (1 - label)).sum(1)], dim=1).log()
    p2 = torch.stack([(p * label).sum(1), (p * (1 - label)).sum(1)], dim=1)
    target = softer**2 * F.kl_div(log_q2, p2, reduction="batchmean")
    others = _soft(s.logits - 1000 * softer * label, t.logits - 1000 * softer * label, softer)
    return loss.config.alpha * target + loss.config.beta * others


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + 1e-8)


def _dist(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    softer = loss.config.temperature
    q, p = F.softmax(s.logits / softer, dim=1), F.softmax(t.logits / softer, dim=1)
    inter, intra = 1 - _pearson(q, p).mean(), 1 - _pearson(q.T, p.T).mean()
    return softer**2 * (loss.config.inter * inter + loss.config.intra * intra)


def _mlkd(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    total = torch.zeros(())
    for softer in loss.config.softened_at:
        q, p = F.softmax(s.logits / softer, dim=1), F.softmax(t.logits / softer, dim=1)
        classes = (q.T @ q - p.T @ p).pow(2).sum() / q.shape[1]
        samples = (q @ q.T - p @ p.T).pow(2).sum() / q.shape[0]
        total = total + _soft(s.logits, t.logits, softer) + classes + samples
    return total


# ------------------------------------------------------------------------------- maps


def _fitnet(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    pairs = zip(loss.regressors, s.features, t.features, strict=True)
    return sum((F.mse_loss(regress(own), taught) for regress, own, taught in pairs), torch.zeros(()))


def _at(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    def attention(features: Tensor) -> Tensor:
        return F.normalize(features.pow(2).mean(1).flatten(1))

    pairs = zip(s.features, t.features, strict=True)
    return sum(((attention(own) - attention(taught)).pow(2).mean() for own, taught in pairs), torch.zeros(()))


def _at_grad(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    def derivative(side: Outputs, *, create_graph: bool) -> Tensor:
        value = F.cross_entropy(side.logits, batch.labels, reduction="sum")
        return torch.autograd.grad(value, side.pixels, create_graph=create_graph)[0].flatten(1)

    ours, theirs = derivative(s, create_graph=True), derivative(t, create_graph=False)
    return (ours - theirs).norm(dim=1).mean()


def _adaptation(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    """With all pairs of locations side by side, as eq. 5 and 6 have them."""
    own, taught, config = s.features[0], t.features[0], loss.config
    code = loss.translators[0].encoder(taught)
    errors = (taught - loss.translators[0].decoder(code)).pow(2).sum() + config.sparsity * code.abs().sum()
    code = code.detach()

    def unit(maps: Tensor) -> Tensor:
        return F.normalize(maps.flatten(1))

    def alike(maps: Tensor) -> Tensor:
        columns = F.normalize(maps.flatten(2), dim=1)
        return torch.bmm(columns.transpose(1, 2), columns)

    locations = code.shape[2] * code.shape[3]
    adapted = (unit(loss.adapters[0](own)) - unit(code)).abs().sum(1).mean()
    affinity = (alike(loss.affinity_adapters[0](own)) - alike(code)).pow(2).sum((1, 2)).mean() / locations**2
    return config.adapt * adapted + config.affinity_weight * affinity + errors / taught.numel()


def _fsp(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    def flow(first: Tensor, second: Tensor) -> Tensor:
        if first.shape[2:] != second.shape[2:]:
            first = F.adaptive_max_pool2d(first, second.shape[2:])
        first, second = first.flatten(2), second.flatten(2)
        return torch.bmm(first, second.transpose(1, 2)) / first.shape[2]

    adapted = [adapt(own) for adapt, own in zip(loss.adapters, s.features, strict=True)]
    steps = zip(pairwise(adapted), pairwise(t.features), strict=True)
    total = torch.zeros(())
    for own, taught in steps:
        total = total + (flow(*own) - flow(*taught)).pow(2).sum() / len(batch.labels)
    return total


def _nst(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return torch.bmm(first, second.transpose(1, 2)).pow(2).mean()

    total = torch.zeros(())
    for own, taught in zip(s.features, t.features, strict=True):
        a, b = F.normalize(own.flatten(2), dim=2), F.normalize(taught.flatten(2), dim=2)
        total = total + kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)
    return total


def _ft(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    [own], [taught] = s.features, t.features
    factor, restored = loss.paraphrasers[0](taught)
    ours = F.normalize(loss.translators[0](own).flatten(1))
    gap = F.l1_loss(ours, F.normalize(factor.detach().flatten(1)))
    return gap + loss.config.reconstruction * F.mse_loss(restored, taught)


def _ab(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    total, last = torch.zeros(()), len(s.features) - 1
    for i, (own, taught) in enumerate(zip(s.features, t.features, strict=True)):
        r = loss.connectors[i](own)
        gap = torch.where(taught > 0, F.relu(loss.config.margin - r), F.relu(loss.config.margin + r)).pow(2)
        total = total + gap.sum() / len(r) / 2 ** (last - i)
    return 3 / 1000 * total


def _vid(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    total = torch.zeros(())
    for i, (own, taught) in enumerate(zip(s.features, t.features, strict=True)):
        variance = (F.softplus(loss.raw_variances[i]) + 1e-5).view(1, -1, 1, 1)
        total = total + 0.5 * ((loss.regressors[i](own) - taught).pow(2) / variance + variance.log()).mean()
    return total


def _ickd(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    def correlation(features: Tensor) -> Tensor:
        rows = features.flatten(2)
        return F.normalize(torch.bmm(rows, rows.transpose(1, 2)), dim=2)

    [own], [taught] = s.features, t.features
    gap = correlation(loss.embed[0](own)) - correlation(taught)
    return gap.pow(2).sum() / (taught.shape[1] * len(taught))


def _reviewkd(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    total, residual = torch.zeros(()), None
    own, taught = ([f if f.dim() == 4 else f[:, :, None, None] for f in side.features] for side in (s, t))
    for level, x, target in reversed(list(zip(loss.levels, own, taught, strict=True))):
        x = level.enter(x)
        if residual is not None:
            residual = F.interpolate(residual, x.shape[2:], mode="nearest")
            weights = torch.sigmoid(level.attention(torch.cat([x, residual], dim=1)))
            x = weights[:, 0:1] * x + weights[:, 1:2] * residual
        residual = x
        total = total + _context(level.leave(x), target)
    return total


def _context(own: Tensor, taught: Tensor) -> Tensor:
    total, weight, whole = F.mse_loss(own, taught), 1.0, 1.0
    for size in (4, 2, 1):
        if size < own.shape[2]:
            weight /= 2
            whole += weight
            pooled = F.adaptive_avg_pool2d(own, size), F.adaptive_avg_pool2d(taught, size)
            total = total + weight * F.mse_loss(*pooled)
    return total / whole


# ------------------------------------------------------------------------------- samples among each other


def plain_distances(own: Tensor, taught: Tensor) -> Tensor:
    """RKD's distances, by differences."""

    def relative(rows: Tensor) -> Tensor:
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        return apart / apart[apart > 0].mean()

    return F.smooth_l1_loss(relative(own), relative(taught))


def plain_angles(own: Tensor, taught: Tensor, corners: slice = slice(None)) -> Tensor:
    """RKD's angles at some corners, all by default: N³ numbers a side."""

    def cosines(rows: Tensor) -> Tensor:
        towards = F.normalize(rows[None] - rows[corners, None], dim=2)
        return torch.bmm(towards, towards.transpose(1, 2))

    return F.smooth_l1_loss(cosines(own), cosines(taught))


def _rkd(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    [own], [taught] = s.features, t.features
    return loss.config.distance * plain_distances(own, taught) + loss.config.angle * plain_angles(own, taught)


def _pkt(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    def neighbours(rows: Tensor) -> Tensor:
        rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-7)
        kernel = (rows @ rows.T + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    q, p = neighbours(s.features[0]), neighbours(t.features[0])
    return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


def _sp(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    def similar(features: Tensor) -> Tensor:
        rows = features.flatten(1)
        return F.normalize(rows @ rows.T)

    return (similar(s.features[0]) - similar(t.features[0])).pow(2).mean()


def _cc(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    gamma, order = loss.config.gamma, loss.config.order

    def kernel(rows: Tensor) -> Tensor:
        rows = F.normalize(rows)
        cosines, found = rows @ rows.T, torch.zeros(())
        for p in range(order + 1):
            found = found + math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p
        return found

    own, taught = loss.embed_s[0](s.features[0]), loss.embed_t[0](t.features[0])
    return (kernel(own) - kernel(taught)).pow(2).mean()


def _pad(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    [own], [taught] = s.features, t.features
    log_variance = loss.heads[0](own)
    gap = (taught - loss.projections[0](own)).pow(2)
    return (gap / (loss.config.eps + log_variance.exp()) + log_variance).mean()


def _projector(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    eps = loss.config.bn_eps
    own = F.batch_norm(loss.projectors[0](s.features[0]), None, None, training=True, eps=eps)
    taught = F.batch_norm(t.features[0], None, None, training=True, eps=eps)
    return (own - taught).abs().pow(loss.config.alpha).sum().log()


def _crd(loss: Any, s: Outputs, t: Outputs, batch: Batch) -> Tensor:
    """Every sample's rows of the bank side by side, as in the authors' code; the draw of negatives is ours."""
    rows = torch.cat([batch.rows[:, None], draw_negatives(batch, loss.labels, loss.config.negatives)], dim=1)
    own, taught = F.normalize(loss.embed_s(s.features[0])), F.normalize(loss.embed_t(t.features[0]))
    value = _noise_contrast(loss, 0, own, loss.memory_t[rows]) + _noise_contrast(loss, 1, taught, loss.memory_s[rows])
    with torch.no_grad():
        for bank, embedded in ((loss.memory_s, own), (loss.memory_t, taught)):
            bank[batch.rows] = F.normalize(
                loss.config.momentum * bank[batch.rows] + (1 - loss.config.momentum) * embedded
            )
        loss.labels[batch.rows] = batch.labels
    return value


def _noise_contrast(loss: Any, i: int, anchor: Tensor, others: Tensor) -> Tensor:
    scores = (torch.bmm(others, anchor[:, :, None]).squeeze(2) / loss.config.temperature).exp()
    rows = len(loss.memory_s)
    if loss.log_z[i].isnan():
        loss.log_z[i] = (scores.detach().mean() * rows).log()
    scores, noise = scores / loss.log_z[i].exp().float(), loss.config.negatives / rows
    positive = (scores[:, 0] / (scores[:, 0] + noise + 1e-7)).log()
    negative = (noise / (scores[:, 1:] + noise + 1e-7)).log().sum(1)
    return -(positive + negative).mean()


PLAIN: Mapping[str, Plain] = {
    "ab": _ab, "adaptation": _adaptation, "at": _at, "at_grad": _at_grad, "cc": _cc, "ce": _ce, "crd": _crd,
    "dist": _dist, "dkd": _dkd, "fitnet": _fitnet, "fsp": _fsp, "ft": _ft, "ickd": _ickd, "kd": _kd, "logits": _logits,
    "mlkd": _mlkd, "nst": _nst, "pad": _pad, "pixel_ce": _pixel_ce, "pkt": _pkt, "projector": _projector,
    "reviewkd": _reviewkd, "rkd": _rkd, "sp": _sp, "vid": _vid,
}  # fmt: skip
"""By the loss's name."""
