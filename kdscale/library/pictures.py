"""From pictures to what a network takes: the same steps as in training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from kdscale.data.convert import squared
from kdscale.errors import ShapeError
from kdscale.nn.network import Network, NetworkInput

__all__ = ["Preprocess", "knowing", "with_preprocessing"]

Picture = str | Path | Image.Image | NDArray[Any] | Tensor


class Preprocess:
    """Makes a network's input of pictures: the stored square of uint8 pixels, then its own size and normalisation.

    Args:
        input: the network's.
    """

    def __init__(self, input: NetworkInput) -> None:
        self._input = input

    def __repr__(self) -> str:
        stored = f"{self._input.given} x {self._input.given_size} x {self._input.given_size} uint8"
        return f"Preprocess({stored} -> {self._input.describe()})"

    @torch.no_grad()
    def __call__(self, pictures: Picture | Sequence[Picture]) -> Float[Tensor, "B K H W"]:
        """Normalised images, on the CPU.

        Args:
            pictures: one or several: files, Pillow images, arrays (H, W) or (H, W, K), or tensors (K, H, W) of uint8
                pixels, of any size; or a batch, a tensor (B, K, H, W), which has the stored size.

        Raises:
            ShapeError: it is no such thing.
        """
        images: Tensor = self._input(self.stored(pictures))
        return images

    def stored(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """The uint8 images (B, K, H, W) that a converted data set would hold. Raises: ShapeError."""
        if isinstance(pictures, Tensor) and pictures.dim() == 4:
            return self._checked(pictures)
        several = pictures if isinstance(pictures, list | tuple) else [pictures]
        return torch.stack([self._one(picture) for picture in several])

    def _checked(self, batch: Tensor) -> Tensor:
        shape = (self._input.given, self._input.given_size, self._input.given_size)
        if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) != shape:
            given = f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
            raise ShapeError(f"a batch must be uint8 (B, {', '.join(map(str, shape))}), not {given}")
        return batch.cpu()

    def _one(self, picture: Any) -> Tensor:
        pixels = _pixels(picture, "RGB" if self._input.given == 3 else "L")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != self._input.given:
            raise ShapeError(
                f"a picture must have uint8 pixels (H, W{', 3' if self._input.given == 3 else ''}), not "
                f"{pixels.dtype} {pixels.shape}"
            )
        square = squared(pixels, self._input.given_size)
        return torch.from_numpy(square.transpose(2, 0, 1).copy())


def _pixels(picture: Any, mode: str) -> NDArray[Any]:
    """A picture as an array (H, W, K)."""
    if isinstance(picture, Tensor):
        picture = (picture.movedim(0, -1) if picture.dim() == 3 else picture).detach().cpu().numpy()
    elif isinstance(picture, str | Path):
        with Image.open(picture) as opened:
            picture = opened.convert(mode)
    elif isinstance(picture, Image.Image):
        picture = picture.convert(mode)
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


class _InDataOrder(nn.Module):
    """A network whose logits stand in another order than the data's classes, in the data's."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model = network.model
        self.network = [network]  # in a list, so that its parts are not this module's twice

    def forward(self, images: Tensor) -> Tensor:
        return self.network[0].mapped(self.model(images))


def with_preprocessing(network: Network, class_names: Sequence[str]) -> nn.Module:
    """The bare model behind a network, which knows how its input is made and what its logits are called."""
    model = network.model if network.class_map is None else _InDataOrder(network)
    return knowing(model.eval(), Preprocess(network.input), class_names)


def knowing(model: nn.Module, preprocess: Callable[..., Tensor], class_names: Sequence[str]) -> nn.Module:
    """A module with `.preprocess` and `.classes`, which are no part of its state."""
    vars(model).update(preprocess=preprocess, classes=tuple(class_names))
    return model
