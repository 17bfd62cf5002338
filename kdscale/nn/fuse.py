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
CACHE_BYTES, SMALLEST_PART = 2**21, 32
"""What a map may take to be found in cache again by the layer behind it, and the fewest images worth a call."""
LEAST_PRODUCTS = 40e6
"""Of a convolution, on average, for one call: it takes 30 µs beside its products, which do 50 to 200 in a ns."""
USUAL_BATCH = 64
"""Images for which weights are packed where a batch is not answered in parts: for others they are packed at each call,
if oneDNN wants another form for those."""

_SUMS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, torch.relu_)


class _Convolution(nn.Module):
    """A convolution of what comes, plus what else is given, rectified if it was.

    Attributes:
        weight: as it is hashed and moved; oneDNN's own form of it, once it is packed, can be neither.
        into_other: whether the sum may be written where what is added lies.
    """

    def __init__(self, conv: nn.Conv2d, *, rectified: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.into_other = False
        self._how = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self._last = "relu" if rectified else None
        self._packed: Tensor | None = None

    def pack(self, dtype: torch.dtype, images: tuple[int, ...]) -> None:
        """Bring the weights, once, into the type and the form in which oneDNN reads them for images of a shape."""
        self.to(dtype)
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *self._how, images)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        # in these operators' own words; autocast does not know them
        x, weight = x.to(self.weight.dtype), self.weight if self._packed is None else self._packed
        how = (weight, self.bias, *self._how)
        answer: Tensor
        if other is None:
            answer = torch.ops.mkldnn._convolution_pointwise(x, *how, self._last or "none", [], "")
            return answer
        other = other.to(self.weight.dtype)
        if self.into_other:
            answer = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *how, "add", 1.0, self._last, [], "")
        else:
            answer = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *how, "add", 1.0, self._last, [], "")
        return answer


def fuse(network: Network, dtype: torch.dtype | None) -> int | None:
    """Rewrite a folded network on a CPU, in place, where that is safe; others are left as they are.

    Left alone is a model that `torch.fx` cannot trace, one whose inner values are listened to or differentiated by, and
    one that would then answer noise differently.

    Args:
        network: in eval mode, channels-last, no other's.
        dtype: what convolutions compute in; None for fp32.

    Returns:
        How many images to answer at a time, so that what lies between two layers stays in a core's cache; None for all
        at once: where nothing was rewritten, too few images fit, or calls would cost more than memory does.
    """
    narrow = dtype or torch.float32
    if network.taps or network.input_grad or network.input.scale.device.type != "cpu" or not _available(narrow):
        return None
    pixels = _noise(network)
    graph = _traced(network.model, pixels)
    if graph is None or not _pair_up(graph):
        return None
    _write_in_place(graph)
    if not _same(network.model, graph, pixels):
        return None
    at_a_time = _at_a_time(graph, narrow)
    for node, conv in _convolutions(graph).items():
        seen = _shape(node.all_input_nodes[0])
        assert seen is not None  # what a convolution takes is a tensor
        conv.pack(narrow, (at_a_time or USUAL_BATCH, *seen[1:]))
    network.model = graph.eval().requires_grad_(requires_grad=False)
    return at_a_time


def _available(dtype: torch.dtype) -> bool:
    operators = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    if not (torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in operators)):
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
        _drop_what_does_nothing(graph)
        ShapeProp(graph).propagate(pixels.clone())
    except Exception:  # noqa: BLE001  # any model's forward may raise anything where it is given no tensors
        return None
    return graph


def _drop_what_does_nothing(graph: fx.GraphModule) -> None:
    """Take out identities: shortcuts, and BatchNorms that were folded, which stand between what can be paired."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) is nn.Identity:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _pair_up(graph: fx.GraphModule) -> int:
    """Put every convolution and the sum and ReLU that alone take its output into one; returns how many have any.

    The last first: where two convolutions are added, the later one does it.
    """
    modules, found = dict(graph.named_modules()), 0
    for node in reversed(list(graph.graph.nodes)):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        chain, other, rectified = _what_follows(node, modules)
        name = f"convolution_{node.name}"
        graph.add_module(name, _Convolution(conv, rectified=rectified))
        with graph.graph.inserting_after(chain[-1]):
            given = node.all_input_nodes[0]  # however it was given
            fused = graph.graph.call_module(name, (given,) if other is None else (given, other))
        fused.meta = chain[-1].meta
        chain[-1].replace_all_uses_with(fused)
        for done in reversed(chain):
            graph.graph.erase_node(done)
        found += other is not None or rectified
    graph.delete_all_unused_submodules()
    graph.recompile()
    return found


def _convolutions(graph: fx.GraphModule) -> dict[fx.Node, _Convolution]:
    """Where each of ours is called, in the order of the calls."""
    modules = dict(graph.named_modules())
    called = {node: modules[str(node.target)] for node in graph.graph.nodes if node.op == "call_module"}
    return {node: module for node, module in called.items() if isinstance(module, _Convolution)}


def _write_in_place(graph: fx.GraphModule) -> None:
    """Let sums be written over what is added, where a convolution made that and nothing but earlier ones reads it.

    Convolutions alone, for their outputs are memory of their own, and no view of what they read.
    """
    convolutions = _convolutions(graph)
    order = {node: place for place, node in enumerate(convolutions)}
    for node, conv in convolutions.items():
        x, *added = node.args
        if added and added[0] in convolutions and added[0] is not x:
            assert isinstance(added[0], fx.Node)
            conv.into_other = all(user in order and order[user] <= order[node] for user in added[0].users)


def _what_follows(conv: fx.Node, modules: dict[str, nn.Module]) -> tuple[list[fx.Node], fx.Node | None, bool]:
    """Nodes from a convolution to the last that it can do itself, what is added to it, and whether it is rectified."""
    chain: list[fx.Node] = [conv]
    other = None
    user = _only_user(chain[-1])
    if user is not None and user.target in (*_SUMS, "add", "add_") and len(user.args) == 2 and not user.kwargs:
        added = [arg for arg in user.args if arg is not chain[-1]]
        if len(added) == 1 and isinstance(added[0], fx.Node) and _shape(added[0]) == _shape(conv):
            chain, other = [*chain, user], added[0]
            user = _only_user(chain[-1])
    rectified = user is not None and _rectifies(user, modules)
    return ([*chain, user] if rectified and user else chain), other, rectified


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
    if fit < SMALLEST_PART:
        return None
    part: int = 2 ** (fit.bit_length() - 1)
    products = [_products(node, conv) for node, conv in _convolutions(graph).items()]
    return part if part * sum(products) >= LEAST_PRODUCTS * len(products) else None


def _products(node: fx.Node, conv: _Convolution) -> int:
    """Multiplications of a convolution for one image."""
    made = _shape(node)
    assert made is not None  # what a convolution makes is a tensor
    return int(made[1:].numel() * conv.weight[0].numel())
