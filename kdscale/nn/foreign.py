"""Where a model comes from: kdscale's own files, torchvision, timm, or a user's module.

The one place that imports torchvision and timm; both cost seconds, so only when a config names them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kdscale.config.schema import PluginsConfig
from kdscale.errors import ConfigError

__all__ = ["Origin", "Preprocessing", "check_arguments", "let_torchvision_load", "origin_of"]

CLASSES = ("classes", "num_classes", "n_classes")
CHANNELS = ("channels", "in_channels", "in_chans")


@dataclass(frozen=True)
class Preprocessing:
    """What published weights were trained on."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Origin:
    """How to make a model, and what its constructor is called with."""

    make: Callable[..., nn.Module]
    classes: str | None
    """The constructor's name for the number of logits."""
    channels: str | None
    """Its name for the channels of the images; None when it has no such argument."""
    arguments: tuple[str, ...] | None
    """All it knows; None when it passes unknown ones on, so that only the call itself can tell."""
    size: str | None = None
    """Its name for the pixels a side of the images; None when it takes any size."""
    fixed_channels: int | None = None
    fixed_size: int | None = None
    pretrained: Preprocessing | None = None


def origin_of(model: str, plugins: PluginsConfig | None = None) -> Origin:
    """Find a model by name: `NAME`, `torchvision:NAME`, `timm:NAME` or a user's `package.module:Class`.

    Raises:
        ConfigError: torchvision or timm is not installed, or has no such model.
        PluginError: there is no such file, or the class may not be imported.
    """
    place, _, name = model.partition(":")
    if place == "torchvision":
        return _torchvision(name)
    if place == "timm":
        return _timm(name)
    from kdscale import plugins as found

    if name:
        allowed = plugins or PluginsConfig()
        return _of_class(found.user_class(model, allowed.allow, allowed.path))
    own = _of_class(found.load("models", model))
    return replace(own, size=_first(("size",), own.arguments or ()))


def check_arguments(origin: Origin, model: str, given: Mapping[str, Any]) -> None:
    """Refuse constructor arguments that the model does not know. Raises: ConfigError with the nearest."""
    if origin.arguments is None:
        return
    for key in given:
        if key not in origin.arguments:
            near = difflib.get_close_matches(key, origin.arguments, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it knows: {', '.join(origin.arguments)}"
            raise ConfigError(f"student.{key}: {model} has no such argument; {hint}")


def _of_class(cls: Callable[..., nn.Module]) -> Origin:
    parameters = inspect.signature(cls).parameters
    keywords = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return Origin(
        make=cls,
        classes=_first(CLASSES, keywords),
        channels=_first(CHANNELS, keywords),
        arguments=None if passes_on else tuple(keywords),
    )


def _first(names: Sequence[str], among: Sequence[str]) -> str | None:
    return next((name for name in names if name in among), None)


def _torchvision(name: str) -> Origin:
    models = _import_torchvision_models()
    known = models.list_models()
    if name not in known:
        raise ConfigError(f"student.model: torchvision has no model {name}{_near(name, known)}")
    builder = models.get_model_builder(name)
    published = models.get_model_weights(name)
    pretrained = None
    if len(published):
        transform = published.DEFAULT.transforms()
        size = getattr(transform, "crop_size", [224])[0]
        pretrained = Preprocessing(int(size), tuple(transform.mean), tuple(transform.std))
    return Origin(
        make=lambda **arguments: builder(weights=None, **arguments),
        classes="num_classes",
        channels=None,
        arguments=None,
        fixed_channels=3,
        pretrained=pretrained,
    )


def _timm(name: str) -> Origin:
    timm = _import_timm()
    if not timm.is_model(name):
        raise ConfigError(f"student.model: timm has no model {name}{_near(name, timm.list_models())}")
    published = timm.get_pretrained_cfg(name)
    pretrained, fixed = None, None
    if published is not None:
        size = int(published.input_size[-1])
        pretrained = Preprocessing(size, tuple(published.mean), tuple(published.std))
        fixed = size if published.fixed_input_size else None
    return Origin(
        make=lambda **arguments: timm.create_model(name, pretrained=False, **arguments),
        classes="num_classes",
        channels="in_chans",
        arguments=None,
        fixed_size=fixed,
        pretrained=pretrained,
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _import_torchvision_models() -> Any:
    let_torchvision_load()
    try:
        from torchvision import models
    except ImportError as error:
        raise ConfigError(
            f"student.model: torchvision: cannot be imported ({error}); pip install torchvision"
        ) from error
    return models


def _import_timm() -> Any:
    let_torchvision_load()  # timm imports torchvision
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"student.model: timm: cannot be imported ({error}); pip install timm") from error
    return timm


def let_torchvision_load() -> None:
    """Declare two operators that torchvision's wheel defines in a library linked against CUDA.

    On a CPU build of torch that library does not load, and `import torchvision` dies with "operator
    torchvision::nms does not exist". Its Python code only needs the schemas to exist.
    """
    if torch.version.cuda is not None or torch.version.hip is not None:
        return  # the real library loads there, and would define them a second time
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
