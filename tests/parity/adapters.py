"""How each method's golden vectors map to kdscale's losses: one declarative entry a method.

An entry depends on the method and its hyper-parameters only, never on a file or case. `outs` says for each expected
output what computes it: a weighted sum of losses (`terms`), each with the options that `options` derives from the
hyper-parameters, or any function of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kdscale import plugins
from kdscale.api import Batch, Loss, Outputs, Shapes

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
    def batch(self) -> Batch:
        size = len(next(iter(self.inputs.values())))
        labels = self.inputs.get("y", torch.zeros(size, dtype=torch.int64))
        return Batch(torch.zeros(size, 1, 1, 1, dtype=torch.uint8), labels, torch.arange(size), view=0)

    def value(self, name: str, options: Mapping[str, Any]) -> Tensor:
        """The mean over the batch of one loss, with the file's weights in its own parts."""
        loss = self._loss(name, options)
        teacher = self.teacher if loss.needs_teacher else None
        return torch.func.functional_call(loss, self._parts(loss), (self.student, teacher, self.batch)).mean()

    def part(self, name: str, options: Mapping[str, Any], path: str, *inputs: Tensor) -> Tensor:
        """What one trainable part of a loss gives, with the file's weights in it."""
        loss = self._loss(name, options)
        weights = {n.removeprefix(f"{path}."): w for n, w in self._parts(loss).items() if n.startswith(f"{path}.")}
        got: Tensor = torch.func.functional_call(loss.get_submodule(path), weights, inputs)
        return got

    def _loss(self, name: str, options: Mapping[str, Any]) -> Loss:
        plugin = plugins.load("losses", name)
        student, teacher = self.student, self.teacher
        shapes = Shapes(
            classes=student.logits.shape[1],
            student=[tuple(f.shape[1:]) for f in student.features],
            teacher=[tuple(f.shape[1:]) for f in teacher.features],
        )
        loss: Loss = plugin(plugin.Config(**options), shapes)
        return loss.to(next(iter(self.inputs.values())).dtype).train()

    def _parts(self, loss: Loss) -> dict[str, Tensor]:
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


def _ce(hp: Hyper) -> dict[str, Any]:
    return {}


def _kd(hp: Hyper) -> dict[str, Any]:
    return {"temperature": hp["T"], "reduction": "batchmean"}


def _kd_as_cross_entropy(hp: Hyper) -> dict[str, Any]:
    return {**_kd(hp), "form": "ce"}


def _plain(hp: Hyper) -> dict[str, Any]:
    """The defaults are the reference's."""
    return {}


def _pkt_row(hp: Hyper) -> dict[str, Any]:
    return {"reduction": "row"}


def _pkt_offdiagonal(hp: Hyper) -> dict[str, Any]:
    return {"reduction": "offdiagonal"}


def _rkd(distance: float, angle: float) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"distance": distance, "angle": angle}


def _cc(kernel: str) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"kernel": kernel, "gamma": hp["gamma"], "order": hp["P"]}


def _embedding(side: str) -> Out:
    return lambda case: case.part("cc", _cc("rbf")(case.hp), f"embed_{side}.0", case.inputs[f"f_{side}"])


def _dist(hp: Hyper) -> dict[str, Any]:
    return {"temperature": hp["tau"], "inter": hp["beta"], "intra": hp["gamma"]}


def _dist_part(inter: float, intra: float) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"temperature": hp["tau"], "inter": inter, "intra": intra, "scale_t2": False}


def _by_pixel(out: Out) -> Out:
    """Every pixel of a segmentation is a sample; other logits stay as they are."""
    return lambda case: out(
        replace(case, inputs={name: z.movedim(1, -1).flatten(0, -2) for name, z in case.inputs.items()})
    )


def _ickd(reduction: str) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"reduction": reduction}


def _vid(hp: Hyper) -> dict[str, Any]:
    return {"hidden": hp["mid_channels"], "initial_variance": hp["init_pred_var"]}


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
    "dist": Adapter(
        outs={
            "loss": _by_pixel(terms((1.0, "dist", _dist))),
            "inter": terms((1.0, "dist", _dist_part(1, 0))),
            "intra": terms((1.0, "dist", _dist_part(0, 1))),
        }
    ),
    "ickd": Adapter(
        outs={
            "loss": terms((1.0, "ickd", _plain)),
            "loss_c2": terms((1.0, "ickd", _ickd("paper"))),
            "loss_imagenet": terms((1.0, "ickd", _ickd("imagenet"))),
        },
        weight_names={
            "embed_s.conv2d.weight": "embed.0.0.weight",
            "embed_s.l2norm.weight": "embed.0.1.weight",
            "embed_s.l2norm.bias": "embed.0.1.bias",
        },
    ),
    "kd": Adapter(
        outs={
            "loss_kd": terms((1.0, "kd", _kd)),
            "loss_ce": terms((1.0, "ce", _ce)),
            "loss_total": terms(("ce_weight", "ce", _ce), ("kd_weight", "kd", _kd)),
            "loss_soft_ce_T2": terms((1.0, "kd", _kd_as_cross_entropy)),
            "loss_seed_half": terms((0.5, "ce", _ce), (0.5, "kd", _kd_as_cross_entropy)),
        }
    ),
    "pkt": Adapter(
        outs={
            "loss": terms((1.0, "pkt", _plain)),
            "loss_row_kl": terms((1.0, "pkt", _pkt_row)),
            "paper_offdiag": terms((1.0, "pkt", _pkt_offdiagonal)),
        }
    ),
    "rkd": Adapter(
        outs={
            "loss_dist": terms((1.0, "rkd", _rkd(1, 0))),
            "loss_angle": terms((1.0, "rkd", _rkd(0, 1))),
            "loss_25_50": terms((1.0, "rkd", _plain)),
            "loss_1_2": terms((1.0, "rkd", _rkd(1, 2))),
        }
    ),
    "sp": Adapter(outs={"loss": terms((1.0, "sp", _plain))}),
    "vid": Adapter(
        outs={"loss": terms((1.0, "vid", _vid))},
        weight_names={
            "log_scale": "raw_variances.0",
            **{f"regressor.{layer}.weight": f"regressors.0.{layer}.weight" for layer in (0, 2, 4)},
        },
    ),
}
