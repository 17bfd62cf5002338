"""IDX files are read exactly, or refused."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from kdscale.data.sources import read_idx
from kdscale.errors import DataError


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 255))
def test_what_was_written_is_read(shape: list[int], first: int) -> None:
    array = ((np.arange(np.prod(shape)) + first) % 256).astype(np.uint8).reshape(shape)
    content = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()
    np.testing.assert_array_equal(read_idx(content, "file"), array)
    for damaged in (content[:-1], content + b"\0", content[:5], b"", b"\0\0\x0d" + content[3:], b"<html>"):
        with pytest.raises(DataError, match="file: no IDX file"):
            read_idx(damaged, "file")
