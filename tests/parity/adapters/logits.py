"""Methods on logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from kdscale import plugins
from kdscale.api import Shapes
from tests.parity.cases import Adapter, Case, Hyper, Out, defaults, terms

__all__ = ["ADAPTERS"]


def _kd(hp: Hyper) -> dict[str, Any]:
    return {"temperature": hp["T"], "reduction": "batchmean"}


def _kd_as_cross_entropy(hp: Hyper) -> dict[str, Any]:
    return {**_kd(hp), "form": "ce"}


def _standardised(std: str) -> Out:
    """Soft targets behind the modifier that standardises logits."""

    def out(case: Case) -> Tensor:
        plugin = plugins.load("modifiers", "zscore")
        modifier = plugin(plugin.Config(std=std, eps=case.hp["eps"]), Shapes(case.student.logits.shape[1]))
        changed = modifier.before(case.student, case.teacher, case.batch)
        value: Tensor = case.loss("kd", _kd(case.hp))(*changed, case.batch)
        return value.mean()

    return out


def _dist(hp: Hyper) -> dict[str, Any]:
    return {"temperature": hp["tau"], "inter": hp["beta"], "intra": hp["gamma"], "eps": hp["eps"]}


def _dist_part(inter: float, intra: float) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {**_dist(hp), "inter": inter, "intra": intra, "scale_t2": False}


def _by_pixel(out: Out) -> Out:
    """Every pixel of a segmentation is a sample; other logits stay as they are."""
    return lambda case: out(
        replace(case, inputs={name: z.movedim(1, -1).flatten(0, -2) for name, z in case.inputs.items()})
    )


ADAPTERS: dict[str, Adapter] = {
    "dist": Adapter(
        outs={
            "loss": _by_pixel(terms((1.0, "dist", _dist))),
            "inter": _by_pixel(terms((1.0, "dist", _dist_part(1, 0)))),
            "intra": _by_pixel(terms((1.0, "dist", _dist_part(0, 1)))),
        }
    ),
    "kd": Adapter(
        outs={
            "loss_kd": terms((1.0, "kd", _kd)),
            "loss_ce": terms((1.0, "ce", defaults)),
            "loss_total": terms(("ce_weight", "ce", defaults), ("kd_weight", "kd", _kd)),
            "loss_soft_ce_T2": terms((1.0, "kd", _kd_as_cross_entropy)),
            "loss_seed_half": terms((0.5, "ce", defaults), (0.5, "kd", _kd_as_cross_entropy)),
        }
    ),
    "logit_std": Adapter(outs={"loss": _standardised("sample"), "loss_biased_std": _standardised("population")}),
    "logits": Adapter(
        outs={
            "loss_mse_mean": terms((1.0, "logits", defaults)),
            "loss_paper": terms((1.0, "logits", lambda hp: {"reduction": "paper"})),
        }
    ),
}
