"""What of a stage does not train."""

from __future__ import annotations

from collections.abc import Sequence

from kdscale.api import Strategy
from kdscale.errors import ConfigError
from kdscale.nn.network import Network

__all__ = ["freeze", "keep_frozen_in_eval"]


def freeze(strategy: Strategy, network: Network, frozen: Sequence[str], train_only: Sequence[str] | None) -> None:
    """Take the gradient from parameters that do not train, and put their modules into eval for good.

    Args:
        strategy: the trained module.
        network: its student.
        frozen: parameter names found silent in the dry backward.
        train_only: module paths of the student that train; everything else of it is frozen.
    """
    silent = set(frozen)
    for name, parameter in strategy.named_parameters():
        if name in silent:
            parameter.requires_grad_(False)
    if train_only is not None:
        known = {name for name, _ in network.model.named_modules()}
        for path in train_only:
            if path not in known:
                raise ConfigError(f"train_only: the student has no module {path}; see --list taps")
        for name, parameter in network.model.named_parameters():
            if not any(name.startswith(f"{path}.") for path in train_only):
                parameter.requires_grad_(False)


def keep_frozen_in_eval(strategy: Strategy) -> None:
    """After `strategy.train()`: modules whose parameters are all frozen answer as in evaluation."""
    for module in strategy.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()
