"""Further branches of a network behind a shared trunk, and the gate that weighs what all of them answer.

Source: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv:1806.04606,
equations 3 and 4; the gate's layers as in the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdscale.draws import seed_of
from kdscale.errors import ShapeError
from kdscale.nn.cut import Handed, before_last_stage, behind, catching, check_cut, shape_at
from kdscale.nn.network import Network
from kdscale.nn.precision import at_least_fp32
from kdscale.nn.sync_bn import needs_two_values
from kdscale.nn.taps import Catch

__all__ = ["Branches", "Gated", "branch_out", "branches_of"]


class Gated(NamedTuple):
    """What the branches answer to one batch, the network's own first, and how the gate weighs them."""

    logits: list[Float[Tensor, "B C"]]
    log_gate: Float[Tensor, "B M"]
    """Logarithms of each branch's share in the ensemble, by sample."""
    ensemble: Float[Tensor, "B C"]


class Branches(nn.Module):
    """Runs as a hook behind a network's forward pass, whose answer is that of branch 0.

    Args:
        others: what lies behind the split, of as many networks as there are further branches.
        handed: through which those get the trunk's features.
        shared: reads them off the network.
        gate: linear layer, norm and activation that weigh the branches by the features.
        answers: whether the ensemble's logits become the network's own; otherwise it goes on to answer as branch 0.
    """

    def __init__(
        self, others: Sequence[nn.Module], handed: Handed, shared: Catch, gate: nn.Sequential, *, answers: bool
    ) -> None:
        super().__init__()
        self.others, self.gate = nn.ModuleList(others), gate
        self.answers = answers
        self._asked = False
        self._handed, self._shared = handed, shared
        self._gated: Gated | None = None

    @contextmanager
    def asked(self) -> Iterator[Callable[[], Gated]]:
        """Have branches and gate answer within the network's next forward pass; gives what hands over their answers.

        Elsewhere a network that answers as branch 0 runs without the others, and costs what it costs alone.
        """
        self._asked = True
        try:
            yield self._take
        finally:
            self._asked, self._gated = False, None

    def _take(self) -> Gated:
        gated, self._gated = self._gated, None
        if gated is None:
            raise ShapeError("branches answer within their network's forward pass, and there was none")
        return gated

    def answer(self, model: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
        """Ask the other branches, as a hook behind the forward pass of their network."""
        del model
        if not (self.answers or self._asked):
            self._shared.reset()
            return None
        shared = self._shared.take()
        with self._handed.over(shared):
            each = [logits, *(other(*given) for other in self.others)]
        with torch.autocast(shared.device.type, enabled=False):
            each = [at_least_fp32(one) for one in each]
            log_gate = self._weighed(at_least_fp32(shared))
            ensemble = (torch.stack(each, 1) * log_gate.exp()[:, :, None]).sum(1)
        self._gated = Gated(each, log_gate, ensemble) if self._asked else None
        return ensemble if self.answers else None

    def _weighed(self, shared: Float[Tensor, "B D *space"]) -> Float[Tensor, "B M"]:
        linear, norm, relu = self.gate
        scores = linear(shared.flatten(2).mean(2) if shared.dim() > 2 else shared)
        needs_two_values("strategy one (the gate)", scores, self.gate)
        return torch.log_softmax(relu(norm(scores)), 1)


def branch_out(  # noqa: PLR0913
    network: Network,
    count: int,
    split_at: str | None,
    fresh: Callable[[str], Network],
    *,
    size: int,
    seed: int,
    answers: bool,
    check: bool = True,
) -> Branches:
    """Give a network further branches, in place, behind a module that all of them share.

    Args:
        network: its own layers behind that module are branch 0.
        count: branches, the network's own among them.
        split_at: tap or path of the last shared module; default the end of the last stage but one.
        fresh: another network of the kind, with initial weights by the name of the part that it becomes.
        size: pixels a side of the loader's images.
        seed: of the gate's initial weights.
        answers: whether the network answers as the ensemble from now on.
        check: whether to make sure that all goes through that module; needs real numbers.

    Raises:
        TapError: there is no such module.
        ConfigError: what follows reads something else too.
        ShapeError: its output is neither maps nor features.
    """
    split = split_at or before_last_stage(network.model)
    probe = copy.deepcopy(network)
    shape = check_cut(probe, split, size) if check else shape_at(probe, split)
    if len(shape) not in (1, 3):
        raise ShapeError(f"split_at: the gate reads maps (C, H, W) or features (C), not {list(shape)}")
    handed, shared = Handed(), catching(network, split)
    others = [behind(fresh(f"branch{i}"), split, size, handed).model for i in range(1, count)]
    branches = Branches(others, handed, shared, _gate(shape[0], count, seed), answers=answers)
    network.model.register_forward_hook(branches.answer)
    return branches


def branches_of(model: nn.Module) -> Branches | None:
    """Those that a network holds itself; None where it has none."""
    return next((part for part in model.modules() if isinstance(part, Branches)), None)


def _gate(channels: int, branches: int, seed: int) -> nn.Sequential:
    """What weighs branches by the pooled features, up to the softmax; its initial weights by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("init", seed, "gate"))
        return nn.Sequential(nn.Linear(channels, branches), nn.BatchNorm1d(branches), nn.ReLU())
