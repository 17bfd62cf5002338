"""Networks that must answer with the pixels they saw, for terms that differentiate by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from kdscale import plugins
from kdscale.api import Loss, Outputs
from kdscale.config.schema import StageSpec, TermConfig
from kdscale.errors import ConfigError
from kdscale.nn.network import Network

__all__ = ["answers", "ask_for_pixels"]


def ask_for_pixels(
    spec: StageSpec, student: Network, teachers: Mapping[str, Network], terms: Sequence[TermConfig]
) -> None:
    """Set `input_grad` of the student and of those teachers whose input's gradient a term compares.

    Raises:
        ConfigError: the teacher is a cache or an ensemble, or the student is compiled; with the key path.
    """
    for term in terms:
        loss: type[Loss] = plugins.load("losses", term.name, spec.plugins)
        if loss.needs_input_grad:
            student.input_grad = True
            at = f"stages.{spec.name}.losses.{term.id}: {term.name} differentiates by the input"
            if spec.train.compile:
                raise ConfigError(f"{at}, twice, which a compiled network cannot; set train.compile: false")
            if loss.needs_teacher:
                role = term.teacher or next(iter(spec.teachers))
                _refuse_records(spec, role, at)
                teachers[role].input_grad = True


def answers(teachers: Mapping[str, Network], images: UInt8[Tensor, "B K H W"]) -> dict[str, Outputs]:
    """What networks answer in eval, each with a graph only where its pixels are asked for."""
    taught = {}
    for name, network in teachers.items():
        with torch.set_grad_enabled(network.input_grad):
            taught[name] = network.eval()(images)
    return taught


def _refuse_records(spec: StageSpec, role: str, at: str) -> None:
    ref = spec.teachers[role]
    if ref.cache is not None:
        raise ConfigError(f"{at}, which the cache of {role} does not hold; take `cache` out of the teacher {role}")
    if ref.virtual is not None:
        raise ConfigError(f"{at}, but {role} is virtual and sees no input; name a network")
    if ref.mean is not None:
        raise ConfigError(f"{at}, but {role} is a mean of networks; name one of them")
