"""BatchNorm folded into the convolutions before it, for networks that no longer train."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kdscale.nn.network import Network

__all__ = ["fold"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Folding in float64 differs from the plain network by rounding alone; a wrong pair differs in the first digits.
TOLERANCE = 1e-9

Pair = tuple[str, str]
"""Module paths of a convolution and of the BatchNorm that takes its output."""


def fold(network: Network) -> Network:
    """Return a copy in eval mode whose BatchNorms are folded into their convolutions, where that is safe.

    Pairs are found by watching one forward, so any model will do; a convolution that is tapped is left
    alone. The folded copy's logits and features are compared with the network's own in float64: if they
    differ, nothing is folded.

    Args:
        network: left as it is.
    """
    plain = copy.deepcopy(network).eval()
    pairs = _pairs(plain)
    if not pairs:
        return plain
    wide = copy.deepcopy(plain).double()
    return _folded(plain, pairs) if _same(wide, _folded(wide, pairs)) else plain


def _pairs(network: Network) -> list[Pair]:
    """Convolutions whose output a BatchNorm takes unchanged, each of the two running once."""
    made: dict[int, tuple[str, Tensor, int]] = {}
    taken: dict[str, list[str]] = {}
    runs: dict[str, int] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[path] = runs.get(path, 0) + 1
            if isinstance(module, CONVOLUTIONS):
                made[id(output)] = (path, output, output._version)  # kept alive: its id stays its own
            elif id(inputs[0]) in made and made[id(inputs[0])][2] == inputs[0]._version:
                taken.setdefault(made[id(inputs[0])][0], []).append(path)

        return hook

    handles = [module.register_forward_hook(watch(path)) for path, module in _foldable(network.model)]
    try:
        network.dry(network.input.given_size)
    finally:
        for handle in handles:
            handle.remove()
    tapped = {catch.path for catch in network.catches}
    found = [(conv, norms[0]) for conv, norms in taken.items() if len(norms) == 1 and conv not in tapped]
    return [(conv, norm) for conv, norm in found if runs[conv] == runs[norm] == 1]


def _foldable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        # exactly these: a class derived from BatchNorm may hold an activation, as timm's does
        if isinstance(module, CONVOLUTIONS) or (type(module) in NORMS and module.running_mean is not None):
            yield path, module


@torch.no_grad()
def _folded(network: Network, pairs: list[Pair]) -> Network:
    """A copy with each pair's BatchNorm replaced by nothing; taps on it move along."""
    network = copy.deepcopy(network)
    for conv_path, norm_path in pairs:
        conv, norm = network.model.get_submodule(conv_path), network.model.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        assert isinstance(norm, _BatchNorm)
        conv.weight, conv.bias = _fused(conv, norm)
        nothing = nn.Identity()
        for catch in network.catches:
            if catch.path == norm_path:
                nothing.register_forward_hook(catch)
        network.model.set_submodule(norm_path, nothing)
    return network.requires_grad_(requires_grad=False)


def _fused(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, norm: _BatchNorm) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of both in one, computed in float64 and rounded once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = [None if t is None else t.double() for t in (conv.weight, conv.bias)]
    statistics = [norm.running_mean.double(), norm.running_var.double()]
    affine = [None if t is None else t.double() for t in (norm.weight, norm.bias)]
    weight, bias = fuse_conv_bn_weights(wide[0], wide[1], *statistics, norm.eps, *affine)  # type: ignore[arg-type,call-arg]
    layout = torch.channels_last if _is_channels_last(conv.weight) else torch.contiguous_format
    narrow = weight.to(conv.weight.dtype, memory_format=layout)
    return nn.Parameter(narrow, requires_grad=False), nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@torch.no_grad()
def _same(plain: Network, folded: Network) -> bool:
    """Whether two networks in float64 answer noise alike, taps included."""
    generator = torch.Generator().manual_seed(0)
    size = plain.input.given_size
    shape = (2, plain.input.given, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(plain.input.scale.device)
    first, second = plain(images), folded(images)
    pairs = zip([first.logits, *first.features], [second.logits, *second.features], strict=True)
    return all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(a.abs().max())) for a, b in pairs)
