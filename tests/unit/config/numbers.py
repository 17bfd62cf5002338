"""Numbers that kdscale makes, to be compared with those it made: run as a program this writes numbers.json anew.

    python -m tests.unit.config.numbers

A finished stage stands for these numbers. Where they change, `revision` of the plug-in is raised with them, or
NUMERICS of kdscale/config/digest.py where no plug-in is to blame; else old stages pass for what would be made now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdscale import plugins
from kdscale.api import Batch, DatasetInfo, Outputs, Shapes
from kdscale.config.digest import NUMERICS
from kdscale.config.schema import AugmentConfig, DataConfig, StudentConfig
from kdscale.draws import hash64

FILE = Path(__file__).with_name("numbers.json")
B, C, FEATURES = 4, 5, (6, 3, 3)
TAPS = {"fsp": 2}
"""Of a loss that compares layers with each other."""


def counted(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers in [-1, 1) that no library's generator decides."""
    bits = hash64(seed, np.arange(int(np.prod(shape))))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1).reshape(shape)


def answer(side: int, taps: int, *, pixels: bool) -> Outputs:
    """Made-up outputs; with `pixels` the logits hang on them."""
    features = [counted((B, *FEATURES), side + 2 + 2 * tap) for tap in range(taps)]
    if not pixels:
        return Outputs(3 * counted((B, C), side), features)
    images = counted((B, 1, 8, 8), side + 2).requires_grad_()
    return Outputs((images.flatten(1) @ counted((64, C), side)).sin(), features, images)


def of_loss(name: str) -> list[float]:
    """A loss with its default options on made-up outputs."""
    cls = plugins.load("losses", name)
    taps = TAPS.get(name, 1)
    torch.manual_seed(0)
    shapes = [FEATURES] * taps
    loss = cls(cls.Config(), Shapes(C, shapes, shapes, train_rows=B)).double()
    student, teacher = (answer(i, taps, pixels=loss.needs_input_grad) for i in (0, 1))
    batch = Batch(torch.zeros(B, 1, 8, 8, dtype=torch.uint8), torch.arange(B) % C, torch.arange(B), view=0)
    values: Tensor = loss(student, teacher, batch)
    return [float(x) for x in values.detach().flatten()]


def of_modifier(name: str) -> list[float]:
    """A modifier with its default options: squared gaps of the logits that it shows, as it weighs and picks them."""
    cls = plugins.load("modifiers", name)
    torch.manual_seed(0)
    modifier = cls(cls.Config(), Shapes(C, [FEATURES], [FEATURES], train_rows=B)).double()
    batch = Batch(torch.zeros(B, 1, 8, 8, dtype=torch.uint8), torch.arange(B) % C, torch.arange(B), view=0)
    student, teacher = modifier.before(answer(0, 1, pixels=False), answer(1, 1, pixels=False), batch)
    values: Tensor = modifier.after((student.logits - teacher.logits).square().sum(1), batch)
    if modifier.selects:
        values = values * modifier.mask(teacher, batch)
    return [float(x) for x in values.detach().flatten()]


def of_model(name: str) -> list[float]:
    """A network with its default arguments and made-up weights, on made-up images."""
    network = plugins.load("models", name)(classes=C).double().eval()
    for number, (key, weights) in enumerate(network.state_dict().items()):
        if weights.is_floating_point():
            drawn = counted(tuple(weights.shape), number)
            spread = (6 / weights[0].numel()) ** 0.5 if weights.dim() > 1 else 0.2
            weights.copy_(1 + 0.2 * drawn if key.endswith("running_var") else spread * drawn)
    with torch.no_grad():
        logits: Tensor = network(counted((1, 3, 32, 32), 1))
    return [float(x) for x in logits.flatten()]


def order() -> list[int]:
    from kdscale.data.order import epoch_order

    return epoch_order(np.arange(10), seed=3, epoch=2).tolist()


def split() -> list[list[int]]:
    from kdscale.data.split import carve

    parts = carve(np.arange(40) % 4, DataConfig(val_fraction=0.2, limit=12, split_seed=1))
    return [sorted(parts.train.tolist()), sorted(parts.val.tolist())]


def views() -> str:
    """Integer kernels: the same bytes on every machine."""
    from kdscale.data.views import ViewScheme, make_views

    images = (hash64(7, np.arange(B * 12 * 12 * 3)) >> np.uint64(56)).astype(np.uint8).reshape(B, 12, 12, 3)
    augment = AugmentConfig.model_validate({"crop": 2, "flip": True, "cutout": 3, "jitter": {"brightness": 0.3}})
    scheme = ViewScheme(12, augment, 5, (10, 20, 30))
    return hashlib.sha256(make_views(images, np.arange(B), 3, scheme).tobytes()).hexdigest()


def initial_weights() -> list[float]:
    from kdscale.nn.build import build_network

    info = DatasetInfo(C, 3, 32, 1, 1, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    network = build_network(StudentConfig(model="resnet_cifar", depth=8), info, 32, seed=4)
    return [float(p.detach().double().sum()) for p in network.model.parameters()][:4]


OWN: dict[str, Callable[[], Any]] = {"order": order, "split": split, "views": views, "initial weights": initial_weights}
"""What no plug-in decides."""


MADE: dict[str, Callable[[str], Any]] = {"losses": of_loss, "modifiers": of_modifier, "models": of_model}
"""By kind of plug-in."""


def names() -> list[str]:
    found = [f"{kind}.{name}" for kind in MADE for name in plugins.available(kind)]
    return found + [f"kdscale.{name}" for name in OWN]


def current(name: str) -> dict[str, Any]:
    """Revision and numbers of one name."""
    kind, _, which = name.partition(".")
    if kind == "kdscale":
        return {"revision": NUMERICS, "numbers": OWN[which]()}
    return {"revision": plugins.load(kind, which).revision, "numbers": MADE[kind](which)}


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: current(name) for name in names()}, indent=1) + "\n")
