"""Methods whose own parts learn beside the student, or remember."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdscale.api import Shapes
from kdscale.losses.crd import Contrastive
from kdscale.losses.reviewkd import KnowledgeReview, context_distance
from kdscale.nn.variance import weigh_by_variance
from tests.parity.cases import Adapter, Case, Hyper, Out, terms

__all__ = ["ADAPTERS"]


def _crd(case: Case, until: int) -> tuple[Contrastive, Tensor]:
    """The loss after so many steps, and the last one's value."""
    hp, banks = case.hp, ("memory_s", "memory_t")
    options = {"dimensions": hp["feat_dim"], "negatives": hp["K"], "temperature": hp["T"], "momentum": hp["momentum"]}
    options |= {"eps": hp["eps"]}
    shapes = [tuple(case.inputs[f"f_{side}.1"].shape[1:]) for side in "st"]
    loss = Contrastive(Contrastive.Config(**options), Shapes(1, shapes[:1], shapes[1:], hp["n_data"]))
    loss = loss.to(case.inputs["memory_s"].dtype)
    loss.load_state_dict({name: case.inputs[name].detach() for name in banks}, strict=False)

    def steps(loss: Contrastive) -> Tensor:
        inputs = case.inputs
        for step in range(1, until + 1):
            value = loss.contrast(inputs[f"f_s.{step}"], inputs[f"f_t.{step}"], inputs[f"contrast_idx.{step}"])
        return value.mean()

    return loss, case.used(loss, steps)


def _crd_bank(name: str) -> Callable[[int], Out]:
    return lambda until: lambda case: _crd(case, until)[0].get_buffer(name)


def _crd_z(i: int) -> Out:
    return lambda case: _crd(case, 1)[0].log_z[i].exp()


def _ft(**options: Any) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"rate": hp["k"], "reconstruction": 0.0, **options}


def _ft_reconstruction(form: str) -> Out:
    """The paraphraser's own loss: what it adds to the student's."""
    learning = _ft(reconstruction=1.0, reconstruct=form)
    return terms((1.0, "ft", learning), (-1.0, "ft", _ft()))


def _ft_factor(side: str) -> Out:
    def out(case: Case) -> Tensor:
        path = {"t": "paraphrasers.0.encoder", "s": "translators.0"}[side]
        return case.part("ft", _ft()(case.hp), path, (case.teacher if side == "t" else case.student).features[0])

    return out


FT_PARTS = {
    "paraphraser.conv": "paraphrasers.0.encoder",
    "paraphraser.deconv": "paraphrasers.0.decoder",
    "translator.conv": "translators.0",
}


def _pad(**options: Any) -> Callable[[Hyper], dict[str, Any]]:
    return lambda hp: {"variance": "dimension", "eps": hp["eps"], **options}


def _pad_log_variance(case: Case) -> Tensor:
    return case.part("pad", _pad()(case.hp), "heads.0", case.student.features[0])


def _pad_given_variance(case: Case) -> Tensor:
    """One log-variance a sample, given by the file; the paper's formula has no eps."""
    error = (case.teacher.features[0].detach() - case.student.features[0]).square().sum(dim=1)
    return weigh_by_variance(error, case.inputs["log_var_scalar"], 0.0).mean()


def _projector(hp: Hyper) -> dict[str, Any]:
    return {"form": "log_sum", "alpha": hp["alpha"], "bn_eps": hp["bn_eps"]}


def _projector_correlation(hp: Hyper) -> dict[str, Any]:
    """With torch's own eps: the published code's 0 is refused in training."""
    return {"form": "cross_correlation", "alpha": hp["alpha"], "bn_eps": 1e-5}


def _of_pooled(out: Out) -> Out:
    """For files that call pooled features z, as others call logits."""

    def of_pooled(case: Case) -> Tensor:
        inputs = {name.replace("z_", "f_"): value for name, value in case.inputs.items()}
        return out(replace(case, inputs=inputs))

    return of_pooled


def _review(hp: Hyper) -> dict[str, Any]:
    return {"pool_sizes": hp["pool_sizes"], "most_channels": hp.get("mid_channel", 512)}


