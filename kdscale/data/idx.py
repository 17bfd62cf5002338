"""Data sets published as four IDX files, as MNIST is: images and labels of two splits."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kdscale.data.sources import ArraySource, PublishedFiles, read_idx
from kdscale.errors import DataError

__all__ = ["open_idx"]


def open_idx(files: PublishedFiles, split: Literal["train", "test"], rows: int) -> ArraySource:
    """Read one split of an MNIST-like set: images (N, 28, 28, 1) and labels.

    Raises:
        DataError: missing, damaged, or images and labels that do not belong together.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    images, labels = (read_idx(content, name) for content, name in zip(files.read(*names), names, strict=True))
    if images.shape[1:] != (28, 28) or not len(images) == len(labels) == rows:
        raise DataError(f"{names[0]}: {images.shape} images and {labels.shape} labels, expected {rows} of 28 x 28")
    return ArraySource(images[..., None], labels.astype(np.int64))
