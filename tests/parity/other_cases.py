"""Cases in the golden format, drawn: other shapes, widths and hyper-parameters than the files', and edge cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.parity.adapters import ADAPTERS
from tests.parity.cases import Case

__all__ = ["OTHER", "Other"]

Shape = Sequence[int]
Edit = Callable[[dict[str, Tensor]], None]


@dataclass(frozen=True)
class Other:
    """One case: what is drawn, by the file's names."""

    method: str
    hp: Mapping[str, Any]
    inputs: Mapping[str, Shape]
    weights: Mapping[str, Shape] = field(default_factory=dict)
    integers: Mapping[str, Tensor] = field(default_factory=dict)
    edit: Edit | None = None
    """Of the drawn inputs, in place."""
    kinks: frozenset[str] = frozenset()
    """Outputs without a derivative there."""
    note: str = ""
    spread: float = 1.0
    """Of the inputs."""

    def case(self, dtype: torch.dtype) -> Case:
        """The same numbers for every dtype, up to its rounding."""
        rng = torch.Generator().manual_seed(sum(map(ord, str(self))))

        def draw(shape: Shape, scale: float) -> Tensor:
            return torch.randn(tuple(shape), generator=rng, dtype=torch.float64) * scale

        inputs = {name: draw(shape, self.spread) for name, shape in self.inputs.items()}
        weights = {name: draw(shape, 0.5) for name, shape in self.weights.items()}
        if self.edit is not None:
            self.edit(inputs)
        found = [
            {name: x.float().to(dtype).requires_grad_() for name, x in drawn.items()} for drawn in (inputs, weights)
        ]
        return Case(self.hp, {**found[0], **self.integers}, found[1], ADAPTERS[self.method].weight_names)

    def __str__(self) -> str:
        shapes = "-".join("x".join(map(str, shape)) for shape in list(self.inputs.values())[:2])
        return f"{self.method}-{shapes}{'-' + self.note if self.note else ''}"


def zero(name: str, row: int = 0) -> Edit:
    return lambda x: x[name].__setitem__(row, 0.0)


def twice(name: str) -> Edit:
    return lambda x: x[name].__setitem__(1, x[name][0].clone())


def _maps(sides: str, sizes: Mapping[str, Sequence[Shape]], samples: int) -> dict[str, Shape]:
    """Several layers: f_s.0, f_t.0, f_s.1 ..."""
    return {f"f_{side}.{i}": (samples, *sizes[side][i]) for i in range(len(sizes[sides[0]])) for side in sides}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# --------------------------------------------------------------------------- logits


def _kd(t: float, ce: float, kd: float, shape: Shape, **more: Any) -> Other:
    hp, y = {"T": t, "ce_weight": ce, "kd_weight": kd}, torch.arange(shape[0]) * 3 % shape[1]
    return Other("kd", hp, {"z_s": shape, "z_t": shape}, integers={"y": y}, **more)


def _logits(method: str, hp: Mapping[str, Any], shape: Shape, **more: Any) -> Other:
    return Other(method, hp, {"z_s": shape, "z_t": shape}, **more)


def _constant_teacher(x: dict[str, Tensor]) -> None:
    x["z_t"][1] = 2.5


LOGITS = [
    _kd(4.0, 0.1, 0.9, (1, 2)), _kd(0.7, 2.0, 0.0, (13, 3)), _kd(9.0, 0.3, 5.0, (5, 257), spread=6.0),
    _logits("logits", {}, (1, 1)), _logits("logits", {}, (9, 33), spread=20.0),
    _logits("logit_std", {"T": 3.0, "eps": 1e-7}, (5, 3)), _logits("logit_std", {"T": 0.8, "eps": 1e-3}, (1, 41)),
    _logits("logit_std", {"T": 2.0, "eps": 1e-7}, (3, 7), edit=_constant_teacher, note="constant"),
    _logits("dist", {"tau": 2.5, "beta": 0.7, "gamma": 3.0, "eps": 1e-8}, (3, 3)),
    _logits("dist", {"tau": 1.0, "beta": 0.0, "gamma": 1.0, "eps": 1e-4}, (11, 50)),
    _logits("dist", {"tau": 0.5, "beta": 1.0, "gamma": 2.0, "eps": 1e-8}, (3, 4, 2, 5)),
]  # fmt: skip


# --------------------------------------------------------------------------- relations


def _cc(samples: int, own: int, theirs: int, d: int, gamma: float, order: int) -> Other:
    weights = {"embed_s.linear.weight": (d, own), "embed_s.linear.bias": (d,), "embed_t.linear.weight": (d, theirs)}
    hp = {"gamma": gamma, "P": order}
    return Other(
        "cc", hp, {"f_s": (samples, own), "f_t": (samples, theirs)}, {**weights, "embed_t.linear.bias": (d,)},
        note=f"P{order}",
    )  # fmt: skip


