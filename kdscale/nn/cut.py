"""A network cut at one of its modules: the part behind it, which answers for features that another part made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.errors import ConfigError, KDScaleError, ShapeError
from kdscale.nn.network import DRY_IMAGES, Network
from kdscale.nn.taps import Catch, locate

__all__ = ["Handed", "before_last_stage", "behind", "catching", "check_cut", "shape_at", "up_to"]


class Handed(nn.Module):
    """Stands where a network is cut: answers with the features that it was handed, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self._value: Tensor | None = None

    @contextmanager
    def over(self, value: Tensor) -> Iterator[None]:
        """Hold features for as long as networks are asked about them, and no longer: they hold a graph."""
        self._value = value
        try:
            yield
        finally:
            self._value = None

    def forward(self, *_: Any) -> Tensor:
        """Return a view of the features. Raises: ShapeError when there are none."""
        if self._value is None:
            raise ShapeError("a network that is cut was asked without the features that it goes on from")
        return _view(self._value)


def before_last_stage(model: nn.Module) -> str:
    """The tap behind which a model's last stage begins. Raises: ConfigError when the model names no stages."""
    taps: dict[str, tuple[str, bool]] = getattr(model, "taps", {})
    stages = sorted((tap for tap in taps if re.fullmatch(r"stage\d+", tap)), key=lambda tap: int(tap[5:]))
    if len(stages) < 2:
        raise ConfigError(
            f"{type(model).__name__} names no two stages: say by split_at which module is the last shared"
        )
    return stages[-2]


def catching(network: Network, split: str) -> Catch:
    """Read the output of the module that a tap or path names, from now on; what follows goes on from a view of it.

    The gradients of its readers then meet one by one, each already summed at its own view: in one order, and so to
    the same bits, on every engine. ZeRO 3 runs the nodes within a branch in another order than DDP.

    Raises:
        TapError: there is no such module.
    """
    [(path, _)] = locate(network.model, [split], network.own_taps).values()
    catch = Catch(split, path)
    module = network.model.get_submodule(path)
    module.register_forward_hook(catch)
    module.register_forward_hook(lambda *called: _view(called[2]) if isinstance(called[2], Tensor) else None)
    return catch


def up_to(network: Network, split: str, size: int) -> tuple[str, set[str]]:
    """The path of the module that a tap or path names, and those of all that have run when it ends, itself included.

    Raises:
        TapError: there is no such module.
        ConfigError: it does not run.
    """
    [(path, _)] = locate(network.model, [split], network.own_taps).values()
    order = _ends(network, size)
    if path not in order:
        raise ConfigError(f"split_at: {split} ({path}) does not run in a forward pass")
    return path, {module for module, end in order.items() if end <= order[path]}


def behind(network: Network, split: str, size: int, handed: nn.Module) -> Network:
    """Take away, in place, what runs up to a module's end; `handed` stands for it. Returns `network`.

    Args:
        network: taken over.
        split: tap or module path of the last module that is taken away.
        size: pixels a side of the loader's images.
        handed: gives the features; any number of networks may share a `Handed`.

    Raises:
        TapError: there is no such module.
        ConfigError: nothing with weights is left behind it.
    """
    path, gone = up_to(network, split, size)
    for module in sorted(gone):
        if not any(module.startswith(f"{other}.") for other in gone):
            network.model.set_submodule(module, nn.Identity())
    if next(network.model.parameters(), None) is None:
        raise ConfigError(f"split_at: {split} is the end of {type(network.model).__name__}: nothing is left behind it")
    network.model.set_submodule(path, handed)
    return network


def check_cut(network: Network, split: str, size: int) -> tuple[int, ...]:
    """Make sure that all that a network answers flows through one module's output; the network is used up.

    Returns:
        That output's shape, without B.

    Raises:
        TapError: there is no such module, or it cannot be read.
        ConfigError: what follows reads something else too.
    """
    network, catch, handed = network.eval(), catching(network, split), Handed()
    images = torch.randint(0, 256, (DRY_IMAGES, network.input.given, size, size), dtype=torch.uint8, generator=_fixed())
    with torch.no_grad():
        expected = network(images).logits
        if problem := catch.problem(DRY_IMAGES):
            raise ConfigError(f"split_at: {split} ({catch.path}) {problem}")
        features = catch.take()
        with handed.over(features):
            found = _answer(lambda: behind(network, split, size, handed)(images).logits, split)
    if not torch.equal(found, expected):
        raise ConfigError(
            f"split_at: what follows {split} reads more than its output, so it cannot be shared up to there; "
            "name a module through which everything flows"
        )
    return tuple(features.shape[1:])


def shape_at(network: Network, split: str) -> tuple[int, ...]:
    """Shape of what a module gives, without B; leaves a hook on the model, and works without real numbers.

    Raises:
        TapError: there is no such module, or it cannot be read.
    """
    probe = Network(network.model, network.input, [split], own_taps=network.own_taps)
    [shape] = probe.tap_shapes(network.input.given_size)
    return shape


def _ends(network: Network, size: int) -> dict[str, int]:
    """When each module of a model last returned in a forward pass, by path."""
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, module in network.model.named_modules()
        if path
    ]
    network.dry(size)
    for hook in hooks:
        hook.remove()
    return {path: when for when, path in enumerate(ran)}


def _answer(ask: Callable[[], Tensor], split: str) -> Tensor:
    try:
        return ask()
    except KDScaleError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(f"split_at: the network does not run from {split} on: {error}") from error


def _view(features: Tensor) -> Tensor:
    return features.view_as(features)


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)
