"""Convolutions that add and rectify as they write: a finished network's sums and ReLUs cost no pass over memory.

Only on a CPU, where oneDNN has the operators. In half precision the answers are a little closer to the exact ones, as
what lies between a convolution and its ReLU is no longer rounded.

Source: none; `torch.compile` finds the same pairs, by compiling for seconds in each process.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from kdscale.nn.network import DRY_IMAGES, Network

__all__ = ["fuse"]

TOLERANCE = 1e-4
"""Of the largest logit: sums in another order, in fp32. A wrong pair differs in the first digits."""
CACHE_BYTES, SMALLEST_PART = 2**20, 8
"""A core's own cache on a server, and the fewest images that are worth a call."""

_SUMS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, torch.relu_)


class _Convolution(nn.Module):
    """A convolution of what comes, plus what else is given, rectified if it was."""

    def __init__(self, conv: nn.Conv2d, *, rectified: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self._how = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self._last = "relu" if rectified else None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        # in these operators' own words; autocast does not know them
        call, x = torch.ops.mkldnn._convolution_pointwise, x.to(self.weight.dtype)
        answer: Tensor
        if other is None:
            answer = call(x, self.weight, self.bias, *self._how, self._last or "none", [], "")
        else:
            other = other.to(self.weight.dtype)
            answer = call.binary(x, other, self.weight, self.bias, *self._how, "add", 1.0, self._last, [], "")
        return answer


def fuse(network: Network, dtype: torch.dtype | None) -> int | None:
    """Rewrite a folded network on a CPU, in place, where that is safe; others are left as they are.

    Left alone is a model that `torch.fx` cannot trace, one whose inner values are listened to or differentiated by, and
    one that would then answer noise differently.

    Args:
        network: in eval mode, channels-last, no other's.
        dtype: what convolutions compute in; None for fp32.

    Returns:
        How many images to answer at a time, so that what lies between two layers stays in a core's cache; None where
        nothing was rewritten, or so few images fit that nothing is gained.
    """
    narrow = dtype or torch.float32
    if network.taps or network.input_grad or network.input.scale.device.type != "cpu" or not _available(narrow):
        return None
    pixels = _noise(network)
    graph = _traced(network.model, pixels)
    if graph is None or not _pair_up(graph) or not _same(network.model, graph, pixels):
        return None
    for module in graph.modules():
        if isinstance(module, _Convolution):
            module.to(narrow)
    network.model = graph.eval().requires_grad_(requires_grad=False)
    return _at_a_time(graph, narrow)


def _available(dtype: torch.dtype) -> bool:
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _noise(network: Network) -> Tensor:
    size, generator = network.input.given_size, torch.Generator().manual_seed(0)
    shape = (DRY_IMAGES, network.input.given, size, size)
    pixels: Tensor = network.input(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
    return pixels


@torch.no_grad()
def _traced(model: nn.Module, pixels: Tensor) -> fx.GraphModule | None:
    """The model as a graph whose nodes know their shapes; None where it cannot be had."""
    try:
        graph = fx.symbolic_trace(model)
        ShapeProp(graph).propagate(pixels.clone())
    except Exception:  # noqa: BLE001  # any model's forward may raise anything where it is given no tensors
        return None
    return graph


def _pair_up(graph: fx.GraphModule) -> int:
    """Put every convolution and the sum and ReLU that alone take its output into one; returns how many.

    The last first: where two convolutions are added, the later one does it.
    """
    modules, found = dict(graph.named_modules()), 0
    for node in reversed(list(graph.graph.nodes)):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        chain, other, rectified = _what_follows(node, modules)
        if other is None and not rectified:
            continue
        name = f"fused{found}"
        graph.add_module(name, _Convolution(conv, rectified=rectified))
        with graph.graph.inserting_after(chain[-1]):
            fused = graph.graph.call_module(name, (node.args[0],) if other is None else (node.args[0], other))
        fused.meta = chain[-1].meta
        chain[-1].replace_all_uses_with(fused)
        for done in reversed(chain):
            graph.graph.erase_node(done)
        found += 1
    graph.delete_all_unused_submodules()
    graph.recompile()
    return found


def _what_follows(conv: fx.Node, modules: dict[str, nn.Module]) -> tuple[list[fx.Node], fx.Node | None, bool]:
    """Nodes from a convolution to the last that it can do itself, what is added to it, and whether it is rectified."""
    chain, other = _past_nothing([conv], modules), None
    user = _only_user(chain[-1])
    if user is not None and user.target in (*_SUMS, "add", "add_") and len(user.args) == 2 and not user.kwargs:
        added = [arg for arg in user.args if arg is not chain[-1]]
        if len(added) == 1 and isinstance(added[0], fx.Node) and _shape(added[0]) == _shape(conv):
            chain, other = _past_nothing([*chain, user], modules), added[0]
            user = _only_user(chain[-1])
    rectified = user is not None and _rectifies(user, modules)
    return ([*chain, user] if rectified and user else chain), other, rectified


def _past_nothing(chain: list[fx.Node], modules: dict[str, nn.Module]) -> list[fx.Node]:
    """A chain with the modules behind it that do nothing, such as a BatchNorm that was folded."""
    user = _only_user(chain[-1])
    if user is not None and user.op == "call_module" and type(modules.get(str(user.target))) is nn.Identity:
        return _past_nothing([*chain, user], modules)
    return chain


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _rectifies(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules.get(str(node.target))) is nn.ReLU
    return node.target in (*_RELUS, "relu", "relu_")


def _shape(node: fx.Node) -> torch.Size | None:
    found = node.meta.get("tensor_meta")
    return getattr(found, "shape", None)


@torch.no_grad()
def _same(model: nn.Module, graph: nn.Module, pixels: Tensor) -> bool:
    first = model(pixels.clone())
    try:
        second = graph(pixels.clone())
    except (RuntimeError, NotImplementedError):  # a build of torch that has the operators' names only
        return False
    return torch.allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE * float(first.abs().max()))


def _at_a_time(graph: fx.GraphModule, dtype: torch.dtype) -> int | None:
    largest = max(shape.numel() for node in graph.graph.nodes if (shape := _shape(node)) is not None)
    fit = CACHE_BYTES * DRY_IMAGES // (largest * dtype.itemsize)
    return 2 ** (fit.bit_length() - 1) if fit >= SMALLEST_PART else None