def _review_or_context(case: Case) -> Tensor:
    """Without a width of fused maps a file means the context loss alone, summed over levels."""
    if "mid_channel" in case.hp:
        return case.value("reviewkd", _review(case.hp))
    pairs = zip(case.student.features, case.teacher.features, strict=True)
    return torch.stack([context_distance(s, t, case.hp["pool_sizes"]).mean() for s, t in pairs]).sum()


def _review_fused(level: int) -> Out:
    def out(case: Case) -> Tensor:
        loss = case.loss("reviewkd", _review(case.hp))
        assert isinstance(loss, KnowledgeReview)
        sizes = [f.shape[2:] for f in case.teacher.features]
        return case.used(loss, lambda loss: loss.fuse(case.student.features, sizes)[level])

    return out


REVIEW_PARTS = {
    **{f"conv1.{part}": f"enter.{part}" for part in ("0.weight", "1.weight", "1.bias")},
    **{f"conv2.{part}": f"leave.{part}" for part in ("0.weight", "1.weight", "1.bias")},
    **{f"att_conv.0.{part}": f"attention.{part}" for part in ("weight", "bias")},
}


def _vid(hp: Hyper) -> dict[str, Any]:
    return {"hidden": hp["mid_channels"], "initial_variance": hp["init_pred_var"], "eps": hp["eps"]}


ADAPTERS: dict[str, Adapter] = {
    "crd": Adapter(
        outs={"Z_s": _crd_z(0), "Z_t": _crd_z(1)},
        numbered={
            "loss.": lambda step: lambda case: _crd(case, step)[1],
            **{f"{bank}_after.": _crd_bank(bank) for bank in ("memory_s", "memory_t")},
        },
        weight_names={
            f"embed_{side}.linear.{part}": f"embed_{side}.{part}" for side in "st" for part in ("weight", "bias")
        },
    ),
    "ft": Adapter(
        outs={
            "loss": terms((1.0, "ft", _ft())),
            "loss_p2": terms((1.0, "ft", _ft(distance="l2"))),
            "loss_p1_sum_per_sample": terms((1.0, "ft", _ft(distance="l1_sum"))),
            "loss_repdistiller": terms((1.0, "ft", _ft(distance="at_like"))),
            "loss_rec_l1": _ft_reconstruction("l1"),
            "loss_rec_mse": _ft_reconstruction("mse"),
            "factor_t": _ft_factor("t"),
            "factor_s": _ft_factor("s"),
        },
        weight_names={
            f"{theirs}{layer}.{part}": f"{own}.{layer}.0.{part}"
            for theirs, own in FT_PARTS.items()
            for layer in range(3)
            for part in ("weight", "bias")
        },
    ),
    "pad": Adapter(
        outs={
            "loss": terms((1.0, "pad", _pad())),
            "loss_sum_dims": terms((1.0, "pad", _pad(reduction="sum"))),
            "loss_scalar_var": _pad_given_variance,
            "log_var": _pad_log_variance,
        },
        weight_names={
            f"var_estimator.{layer}.{part}": f"heads.0.{own}.{part}"
            for layer, own in enumerate(("linear", "norm"))
            for part in ("weight", "bias")
        },
    ),
    "projector": Adapter(
        outs={
            "loss": _of_pooled(terms((1.0, "projector", _projector))),
            "loss_corr_diag": _of_pooled(terms((1.0, "projector", _projector_correlation))),
        },
        weight_names={f"embed.{part}": f"projectors.0.{part}" for part in ("weight", "bias")},
    ),
    "reviewkd": Adapter(
        outs={"loss": _review_or_context},
        weight_names={f"abf.#.{theirs}": f"levels.#.{own}" for theirs, own in REVIEW_PARTS.items()},
        numbered={"fused.": _review_fused},
    ),
    "vid": Adapter(
        outs={"loss": terms((1.0, "vid", _vid))},
        weight_names={
            "log_scale": "raw_variances.0",
            **{f"regressor.{layer}.weight": f"regressors.0.{layer}.weight" for layer in (0, 2, 4)},
        },
    ),
}