def _ickd(f_s: Shape, f_t: Shape) -> Other:
    weights = {"embed_s.conv2d.weight": (f_t[1], f_s[1], 1, 1), **_norm("embed_s.l2norm", f_t[1])}
    return Other("ickd", {}, {"f_s": f_s, "f_t": f_t}, weights)


def _pair(method: str, hp: Mapping[str, Any], f_s: Shape, f_t: Shape, **more: Any) -> Other:
    return Other(method, hp, {"f_s": f_s, "f_t": f_t}, **more)


PKT, RKD, SP = {"eps": 1e-7}, {"eps": 1e-12, "huber_delta": 1.0}, {"eps": 1e-12}
PKT_OUTS = frozenset({"loss", "loss_row_kl", "paper_offdiag"})
RKD_OUTS = frozenset({"loss_dist", "loss_angle", "loss_25_50", "loss_1_2"})
RELATIONS = [
    _pair("pkt", PKT, (2, 3), (2, 1)), _pair("pkt", PKT, (31, 5), (31, 64)),
    _pair("pkt", {"eps": 1e-4}, (7, 6), (7, 9), note="eps"),
    _pair("pkt", PKT, (5, 4), (5, 8), edit=zero("f_s"), note="zero-student", kinks=PKT_OUTS),
    _pair("pkt", PKT, (5, 4), (5, 8), edit=zero("f_t"), note="zero-teacher"),
    _pair("pkt", PKT, (5, 4), (5, 8), edit=twice("f_s"), note="twice"),
    _pair("rkd", RKD, (2, 3), (2, 1)), _pair("rkd", RKD, (19, 4), (19, 33)),
    _pair("rkd", RKD, (5, 7), (5, 2), spread=30.0, note="far"),
    _pair("rkd", RKD, (6, 4), (6, 9), edit=twice("f_t"), note="twice-teacher"),
    _pair("rkd", RKD, (6, 4), (6, 9), edit=twice("f_s"), note="twice-student", kinks=RKD_OUTS),
    _pair("sp", SP, (2, 3, 1, 1), (2, 1, 5, 4)), _pair("sp", SP, (17, 4, 3, 2), (17, 9, 2, 2)),
    _pair("sp", SP, (5, 6), (5, 8), note="pooled"),
    _pair("sp", SP, (4, 3, 2, 2), (4, 5, 2, 2), edit=zero("f_t"), note="zero-teacher"),
    _pair("sp", SP, (4, 3, 2, 2), (4, 5, 2, 2), edit=zero("f_s"), note="zero-student", kinks=frozenset({"loss"})),
    _pair("sp", SP, (4, 3, 2, 2), (4, 5, 2, 2), edit=twice("f_s"), note="twice"),
    _cc(2, 3, 4, 2, 0.4, 2), _cc(9, 5, 30, 7, 1.3, 4), _cc(6, 8, 2, 128, 0.05, 1),
    _ickd((2, 3, 4, 4), (2, 1, 4, 4)), _ickd((5, 4, 3, 6), (5, 11, 3, 6)), _ickd((3, 9, 7, 7), (3, 2, 4, 4)),
]  # fmt: skip


# --------------------------------------------------------------------------- maps


def _at(p: float, own: Sequence[Shape], theirs: Sequence[Shape], samples: int = 3, **more: Any) -> Other:
    return Other("at", {"p": p, "eps": 1e-12}, _maps("st", {"s": own, "t": theirs}, samples), **more)


def _fsp(own: Sequence[Shape], theirs: Sequence[Shape], samples: int = 3, lambda_i: float = 1.0) -> Other:
    maps = _maps("st", {"s": own, "t": theirs}, samples)
    return Other("fsp", {"lambda_i": lambda_i}, maps, note=f"{len(own)}-layers")


def _fitnet(f_s: Shape, f_t: Shape, kernel: Shape, *, relu: bool = True) -> Other:
    weights = {"conv.weight": (*kernel,), "conv.bias": (f_t[1],), **_norm("bn", f_t[1])}
    return Other("fitnet", {"use_relu": relu}, {"f_s": f_s, "f_t": f_t}, weights, note=f"relu-{relu}")


def _ab(margin: float, own: Sequence[Shape], theirs: Sequence[int], samples: int = 3, **more: Any) -> Other:
    taught = [(channels, *shape[1:]) for channels, shape in zip(theirs, own, strict=True)]
    weights: dict[str, Shape] = {}
    for i, (shape, channels) in enumerate(zip(own, theirs, strict=True)):
        weights |= {f"connector.{i}.0.weight": (channels, shape[0], 1, 1), **_norm(f"connector.{i}.1", channels)}
    maps = _maps("st", {"s": own, "t": taught}, samples)
    return Other("ab", {"margin": margin}, maps, weights, note=f"{len(own)}-layers", **more)


