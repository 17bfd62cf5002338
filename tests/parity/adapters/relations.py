"""Methods on relations: between samples, or between channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.parity.cases import Adapter, Hyper, Out, defaults, terms

__all__ = ["ADAPTERS"]


def _pkt(reduction: str) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"reduction": reduction, "eps": hp["eps"]}


def _rkd(distance: float, angle: float) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"distance": distance, "angle": angle}


def _cc(kernel: str) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"kernel": kernel, "gamma": hp["gamma"], "order": hp["P"]}


def _embedding(side: str) -> Out:
    return lambda case: case.part("cc", _cc("rbf")(case.hp), f"embed_{side}.0", case.inputs[f"f_{side}"])


def _ickd(reduction: str) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"reduction": reduction}


ADAPTERS: dict[str, Adapter] = {
    "cc": Adapter(
        outs={
            "e_s": _embedding("s"),
            "e_t": _embedding("t"),
            "loss_author": terms((1.0, "cc", _cc("adjacent"))),
            "loss_rbf": terms((1.0, "cc", _cc("rbf"))),
            "loss_bilinear": terms((1.0, "cc", _cc("bilinear"))),
        },
        weight_names={
            f"embed_{side}.linear.{part}": f"embed_{side}.0.{part}" for side in "st" for part in ("weight", "bias")
        },
    ),
    "ickd": Adapter(
        outs={
            "loss": terms((1.0, "ickd", _ickd("cifar"))),
            "loss_c2": terms((1.0, "ickd", _ickd("paper"))),
            "loss_imagenet": terms((1.0, "ickd", _ickd("imagenet"))),
        },
        weight_names={
            "embed_s.conv2d.weight": "embed.0.0.weight",
            "embed_s.l2norm.weight": "embed.0.1.weight",
            "embed_s.l2norm.bias": "embed.0.1.bias",
        },
    ),
    "pkt": Adapter(
        outs={
            "loss": terms((1.0, "pkt", _pkt("code"))),
            "loss_row_kl": terms((1.0, "pkt", _pkt("row"))),
            "paper_offdiag": terms((1.0, "pkt", _pkt("offdiagonal"))),
        }
    ),
    "rkd": Adapter(
        outs={
            "loss_dist": terms((1.0, "rkd", _rkd(1, 0))),
            "loss_angle": terms((1.0, "rkd", _rkd(0, 1))),
            "loss_25_50": terms((1.0, "rkd", _rkd(25, 50))),
            "loss_1_2": terms((1.0, "rkd", _rkd(1, 2))),
        }
    ),
    "sp": Adapter(outs={"loss": terms((1.0, "sp", defaults))}),
}
