"""No loss makes the host wait for the device in a training step: that would empty the device's queue at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdscale import plugins
from kdscale.api import Modifier, Shapes
from kdscale.contract.losses import LossSubject
from kdscale.contract.probes import CLASSES, Probes, probe

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
"""Operations whose answer the host needs: a number, or how many elements there are."""
FROM_HOST = {"lift_fresh"}
"""A tensor of Python numbers: on a device it is copied from memory that is not pinned."""


class Refusing(TorchDispatchMode):
    """Raises at each operation that waits, forward and backward."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        picks = args[1] if name in {"index", "index_put", "index_put_"} else ()
        by_mask = any(isinstance(pick, Tensor) and pick.dtype in (torch.bool, torch.uint8) for pick in picks)
        if by_mask or name in WAITING | FROM_HOST:
            raise AssertionError(f"{func}: the host waits for the device")
        return func(*args, **kwargs or {})


def answers(step: int = 0) -> Probes:
    return probe(torch.float64, seed=step)


@pytest.mark.parametrize("name", plugins.available("losses"))
def test_no_loss_waits(name: str) -> None:
    loss = LossSubject(plugins.load("losses", name), Path(__file__), dtype=torch.float64).build()
    for step in range(2):  # what the first batch sets may be looked at before it is trusted
        student, teacher, batch = answers(step)
        loss(student, teacher, replace(batch, step=step)).sum().backward()
    student, teacher, batch = answers(2)
    with Refusing():
        loss(student, teacher, replace(batch, step=2)).sum().backward()


@pytest.mark.parametrize("name", plugins.available("modifiers"))
def test_no_modifier_waits(name: str) -> None:
    plugin = plugins.load("modifiers", name)
    student, teacher, batch = answers()
    shapes = Shapes(CLASSES, *([tuple(f.shape[1:]) for f in side.features] for side in (student, teacher)))
    modifier: Modifier = plugin(plugin.Config(), shapes).double()
    with Refusing():
        own, _ = modifier.before(student, teacher, batch)
        values = modifier.after(own.logits.sum(1), batch)
        (values * modifier.mask(teacher, batch) if modifier.selects else values).sum().backward()


def test_a_wait_is_seen() -> None:
    rows = torch.arange(4.0)
    for wait in (
        lambda: float(rows[0]),
        lambda: rows[rows > 1],
        lambda: rows.new_tensor([1.0]),
        lambda: rows.nonzero(),
    ):
        with Refusing(), pytest.raises(AssertionError, match="waits"):
            wait()