def _at_grad(shape: Shape, own: int, theirs: int, classes: int) -> Other:
    samples, channels, height, width = shape
    weights: dict[str, Shape] = {}
    for side, k in (("s", own), ("t", theirs)):
        weights |= {f"{side}.conv.weight": (k, channels, 3, 3), f"{side}.conv.bias": (k,)}
        weights |= {f"{side}.fc.weight": (classes, k * height * width), f"{side}.fc.bias": (classes,)}
    return Other("at_grad", {}, {"x": shape}, weights, integers={"y": torch.arange(samples) % classes})


TWELVE = [(2, 2, 2)] * 12
MAPS = [
    _at(2, [(3, 7, 5)], [(1, 7, 5)]), _at(1, [(3, 4, 4), (2, 3, 3)], [(5, 8, 8), (4, 2, 2)], samples=1),
    _at(3, [(4, 6, 6)] * 5, [(2, 6, 3)] * 5), _at(2.5, [(2, 9, 9)], [(6, 4, 4)], note="uneven"), _at(2, TWELVE, TWELVE),
    _at(2, [(3, 4, 4)], [(3, 4, 4)], edit=zero("f_t.0"), note="zero-teacher"),
    _at_grad((2, 1, 4, 7), 3, 5, 3), _at_grad((5, 4, 3, 3), 2, 2, 11),
    _fsp([(2, 5, 5), (3, 5, 5)], [(2, 9, 9), (3, 9, 9)]), _fsp(TWELVE, TWELVE, samples=1),
    _fsp([(2, 4, 4), (3, 8, 8), (1, 2, 6)], [(2, 4, 4), (3, 2, 2), (1, 1, 1)], lambda_i=0.25),
    _fitnet((2, 3, 5, 5), (2, 7, 5, 5), (7, 3, 1, 1)), _fitnet((3, 4, 6, 6), (3, 2, 3, 3), (2, 4, 3, 3), relu=False),
    _fitnet((2, 3, 3, 3), (2, 4, 6, 6), (3, 4, 4, 4)), _fitnet((2, 3, 7, 7), (2, 4, 5, 5), (4, 3, 3, 3)),
    Other("fitnet", {}, {"f_s": (2, 1, 3, 5), "f_t": (2, 6, 3, 5)}, {"transform.weight": (6, 1, 1, 1)}),
    _ab(0.5, [(3, 5, 4)], [2]), _ab(3.0, [(4, 3, 3), (4, 2, 2)], [4, 1], samples=7), _ab(1.0, TWELVE, [3] * 12),
    _ab(1.0, [(3, 2, 2)], [3], edit=zero("f_t.0"), samples=4),
]  # fmt: skip


# --------------------------------------------------------------------------- learned


def _vid(f_s: Shape, f_t: Shape, middle: int, eps: float, initial: float) -> Other:
    weights = {"regressor.0.weight": (middle, f_s[1], 1, 1), "regressor.2.weight": (middle, middle, 1, 1)}
    weights |= {"regressor.4.weight": (f_t[1], middle, 1, 1), "log_scale": (f_t[1],)}
    hp = {"eps": eps, "init_pred_var": initial, "mid_channels": middle}
    return Other("vid", hp, {"f_s": f_s, "f_t": f_t}, weights)


def _pad(shape: Shape, eps: float) -> Other:
    width = shape[1]
    weights = {"var_estimator.0.weight": (width, width), "var_estimator.0.bias": (width,)}
    inputs = {"f_s": shape, "f_t": shape, "log_var_scalar": shape[:1]}
    return Other("pad", {"eps": eps}, inputs, {**weights, **_norm("var_estimator.1", width)})


def _projector(samples: int, own: int, theirs: int, alpha: float, bn_eps: float, **more: Any) -> Other:
    weights = {"embed.weight": (theirs, own), "embed.bias": (theirs,)}
    hp = {"alpha": alpha, "bn_eps": bn_eps}
    return Other("projector", hp, {"z_s": (samples, own), "z_t": (samples, theirs)}, weights, **more)


def _ft(k: float, f_s: Shape, f_t: Shape, **more: Any) -> Other:
    c, m, s = f_t[1], round(k * f_t[1]), f_s[1]
    shapes = {
        "paraphraser.conv": [(c, c), (m, c), (m, m)], "paraphraser.deconv": [(m, m), (m, c), (c, c)],
        "translator.conv": [(s, s), (m, s), (m, m)],
    }  # fmt: skip
    weights: dict[str, Shape] = {}
    for name, pairs in shapes.items():
        for i, pair in enumerate(pairs):
            bias = pair[1] if "deconv" in name else pair[0]
            weights |= {f"{name}{i}.weight": (*pair, 3, 3), f"{name}{i}.bias": (bias,)}
    return Other("ft", {"k": k, "factor_channels": m}, {"f_s": f_s, "f_t": f_t}, weights, **more)


