"""A number that changes without its revision would let finished stages pass for what would be made now."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.unit.config.numbers import FILE, current, names

KNOWN = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", names())
def test_numbers_change_with_their_revision_only(name: str) -> None:
    now, then = current(name), KNOWN.get(name)
    assert then is not None, f"{name} is new: python -m tests.unit.config.numbers"
    assert now["revision"] == then["revision"], f"{name}: the revision was raised: python -m tests.unit.config.numbers"
    message = (
        f"{name}: other numbers under revision {now['revision']}: raise it, then python -m tests.unit.config.numbers"
    )
    if isinstance(now["numbers"], str):
        assert now["numbers"] == then["numbers"], message
    else:
        for new, old in zip(now["numbers"], then["numbers"], strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-7, err_msg=message)


def test_nothing_is_known_that_is_gone() -> None:
    assert KNOWN.keys() == set(names()), "python -m tests.unit.config.numbers"
