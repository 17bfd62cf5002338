"""How each method's golden vectors map to kdscale's losses: one declarative entry a method.

An entry depends on the method and its hyper-parameters only, never on a file or case. `outs` says for each expected
output what computes it: a weighted sum of losses (`terms`), each with the options that `options` derives from the
hyper-parameters, or any function of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kdscale import plugins
from kdscale.api import Batch, Loss, Outputs, Shapes
from kdscale.losses.at_grad import GradientAttention, input_derivative
from kdscale.losses.fsp import flow

Hyper = Mapping[str, Any]


@dataclass
class Case:
    """One case of a golden file, as tensors of one dtype."""

    hp: Hyper
    inputs: dict[str, Tensor]
    weights: dict[str, Tensor]
    weight_names: Mapping[str, str]

    @property
    def student(self) -> Outputs:
        return self._outputs("s")

    @property
    def teacher(self) -> Outputs:
        return self._outputs("t")

    @property
    def layers(self) -> range:
        """Numbers of the tapped layers, where there are several."""
        return range(sum(name.startswith("f_s.") for name in self.inputs))

    @property
    def batch(self) -> Batch:
        size = len(next(iter(self.inputs.values())))
        labels = self.inputs.get("y", torch.zeros(size, dtype=torch.int64))
        return Batch(torch.zeros(size, 1, 1, 1, dtype=torch.uint8), labels, torch.arange(size), view=0)

    def value(self, name: str, options: Mapping[str, Any]) -> Tensor:
        """The mean over the batch of one loss, with the file's weights in its own parts."""
        loss = self.loss(name, options)
        teacher = self.teacher if loss.needs_teacher else None
        return torch.func.functional_call(loss, self.parts(loss), (self.student, teacher, self.batch)).mean()

    def loss(self, name: str, options: Mapping[str, Any]) -> Loss:
        """A loss built for this case, training."""
        plugin = plugins.load("losses", name)
        student, teacher = self.student, self.teacher
        shapes = Shapes(
            classes=student.logits.shape[1],
            student=[tuple(f.shape[1:]) for f in student.features],
            teacher=[tuple(f.shape[1:]) for f in teacher.features],
        )
        loss: Loss = plugin(plugin.Config(**options), shapes)
        return loss.to(next(iter(self.inputs.values())).dtype).train()

    def parts(self, loss: Loss) -> dict[str, Tensor]:
        """The file's weights by the loss's own names."""
        mine = dict(loss.named_parameters())
        return {own: self.weights[theirs] for theirs, own in self.weight_names.items() if own in mine}

    def _outputs(self, side: str) -> Outputs:
        """`z_s` are logits; `f_s`, or `f_s.0`, `f_s.1` ... from shallow to deep, are features."""
        names = sorted((n for n in self.inputs if n.split(".")[0] == f"f_{side}"), key=lambda n: (len(n), n))
        features = [self.inputs[n] for n in names]
        nothing = torch.zeros(len(next(iter(self.inputs.values()))), 1)
        return Outputs(self.inputs.get(f"z_{side}", nothing), features)


Out = Callable[[Case], Tensor]


@dataclass(frozen=True)
class Adapter:
    """How one method is computed here."""

    outs: Mapping[str, Out]
    weight_names: Mapping[str, str] = field(default_factory=dict)
    """The file's name of a trainable part -> the loss's own."""


def terms(*summands: tuple[float | str, str, Callable[[Hyper], dict[str, Any]]]) -> Out:
    """A weighted sum of losses: (weight or the name of the hyper-parameter that holds it, loss, its options)."""

    def out(case: Case) -> Tensor:
        values = [
            (float(case.hp[weight]) if isinstance(weight, str) else weight) * case.value(name, options(case.hp))
            for weight, name, options in summands
        ]
        return torch.stack(values).sum()

    return out


# --------------------------------------------------------------------------- methods


def _defaults(hp: Hyper) -> dict[str, Any]:
    return {}


def _kd(hp: Hyper) -> dict[str, Any]:
    return {"temperature": hp["T"], "reduction": "batchmean"}


def _kd_as_cross_entropy(hp: Hyper) -> dict[str, Any]:
    return {**_kd(hp), "form": "ce"}


def _fitnet(hp: Hyper) -> dict[str, Any]:
    return {"relu": hp["use_relu"]} if "use_relu" in hp else {"regressor": "conv1x1"}


def _regressed(case: Case) -> Tensor:
    loss = case.loss("fitnet", _fitnet(case.hp))
    regressor = loss.get_submodule("regressors.0")
    weights = {name.removeprefix("regressors.0."): value for name, value in case.parts(loss).items()}
    out: Tensor = torch.func.functional_call(regressor, weights, (case.student.features[0],))
    return out


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


def _flow(first: int, pool: Literal["max", "avg"]) -> Out:
    return lambda case: flow(case.inputs[f"f_s.{first}"], case.inputs[f"f_s.{first + 1}"], pool)


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
        return input_derivative(values, case.inputs["x"], create_graph=False)

    return out


def _at_grad(mode: Literal["norm", "squared"]) -> Out:
    def out(case: Case) -> Tensor:
        loss = GradientAttention(GradientAttention.Config(mode=mode), Shapes(classes=7))
        return loss(_answer(case, "s"), _answer(case, "t"), case.batch).mean()

    return out


ADAPTERS: dict[str, Adapter] = {
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
            "loss_paper": terms((1.0, "fsp", _defaults)),
            "loss_repdistiller": terms((1.0, "fsp", _fsp_repdistiller)),
            "loss_layers_repdistiller": _fsp_layers,
            "loss_torchdistill": terms((1.0, "fsp", lambda hp: {"reduction": "columns"})),
            "G_s_max.0": _flow(0, "max"),
            "G_s_max.1": _flow(1, "max"),
            "G_s_avg.0": _flow(0, "avg"),
            "G_s_avg.1": _flow(1, "avg"),
        }
    ),
    "kd": Adapter(
        outs={
            "loss_kd": terms((1.0, "kd", _kd)),
            "loss_ce": terms((1.0, "ce", _defaults)),
            "loss_total": terms(("ce_weight", "ce", _defaults), ("kd_weight", "kd", _kd)),
            "loss_soft_ce_T2": terms((1.0, "kd", _kd_as_cross_entropy)),
            "loss_seed_half": terms((0.5, "ce", _defaults), (0.5, "kd", _kd_as_cross_entropy)),
        }
    ),
    "logits": Adapter(
        outs={
            "loss_mse_mean": terms((1.0, "logits", _defaults)),
            "loss_paper": terms((1.0, "logits", lambda hp: {"reduction": "paper"})),
        }
    ),
}