def _crd(samples: int, steps: int, own: int, theirs: int, **hp: Any) -> Other:
    hp = {"T": 0.07, "momentum": 0.5, "K": 3, "n_data": 10, "feat_dim": 4, "eps": 1e-7, **hp}
    inputs: dict[str, Shape] = {f"memory_{side}": (hp["n_data"], hp["feat_dim"]) for side in "st"}
    integers: dict[str, Tensor] = {}
    rng = torch.Generator().manual_seed(samples)
    for step in range(1, steps + 1):
        inputs |= {f"f_s.{step}": (samples, own), f"f_t.{step}": (samples, theirs)}
        idx = torch.randperm(hp["n_data"], generator=rng)[:samples]
        others = torch.randint(0, hp["n_data"], (samples, hp["K"]), generator=rng)
        integers |= {f"idx.{step}": idx, f"contrast_idx.{step}": torch.cat([idx[:, None], others], dim=1)}
    weights = {
        f"embed_{side}.linear.{part}": shape
        for side, width in (("s", own), ("t", theirs))
        for part, shape in (("weight", (hp["feat_dim"], width)), ("bias", (hp["feat_dim"],)))
    }
    return Other("crd", hp, inputs, weights, integers, edit=_unit_banks, note=f"{samples}x{own}x{theirs}")


def _unit_banks(x: dict[str, Tensor]) -> None:
    for bank in ("memory_s", "memory_t"):
        x[bank] = x[bank] / x[bank].norm(dim=1, keepdim=True)


def _review(middle: int | None, own: Sequence[Shape], theirs: Sequence[Shape], pools: Sequence[int]) -> Other:
    hp: dict[str, Any] = {"pool_sizes": list(pools)} | ({} if middle is None else {"mid_channel": middle})
    weights: dict[str, Shape] = {}
    for i, (s, t) in enumerate(zip(own, theirs, strict=True)):
        if middle is None:
            continue
        weights |= {f"abf.{i}.conv1.0.weight": (middle, s[0], 1, 1), **_norm(f"abf.{i}.conv1.1", middle)}
        weights |= {f"abf.{i}.conv2.0.weight": (t[0], middle, 3, 3), **_norm(f"abf.{i}.conv2.1", t[0])}
        if i < len(own) - 1:
            weights |= {f"abf.{i}.att_conv.0.weight": (2, 2 * middle, 1, 1), f"abf.{i}.att_conv.0.bias": (2,)}
    return Other("reviewkd", hp, _maps("st", {"s": own, "t": theirs}, 3), weights, note=f"{len(own)}-levels-{middle}")


LEARNED = [
    _vid((2, 3, 4, 6), (2, 5, 4, 6), 2, 1e-5, 5.0), _vid((3, 1, 3, 3), (3, 2, 5, 5), 9, 1e-2, 1.0),
    _vid((1, 4, 8, 8), (1, 7, 3, 3), 7, 1e-5, 0.1),
    _pad((2, 3), 1e-6), _pad((15, 40), 1e-2), _pad((5, 1), 0.0),
    _projector(3, 4, 2, 4.0, 1e-4), _projector(21, 5, 33, 2.5, 1e-2), _projector(6, 8, 4, 5.0, 1e-4, spread=0.03),
    _ft(0.5, (2, 3, 4, 7), (2, 6, 4, 7)), _ft(1.5, (3, 1, 3, 3), (3, 2, 3, 3)), _ft(0.34, (1, 5, 8, 8), (1, 6, 4, 4)),
    _ft(0.5, (3, 4, 4, 4), (3, 6, 4, 4), edit=zero("f_t"), note="zero-teacher"),
    _crd(1, 1, 3, 2), _crd(5, 4, 7, 2, K=9, n_data=31, feat_dim=6), _crd(3, 2, 4, 4, T=0.5, momentum=0.9, eps=1e-3),
    _review(None, [(3, 9, 9), (2, 5, 5), (4, 2, 2), (1, 1, 1)], [(3, 9, 9), (2, 5, 5), (4, 2, 2), (1, 1, 1)], (4, 1)),
    _review(None, [(3, 8, 8)], [(3, 8, 8)], (5, 3)),
    _review(4, [(3, 6, 6), (4, 1, 1)], [(5, 6, 6), (2, 1, 1)], (4, 2, 1)),
    _review(3, [(2, 8, 8)] * 4 + [(3, 4, 4)] * 5 + [(6, 1, 1)], [(3, 4, 4)] * 9 + [(2, 1, 1)], (2, 1)),
]  # fmt: skip

OTHER: list[Other] = [*LOGITS, *RELATIONS, *MAPS, *LEARNED]
