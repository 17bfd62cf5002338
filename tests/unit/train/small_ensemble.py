"""A small on-the-fly ensemble and what it is compared with, built as a stage builds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kdscale.api import DatasetInfo, Term
from kdscale.config.schema import StudentConfig, TrainConfig
from kdscale.losses.ce import CrossEntropy
from kdscale.nn.build import build_network
from kdscale.nn.network import Network
from kdscale.nn.stage_parts import StageParts
from kdscale.strategies.one import OnTheFlyEnsemble
from tests.unit.train.made_up import CLASSES, SHAPES

__all__ = ["SIZE", "STEPS", "ce", "ensemble", "fresh", "stage"]

SIZE, STEPS = 8, 20
INFO = DatasetInfo(CLASSES, 1, SIZE, 100, 20, (0.5,), (0.25,), tuple("abc"))


def fresh(part: str, model: str = "resnet_cifar", size: int = SIZE, **options: Any) -> Network:
    """A network with the initial weights of a part."""
    small = {"depth": 8, "widths": [4, 4, 8]} if model == "resnet_cifar" else {}
    return build_network(StudentConfig(model=model, **{**small, **options}), INFO, size, part=part)


def stage(network: Callable[[str], Network] = fresh, size: int = SIZE) -> StageParts:
    """What a strategy is told of its stage."""
    return StageParts({}, TrainConfig(), 0, STEPS, size, network)


def ce(id: str = "ce") -> Term:
    """Cross-entropy with the labels."""
    return Term(id, CrossEntropy(CrossEntropy.Config(), SHAPES), lambda step: 1.0)


def ensemble(
    *, model: str = "resnet_cifar", model_options: dict[str, Any] | None = None, size: int = SIZE,
    terms: Sequence[Term] = (), **options: Any,
) -> OnTheFlyEnsemble:  # fmt: skip
    """In training mode, with cross-entropy unless other terms are given."""

    def network(part: str) -> Network:
        return fresh(part, model, size, **(model_options or {}))

    config, parts = OnTheFlyEnsemble.Config(**options), stage(network, size)
    built = OnTheFlyEnsemble(network("student"), {"main": list(terms) or [ce()]}, config, parts)
    built.train()
    return built
