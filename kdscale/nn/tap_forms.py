"""Features in another form: a transformer's tokens as a map, pooled, as its class token, or those of patches alone.

No form makes a negative value of others, nor needs one: what lies behind a ReLU lies behind it in every form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdscale.config.taps import Tap, TapConfig, TapForm
from kdscale.errors import TapError

__all__ = ["Form", "Told", "fitting", "map_of", "tokens_of", "told_by"]

Grid = tuple[int, int]
"""Rows and columns of patches."""


class Told(NamedTuple):
    """What a model says of the features at one place in it, in the words of timm; None where it says nothing."""

    prefix: int | None = None
    """Tokens before those of patches."""
    grid: Grid | None = None
    """Of patches, where they enter."""
    class_token: bool | None = None
    """Whether the first of the tokens before those of patches is one."""
    layout: str | None = None
    """NCHW or NHWC, of features with four dimensions."""


def told_by(model: nn.Module, path: str) -> Told:
    """Ask a model about a module: what lies nearest around it knows best, so a network may hold another one."""
    around = list(_around(model, path))
    grid = next((size for module in around if (size := _grid(module)) is not None), None)
    layout = next((fmt for module in around if (fmt := getattr(module, "output_fmt", None)) is not None), None)
    if isinstance(around[0], nn.Conv2d | nn.BatchNorm2d):
        layout = "NCHW"  # of torch's own, whatever becomes of it behind them
    prefix = next((n for module in around if isinstance(n := getattr(module, "num_prefix_tokens", None), int)), None)
    class_token = next((said for module in around if (said := _class_token(module)) is not None), None)
    return Told(prefix, grid, class_token, layout)


class Form:
    """Brings one tap's feature into the form that the config asks for.

    Args:
        tap: as the config has it; a name alone leaves the feature as it is.
        told: what the model says of this place.
    """

    def __init__(self, tap: Tap, told: Told) -> None:
        self._tap = tap
        self._asked = tap if isinstance(tap, TapConfig) else None
        self._told = told
        self._layout = (self._asked and self._asked.layout) or told.layout or "NCHW"

    def __call__(self, feature: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Return the feature in its form; pooled ones in at least fp32. Raises: TapError."""
        if self._asked is None:
            return self._as_it_is(feature)
        if feature.dim() == 4:
            return self._of_map(feature, self._asked)
        if self._asked.layout is not None:
            raise self._error(feature, "layout is for features with four dimensions; leave it out")
        if feature.dim() == 3:
            return self._of_tokens(feature, self._asked)
        if feature.dim() == 2 and self._asked.as_ == "pooled":
            return feature
        raise self._error(feature, "these are no tokens (L, D) and no map; leave `as` out, or tap another module")

    def _as_it_is(self, feature: Tensor) -> Tensor:
        if feature.dim() == 4 and self._layout == "NHWC":
            raise self._error(feature, f"the model has its channels last; say {{module: {self._tap}, as: map}}")
        return feature

    def _of_map(self, feature: Tensor, asked: TapConfig) -> Tensor:
        if asked.prefix is not None or asked.grid is not None:
            raise self._error(feature, "this is a map already; prefix and grid are for tokens, leave them out")
        maps = feature.permute(0, 3, 1, 2) if self._layout == "NHWC" else feature
        if asked.as_ == "cls":
            raise self._error(feature, "a map has no class token; say as: pooled")
        if asked.as_ == "pooled":
            return _mean(maps, (2, 3))
        return maps if asked.as_ == "map" else tokens_of(maps)

    def _of_tokens(self, feature: Tensor, asked: TapConfig) -> Tensor:
        before = self._before(feature, asked)
        patches = feature[:, before:]
        if asked.as_ == "cls":
            return self._class_token(feature, before)
        if asked.as_ == "map":
            return map_of(patches, self._grid_of(feature, patches.shape[1]))
        return patches if asked.as_ == "tokens" else _mean(patches, (1,))

    def _class_token(self, feature: Tensor, before: int) -> Tensor:
        if before == 0:
            raise self._error(feature, "no token comes before those of patches here; say as: pooled")
        if self._told.class_token is False:
            raise self._error(feature, "the model has registers but no class token; say as: pooled")
        return feature[:, 0]

    def _before(self, feature: Tensor, asked: TapConfig) -> int:
        """Tokens to drop. The model's word counts where a grid remains: blocks before its class token have none."""
        count = feature.shape[1]
        if asked.prefix is not None:
            if asked.prefix >= count:
                raise self._error(feature, f"prefix: {asked.prefix} leaves no token of a patch")
            return asked.prefix
        if count in [rows * columns for rows, columns in filter(None, (asked.grid, self._told.grid))]:
            return 0
        before = self._told.prefix
        if before is None:
            said = "the model does not say how many tokens come before those of patches: set prefix: N (0: none)"
            raise self._error(feature, said)
        if self._fits(count - before, asked) is None:
            said = f"the model's num_prefix_tokens is {before}, which leaves {count - before} for patches: "
            raise self._error(
                feature, said + "no square, nor the grid; set prefix: N (0: none) or grid: [rows, columns]"
            )
        return before

    def _grid_of(self, feature: Tensor, patches: int) -> Grid:
        found = self._fits(patches, self._asked)
        if found is None:
            raise self._error(
                feature, f"{patches} patches: set grid: [rows, columns], and prefix: N if it is not right"
            )
        return found

    def _fits(self, patches: int, asked: TapConfig | None) -> Grid | None:
        """The grid as asked for, as the model has it, or a square; None where the patches do not fill it."""
        if asked is not None and asked.grid is not None:
            return asked.grid if math.prod(asked.grid) == patches else None
        if self._told.grid is not None and math.prod(self._told.grid) == patches:
            return self._told.grid
        side = math.isqrt(max(patches, 0))
        return (side, side) if side and side * side == patches else None

    def _error(self, feature: Tensor, said: str) -> TapError:
        return TapError(f"tap {self._tap}, whose module gives {list(feature.shape[1:])}: {said}", str(self._tap))


def map_of(tokens: Float[Tensor, "B L D"], grid: Grid) -> Float[Tensor, "B D H W"]:
    """Lay patches out row by row."""
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def tokens_of(maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B H*W D"]:
    """Line positions up row by row."""
    return maps.flatten(2).transpose(1, 2)


def fitting(told: Told, path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The forms in which a module's feature of some shape, without B, can be read with no more than its name."""
    feature = torch.empty(2, *shape, device="meta")
    return tuple(form for form in get_args(TapForm) if _can(Form(TapConfig(module=path, as_=form), told), feature))


def _mean(feature: Tensor, over: tuple[int, ...]) -> Float[Tensor, "B D"]:
    return feature.mean(dim=over, dtype=torch.promote_types(feature.dtype, torch.float32))


def _can(form: Form, feature: Tensor) -> bool:
    try:
        form(feature)
    except TapError:
        return False
    return True


def _around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """A module, and those that hold it, from the inside out."""
    parts = path.split(".")
    for depth in range(len(parts), 0, -1):
        yield model.get_submodule(".".join(parts[:depth]))
    yield model


def _grid(module: nn.Module) -> Grid | None:
    size: Any = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    return (int(size[0]), int(size[1])) if isinstance(size, tuple | list) and len(size) == 2 else None


def _class_token(module: nn.Module) -> bool | None:
    said = getattr(module, "has_class_token", None)
    if isinstance(said, bool):
        return said
    return getattr(module, "cls_token", None) is not None if hasattr(module, "cls_token") else None
