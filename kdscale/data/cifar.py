"""The binary version of CIFAR: records of label bytes and 3 x 32 x 32 pixels.

Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version". The Python version is a pickle,
which runs code when it is read: it is not supported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdscale.data.sources import ArraySource, PublishedFiles
from kdscale.errors import DataError

__all__ = ["open_cifar", "pickled_hint"]

_PIXELS = 3 * 32 * 32


def open_cifar(files: PublishedFiles, pieces: Sequence[str], label_bytes: int, classes: int, rows: int) -> ArraySource:
    """Read the records of `pieces`, in order: images (N, 32, 32, 3); the last label byte is the class.

    Raises:
        DataError: missing, damaged, cut short, or with labels out of range.
    """
    content = b"".join(files.read(*pieces))
    record = label_bytes + _PIXELS
    if len(content) != rows * record:
        raise DataError(f"{', '.join(pieces)}: {len(content)} bytes, expected {rows} records of {record}")
    table = np.frombuffer(content, np.uint8).reshape(rows, record)
    labels = table[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(f"{', '.join(pieces)}: label {labels.max()} of {classes} classes; not the CIFAR it should be")
    planes = table[:, label_bytes:].reshape(rows, 3, 32, 32)
    return ArraySource(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def pickled_hint(file: str, pickled: str) -> str:
    """Say what to fetch where only the pickled version is at hand."""
    return f"fetch https://www.cs.toronto.edu/~kriz/{file} there ({pickled} is pickled, and a pickle is never opened)"
