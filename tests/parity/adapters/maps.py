"""Methods on feature maps and on pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kdscale.api import Outputs, Shapes
from kdscale.losses.ab import boundary_distance
from kdscale.losses.at_grad import GradientAttention, input_derivative
from kdscale.losses.fsp import flow
from tests.parity.cases import Adapter, Case, Hyper, Out, defaults, terms

__all__ = ["ADAPTERS"]


def _ab(hp: Hyper) -> dict[str, Any]:
    return {"margin": hp["margin"], "connect": "always"}


def _ab_mean(hp: Hyper) -> dict[str, Any]:
    return {**_ab(hp), "reduction": "mean"}


def _ab_mapped(case: Case) -> list[tuple[Tensor, Tensor]]:
    """The student's features behind their connectors, each with the teacher's."""
    sides = zip(case.student.features, case.teacher.features, strict=True)
    return [(case.part("ab", _ab(case.hp), f"connectors.{i}", s), t) for i, (s, t) in enumerate(sides)]


def _ab_layers(case: Case) -> Tensor:
    """The distance of each layer, summed over the batch too, before weights and factor."""
    margin = case.hp["margin"]
    return torch.stack([boundary_distance(s, t, margin).sum() for s, t in _ab_mapped(case)])


def _ab_mismatch(case: Case) -> Tensor:
    return torch.stack([((s > 0) != (t > 0)).to(s.dtype).mean() for s, t in _ab_mapped(case)])


def _fitnet(hp: Hyper) -> dict[str, Any]:
    return {"relu": hp["use_relu"]} if "use_relu" in hp else {"regressor": "conv1x1"}


def _regressed(case: Case) -> Tensor:
    return case.part("fitnet", _fitnet(case.hp), "regressors.0", case.student.features[0])


def _at(hp: Hyper) -> dict[str, Any]:
    return {"p": hp["p"]}


def _at_layers(case: Case) -> Tensor:
    layers = [replace(case, inputs={f"f_{side}": case.inputs[f"f_{side}.{i}"] for side in "st"}) for i in case.layers]
    return torch.stack([layer.value("at", _at(case.hp)) for layer in layers])


def _fsp_repdistiller(hp: Hyper) -> dict[str, Any]:
    return {"reduction": "mean", "pool": "avg"}


def _fsp_layers(case: Case) -> Tensor:
    """Each pair of consecutive taps alone."""
    pairs = [
        {f"f_{side}.{i}": case.inputs[f"f_{side}.{first + i}"] for side in "st" for i in range(2)}
        for first in case.layers[:-1]
    ]
    return torch.stack([replace(case, inputs=p).value("fsp", _fsp_repdistiller(case.hp)) for p in pairs])


def _flow(pool: Literal["max", "avg"]) -> Callable[[int], Out]:
    return lambda first: lambda case: flow(case.inputs[f"f_s.{first}"], case.inputs[f"f_s.{first + 1}"], pool)


def _answer(case: Case, side: str) -> Outputs:
    """What the file's network answers: conv3x3, softplus, flatten, linear."""
    pixels = case.inputs["x"]
    maps = functional.conv2d(pixels, case.weights[f"{side}.conv.weight"], case.weights[f"{side}.conv.bias"], padding=1)
    flat = functional.softplus(maps).flatten(1)
    return Outputs(
        functional.linear(flat, case.weights[f"{side}.fc.weight"], case.weights[f"{side}.fc.bias"]), [], pixels
    )


def _input_derivative(side: str) -> Out:
    def out(case: Case) -> Tensor:
        answer = _answer(case, side)
        values = functional.cross_entropy(answer.logits, case.batch.labels, reduction="none")
        return input_derivative(values, case.inputs["x"], create_graph=True)

    return out


def _at_grad(mode: Literal["norm", "squared"]) -> Out:
    def out(case: Case) -> Tensor:
        student, teacher = (_answer(case, side) for side in "st")
        loss = GradientAttention(GradientAttention.Config(mode=mode), Shapes(classes=student.logits.shape[1]))
        return loss(student, teacher, case.batch).mean()

    return out


ADAPTERS: dict[str, Adapter] = {
    "ab": Adapter(
        outs={
            "loss": terms((1.0, "ab", _ab)),
            "loss_mean": terms((1.0, "ab", _ab_mean)),
            "loss_layers_sum": _ab_layers,
            "mismatch_fraction": _ab_mismatch,
        },
        weight_names={f"connector.#.{part}": f"connectors.#.{part}" for part in ("0.weight", "1.weight", "1.bias")},
        numbered={"mapped_s": lambda layer: lambda case: _ab_mapped(case)[layer][0]},
    ),
    "at": Adapter(
        outs={
            "loss": terms((1.0, "at", _at)),
            "loss_layers": _at_layers,
            "loss_paper_norm": terms((1.0, "at", lambda hp: {**_at(hp), "mode": "paper"})),
        }
    ),
    "at_grad": Adapter(
        outs={
            "J_s": _input_derivative("s"),
            "J_t": _input_derivative("t"),
            "loss_norm": _at_grad("norm"),
            "loss_sq": _at_grad("squared"),
        }
    ),
    "fitnet": Adapter(
        outs={
            "loss": terms((1.0, "fitnet", _fitnet)),
            "loss_half_sum_per_sample": terms((1.0, "fitnet", lambda hp: {**_fitnet(hp), "reduction": "paper"})),
            "regressed": _regressed,
        },
        weight_names={
            "conv.weight": "regressors.0.conv.weight",
            "conv.bias": "regressors.0.conv.bias",
            "bn.weight": "regressors.0.bn.weight",
            "bn.bias": "regressors.0.bn.bias",
            "transform.weight": "regressors.0.weight",
        },
    ),
    "fsp": Adapter(
        outs={
            "loss_paper": terms(("lambda_i", "fsp", defaults)),
            "loss_repdistiller": terms((1.0, "fsp", _fsp_repdistiller)),
            "loss_layers_repdistiller": _fsp_layers,
            "loss_torchdistill": terms((1.0, "fsp", lambda hp: {"reduction": "columns"})),
        },
        numbered={"G_s_max.": _flow("max"), "G_s_avg.": _flow("avg")},
    ),
}
