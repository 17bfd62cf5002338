"""A network's architecture as one file that imports torch alone, and the script that classifies pictures with it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

import kdscale
from kdscale.api import DatasetInfo
from kdscale.config.schema import PluginsConfig, StudentConfig
from kdscale.export.deployed import describe
from kdscale.nn.build import constructor_arguments
from kdscale.nn.class_order import class_map
from kdscale.nn.foreign import origin_of
from kdscale.nn.network import Network

__all__ = ["Recipe", "modeling", "recipe_of", "use_me", "why_not"]

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True, autoescape=False,
)  # fmt: skip
_LIBRARIES = {
    "torchvision": ("import torchvision\n", "torchvision.models.get_model({name!r}, weights=None, **ARGUMENTS)"),
    "timm": ("import timm\n", "timm.create_model({name!r}, **ARGUMENTS)"),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is made, in words that need no kdscale."""

    source: str
    make: str
    """An expression over ARGUMENTS."""
    arguments: Mapping[str, Any]
    needs: tuple[str, ...]
    """Packages beside torch."""


def why_not(student: StudentConfig) -> str | None:
    """Why a network has no modeling.py; None when it has."""
    if student.split_head is not None:
        return "its head was split: use model.pt2 or model.onnx, or device.* and server.*"
    if student.branches is not None:
        return "it holds the branches of an ensemble: use model.pt2 or model.onnx"
    return None


def recipe_of(student: StudentConfig, network: Network, info: DatasetInfo, plugins: PluginsConfig) -> Recipe:
    """Say how a network's model is made."""
    origin = origin_of(student.model, plugins)
    _, logits = class_map(student, info.class_names, info.classes)
    arguments = constructor_arguments(origin, student, logits, network.input)
    library, _, name = student.model.partition(":")
    if library in _LIBRARIES:
        imports, make = _LIBRARIES[library]
        return Recipe(imports, make.format(name=name), arguments, (library,))
    path = inspect.getsourcefile(origin.make)
    assert path is not None
    return Recipe(Path(path).read_text(), f"{origin.make.__name__}(**ARGUMENTS)", arguments, ())


def modeling(recipe: Recipe, network: Network, info: DatasetInfo) -> str:
    """The text of modeling.py."""
    seen, order = network.input, network.class_map
    return _TEMPLATES.get_template("modeling.py.jinja").render(
        source=recipe.source.rstrip(), make=recipe.make, arguments=repr(dict(recipe.arguments)),
        input=describe(network), scale=seen.scale.flatten().tolist(), shift=seen.shift.flatten().tolist(),
        grey=seen.grey.flatten().tolist(), class_map=None if order is None else order.tolist(), classes=info.classes,
        per_pixel=info.per_pixel, version=kdscale.__version__,
    )  # fmt: skip


def use_me(network: Network, class_names: Sequence[str], *, has_modeling: bool, per_pixel: bool) -> str:
    """The text of use_me.py."""
    return _TEMPLATES.get_template("use_me.py.jinja").render(
        class_names=repr(list(class_names)), input=describe(network), modeling=has_modeling, per_pixel=per_pixel
    )
