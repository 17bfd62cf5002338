"""BatchNorm over the global batch, and its statistics averaged for evaluation.

Torch's own SyncBatchNorm refuses CPUs; this one runs wherever `ranks` does. With it, n processes of B
samples compute what one process of n·B samples computes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdscale import ranks
from kdscale.errors import ConfigError, ShapeError
from kdscale.nn.wire import Wire

__all__ = ["SyncBatchNorm", "average_buffers", "measure_anew", "needs_two_values", "to_sync_bn"]

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are those of all ranks' samples, gradients included."""

    def forward(self, input: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        """Normalise over B and space, of all ranks in training."""
        if not self.training or ranks.world() == 1:
            return super().forward(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        count, mean, variance = _global_statistics(wide)
        if self.track_running_stats:
            self._remember(count, mean.detach(), variance.detach())
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        per_channel = (1, -1, *[1] * (input.dim() - 2))
        return (wide * scale.view(per_channel) + shift.view(per_channel)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as torch does: the variance unbiased, over all ranks' samples."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm takes (B, C, ...), not {tuple(input.shape)}")


def to_sync_bn(module: nn.Module) -> nn.Module:
    """Turn every BatchNorm within `module` into a SyncBatchNorm, in place; returns `module`.

    Raises:
        ConfigError: a BatchNorm does more than torch's own (timm's, which hold an activation).
    """
    for path, norm in module.named_modules():
        if type(norm) in PLAIN:
            # the object stays, and with it its parameters, buffers, hooks and every reference to it
            norm.__class__ = SyncBatchNorm
        elif isinstance(norm, _BatchNorm) and not isinstance(norm, SyncBatchNorm):
            raise ConfigError(f"train.bn: sync does not know {type(norm).__name__} ({path}); use bn: local")
    return module


def needs_two_values(term: str, values: Float[Tensor, "B C *space"], part: nn.Module) -> None:
    """Refuse to train a part with BatchNorm on one value a channel, whose variance would be zero.

    Args:
        term: the loss or modifier that the part belongs to, for messages.
        values: what its BatchNorm will see, up to the number of channels.
        part: with or without BatchNorm.

    Raises:
        ShapeError: there is one value a channel, of all ranks where BatchNorm is over the global batch.
    """
    if values.numel() > values.shape[1] or not part.training:
        return
    norms = [norm for norm in part.modules() if isinstance(norm, _BatchNorm)]
    if norms and (ranks.world() == 1 or not isinstance(norms[0], SyncBatchNorm)):
        raise ShapeError(
            f"{term}: the BatchNorm of its own layers has one value a channel, and needs two or more; use a larger "
            "train.batch_size, on several processes train.bn: sync, or tap a layer of more positions"
        )


def average_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Running means and variances of every BatchNorm and the ranges of wires, averaged over ranks, as copies.

    Called by all ranks. The module keeps its own: written back, one more save would change training.
    """
    own = {
        f"{path}.{name}" if path else name: buffer
        for path, norm in module.named_modules()
        if isinstance(norm, _BatchNorm | Wire)
        for name, buffer in norm.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    if not own or ranks.world() == 1:
        return {name: buffer.clone() for name, buffer in own.items()}
    flat = torch.cat([buffer.double().flatten() for buffer in own.values()])
    parts = torch.split(ranks.mean_(flat), [buffer.numel() for buffer in own.values()])
    return {name: part.view_as(own[name]).to(own[name].dtype) for (name, part) in zip(own, parts, strict=True)}


@torch.no_grad()
def measure_anew(module: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm that trains by plain means over the batches of `inputs`.

    Everything else answers as in evaluation; called by all ranks where BatchNorm is over the global batch.
    """
    modes = {part: part.training for part in module.modules()}
    norms = [n for n in modes if isinstance(n, _BatchNorm) and n.training and n.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for one in inputs:
            module(one)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes.items():
            part.training = training


def _global_statistics(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (), mean (C,) and biased variance (C,) over all ranks, by one all-reduce each way.

    Each rank's mean and variance are gathered (as the sum of a table with one row a rank) and combined;
    sums of squares would lose the variance of channels whose mean is large.
    """
    over = [d for d in range(wide.dim()) if d != 1]
    variance, mean = torch.var_mean(wide, over, correction=0)
    count = wide.numel() // wide.shape[1]
    row = torch.cat([mean, variance, mean.new_full((1,), count)])
    table = ranks.sum_with_gradient(F.pad(row[None], (0, 0, ranks.rank(), ranks.world() - 1 - ranks.rank())))
    channels = wide.shape[1]
    means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
    whole = counts.sum()
    share = counts / whole
    global_mean = (share * means).sum(0)
    global_variance = (share * (variances + (means - global_mean).square())).sum(0)
    return whole.detach(), global_mean, global_variance
