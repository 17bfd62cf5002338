"""A model as the rest of kdscale sees it: uint8 images in, logits and tapped features out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from kdscale.api import Outputs
from kdscale.config.taps import Tap, name_of
from kdscale.errors import ShapeError, TapError
from kdscale.nn.input import NetworkInput
from kdscale.nn.modes import evaluating
from kdscale.nn.tap_forms import Form, told_by
from kdscale.nn.taps import Catch, locate

__all__ = ["DRY_IMAGES", "Network", "NetworkInput"]

DRY_IMAGES = 2


class Network(nn.Module):
    """A bare model behind its input, with taps.

    `network.model.state_dict()` is what is exported: nothing of this wrapper enters it.

    Args:
        model: any module from images (B, K, H, W) to logits (B, C), or (B, C, H, W) with `per_pixel`.
        input: how the loader's images become what the model wants.
        taps: which features `Outputs.features` holds, in this order; one module may be read in several forms.
        own_taps: the user's names for module paths of a foreign model.
        class_map: index among the model's logits of each class of the data; None when they agree.
        per_pixel: whether it answers for each pixel of what the loader yields.

    Raises:
        TapError: a tap does not exist.
    """

    class_map: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        input: NetworkInput,
        taps: Sequence[Tap] = (),
        *,
        own_taps: Mapping[str, str] | None = None,
        class_map: Sequence[int] | None = None,
        per_pixel: bool = False,
    ) -> None:
        super().__init__()
        self.input = input
        self.model = model
        self.own_taps = dict(own_taps or {})
        self.input_grad = False
        self.per_pixel = per_pixel
        self.taps = tuple(taps)
        located = locate(model, map(name_of, taps), own_taps)
        self._post_relu = {name: behind for name, (_, behind) in located.items()}
        paths = [located[name_of(tap)][0] for tap in self.taps]
        self.catches = [Catch(str(self.taps[paths.index(path)]), path) for path in dict.fromkeys(paths)]
        for catch in self.catches:
            model.get_submodule(catch.path).register_forward_hook(catch)
        own = [catch.path for catch in self.catches]
        self._read = [
            (own.index(path), Form(tap, told_by(model, path))) for tap, path in zip(self.taps, paths, strict=True)
        ]
        index = None if class_map is None else torch.tensor(list(class_map), dtype=torch.int64)
        self.register_buffer("class_map", index, persistent=False)

    def forward(self, images: UInt8[Tensor, "B K H W"]) -> Outputs:
        """Answer a batch of images as the loader yields them.

        With `input_grad`, and where gradients are on, the answer holds its pixels, to differentiate by. It is then
        computed in fp32 whatever the autocast: second derivatives in half precision are noise.
        """
        if not self.input_grad or not torch.is_grad_enabled():
            return Outputs(self._logits(images), self._features())
        pixels = (images.to(self.input.scale.dtype) / 255.0).requires_grad_()
        with torch.autocast(images.device.type, enabled=False):
            logits = self._logits(pixels * 255.0)
        return Outputs(logits, self._features(), pixels)

    def post_relu(self, tap: Tap) -> bool:
        """Whether a tap's values lie behind a ReLU, whatever its form. Raises: TapError when there is no such tap."""
        name = name_of(tap)
        if name in self._post_relu:
            return self._post_relu[name]
        return locate(self.model, [name], self.own_taps)[name][1]

    def mapped(self, logits: Tensor) -> Tensor:
        """Logits of the model in the order of the data's classes."""
        return logits if self.class_map is None else logits[:, self.class_map]

    def prepare(self, channels_last: bool, device: torch.device | str) -> Network:  # noqa: FBT001
        """Move to a device and to the memory layout that is fast there; returns itself."""
        self.to(device)
        self.input.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.input.layout)  # type: ignore[call-overload]
        return self

    def tap_shapes(self, size: int) -> list[tuple[int, ...]]:
        """Run once on made-up images and return each feature's shape without B.

        Args:
            size: pixels a side of the loader's images.

        Raises:
            TapError: a tap is silent, fires twice, gives no tensor, is overwritten in place, or cannot have its form.
            ShapeError: the model fails on such images, or does not answer with logits of the shape that is wanted.
        """
        features = self.dry(size).features
        return [tuple(feature.shape[1:]) for feature in features]

    @torch.no_grad()
    def dry(self, size: int) -> Outputs:
        """The dry forward: two black images, in eval mode, with every tap checked."""
        images = torch.zeros(
            DRY_IMAGES, self.input.given, size, size, dtype=torch.uint8, device=self.input.scale.device
        )
        try:
            with evaluating(self):
                logits = self._logits(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ShapeError(f"{type(self.model).__name__} fails on {tuple(images.shape[1:])}: {error}") from error
        problems = {c.tap: f"{c.tap} ({c.path}) {fault}" for c in self.catches if (fault := c.problem(DRY_IMAGES))}
        if problems:
            raise TapError(f"{type(self.model).__name__}: tap {'; tap '.join(problems.values())}", next(iter(problems)))
        return Outputs(logits, self._features())

    def _features(self) -> list[Tensor]:
        caught = [catch.take() for catch in self.catches]
        return [form(caught[i]) for i, form in self._read]

    def _logits(self, images: Tensor) -> Tensor:
        for catch in self.catches:
            catch.reset()
        logits = self.model(self.input(images))
        size = tuple(images.shape[2:]) if self.per_pixel else ()
        if not isinstance(logits, Tensor) or logits.dim() < 2 or tuple(logits.shape[2:]) != size:
            kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            wanted = f"(B, C, {size[0]}, {size[1]}), since pixels have classes" if size else "(B, C)"
            raise ShapeError(f"{type(self.model).__name__} must answer with logits {wanted}, not {kind}")
        return self.mapped(logits)
