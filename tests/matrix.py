"""What `make test-long` runs beyond `make test`: whole matrices of faults, sizes and worlds."""

from __future__ import annotations

import os

import pytest

__all__ = ["LONG", "MATRIX"]

LONG = bool(os.environ.get("KDSCALE_LONG"))
MATRIX = pytest.mark.skipif(not LONG, reason="make test-long runs the whole matrix")
