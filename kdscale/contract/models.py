"""What a network has to be like to be trained, tapped, kept and exported here: any nn.Module."""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.api import DatasetInfo
from kdscale.config.schema import PluginsConfig, StudentConfig
from kdscale.contract.checks import Broken, Check, Skipped, shown
from kdscale.contract.source import imported
from kdscale.nn.build import build_network, list_taps
from kdscale.nn.foreign import CLASSES as CALLED
from kdscale.nn.network import Network

__all__ = ["MODEL_CHECKS", "ModelSubject"]

IMAGES = 4


@dataclass(frozen=True)
class ModelSubject:
    """A network's class with arguments, and the images that it is shown."""

    cls: type[nn.Module]
    file: Path
    name: str
    """As a config names it."""
    plugins: PluginsConfig
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    channels: int = 3
    classes: int = 10
    per_pixel: bool = False
    """Whether it answers with classes of pixels, (B, C, H, W)."""

    @property
    def student(self) -> StudentConfig:
        """As a config would say it."""
        return StudentConfig(model=self.name, **self.options)

    @property
    def info(self) -> DatasetInfo:
        """Of made-up data."""
        one = (0.5,) * self.channels
        names = tuple(map(str, range(self.classes)))
        return DatasetInfo(self.classes, self.channels, self.size, 1, 1, one, one, names, per_pixel=self.per_pixel)

    @cached_property
    def network(self) -> Network:
        """It, built as a stage builds it."""
        return build_network(self.student, self.info, self.size, plugins=self.plugins)

    def images(self) -> Tensor:
        """uint8 (B, K, H, W)."""
        shape = (IMAGES, self.network.input.given, self.size, self.size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _keywords(subject: ModelSubject) -> str:
    parameters = inspect.signature(subject.cls).parameters
    fixed = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]
    if fixed:
        raise Broken(
            f"the constructor takes {fixed[0]} by position only", "arguments are a config's keys: take keywords"
        )
    given = [name for name in CALLED if name in parameters]
    if not given and "classes_arg" not in subject.options:
        raise Broken(
            f"the constructor has none of {', '.join(CALLED)}",
            "add the argument classes, or name it in the config: student: {classes_arg: NAME}",
        )
    return ", ".join(parameters)


def _answers(subject: ModelSubject) -> str:
    logits = subject.network.dry(subject.size).logits
    if logits.shape[1] != subject.classes:
        raise Broken(
            f"gives {logits.shape[1]} logits for {subject.classes} classes", "end in as many as `classes` says"
        )
    trained = sum(p.numel() for p in subject.network.parameters() if p.requires_grad)
    return f"{subject.channels}x{subject.size}x{subject.size} to {logits.shape[1]} logits, {trained:,} parameters"


def _taps(subject: ModelSubject) -> str:
    named = [*getattr(subject.network.model, "taps", {}), *(subject.student.taps or {})]
    rows = list_taps(subject.student, subject.info, subject.size, plugins=subject.plugins)
    if named:
        build_network(subject.student, subject.info, subject.size, taps=named, plugins=subject.plugins).dry(
            subject.size
        )
        return ", ".join(named)
    usable = [row.path for row in rows if not row.usable]
    if not usable:
        raise Broken("no module can be a tap: each is silent, fires twice or is overwritten in place")
    return f"names none of its own; modules by path: {', '.join(usable[:4])}{' ...' if len(usable) > 4 else ''}"


def _initial_weights(subject: ModelSubject) -> None:
    first = subject.network.model.state_dict()
    again = build_network(subject.student, subject.info, subject.size, plugins=subject.plugins).model.state_dict()
    other = next((key for key in first if not torch.equal(first[key], again[key])), None)
    if other:
        raise Broken(
            f"{other} differs between two builds of one seed", "draw by torch, which is seeded while it is built"
        )


def _state(subject: ModelSubject) -> str:
    model, images = subject.network.model.eval(), subject.network.input(subject.images())
    with torch.no_grad():
        before = model(images)
        fresh = build_network(subject.student, subject.info, subject.size, seed=1, plugins=subject.plugins).model.eval()
        fresh.load_state_dict(model.state_dict())
        if not torch.equal(before, fresh(images)):
            raise Broken(
                "with the same state_dict another copy answers otherwise",
                "what it keeps belongs in parameters or register_buffer, not in plain attributes",
            )
    return f"{len(model.state_dict())} tensors"


def _eval(subject: ModelSubject) -> None:
    network, images = subject.network.eval(), subject.images()
    before = copy.deepcopy(network.model.state_dict())
    with torch.no_grad():
        together = network(images).logits
        alone = torch.cat([network(images[i : i + 1]).logits for i in range(IMAGES)])
    changed = [key for key, value in network.model.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        raise Broken(f"{changed[0]} changes in eval", "let statistics follow the data while self.training only")
    far = (together - alone).abs().max().item()
    if far > 1e-4 * max(1.0, together.abs().max().item()):
        raise Broken(
            f"a picture's logits depend on its batch in eval (by {far:.2g})", "nothing may mix samples in eval"
        )


def _trains(subject: ModelSubject) -> str:
    network = copy.deepcopy(subject.network).train()
    network(subject.images()).logits.float().logsumexp(1).sum().backward()
    silent = [name for name, p in network.model.named_parameters() if p.requires_grad and p.grad is None]
    if len(silent) == len(list(network.model.parameters())):
        raise Broken("no parameter receives a gradient from its logits")
    return f"{len(silent)} parameters receive no gradient, {silent[0]} first: they are frozen" if silent else ""


def _exports(subject: ModelSubject) -> None:
    model, images = copy.deepcopy(subject.network.model).eval(), subject.network.input(subject.images())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dim = torch.export.Dim("batch", min=1)
            program = torch.export.export(model, (images,), dynamic_shapes=({0: dim},), strict=False)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0][:160] if lines else type(error).__name__
        mend = "model.pt2 and model.onnx need this: no branches on values, any batch size"
        raise Broken(f"torch.export: {said}", mend) from error
    with torch.no_grad():
        if not torch.allclose(program.module()(images), model(images), rtol=1e-3, atol=1e-4):
            raise Broken("torch.export gives a program that answers otherwise", "nothing but the image may decide")


def _portable(subject: ModelSubject) -> None:
    others = sorted(imported(subject.file) - {"torch", "__future__"})
    if others:
        raise Skipped(
            f"{shown(subject.file)} imports {', '.join(others)}: an export has no modeling.py that runs without; "
            "model.pt2 and model.onnx do"
        )


MODEL_CHECKS: tuple[Check[ModelSubject], ...] = (
    Check("the constructor takes keywords, and how many classes", _keywords),
    Check("images (B, K, H, W) to logits (B, classes), or a map of them", _answers, first=True),
    Check("taps exist and fire once", _taps),
    Check("initial weights are a function of the seed", _initial_weights),
    Check("state_dict holds all that it is", _state),
    Check("eval: statistics stay, and pictures do not depend on each other", _eval),
    Check("gradients reach its parameters", _trains),
    Check("torch.export takes it, at any batch size", _exports),
    Check("its file imports torch only", _portable),
)
