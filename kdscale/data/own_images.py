"""What data sets of a user's own image files share: where they lie, their statistics, and how a file is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdscale.config.schema import DataConfig
from kdscale.data.sources import data_root
from kdscale.errors import DataError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "decoded", "folder_of", "stored_size"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""As torchvision's weights use them."""
_SIZE = 224


def stored_size(data: DataConfig) -> int:
    """Pixels a side of what is stored."""
    return data.store_size or data.size or _SIZE


def folder_of(data: DataConfig, name: str, holds: str) -> Path:
    """The folder of a data set: data.root, else KDSCALE_DATA/NAME.

    Raises:
        DataError: neither is set.
    """
    environment = data_root()
    root = data.root or (environment / name if environment else None)
    if root is None:
        raise DataError(f"{name}: set data.root to the folder that holds {holds}")
    return root


def decoded(path: Path, mode: str | None = "RGB") -> NDArray[np.uint8]:
    """Read an image (H, W, 3) as RGB, or (H, W) of a mode with one plane; as torchvision does, not turned by EXIF.

    Args:
        path: of the file.
        mode: PIL's; None leaves a mask's values as they are, indices of its palette or grey values.

    Raises:
        DataError: it cannot be decoded, or is no mask.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if mode is None and image.mode not in ("P", "L"):
                raise DataError(f"{path}: a mask is of mode {image.mode}; it must have a palette, or be grey (8 bits)")
            return np.asarray(image if mode is None else image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); repair or remove it") from error
