"""Vectors that no file holds: other shapes, hyper-parameters, widths and edge cases, through the very same adapters.

Expected are the formulas in plain torch (tests/parity/plain), which reproduce the golden files themselves.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.parity.adapters import ADAPTERS
from tests.parity.cases import Case
from tests.parity.other_cases import OTHER, Other
from tests.parity.plain import PLAIN
from tests.parity.test_golden import Expected, assert_close, case_of, leaf_of, pytest_generate_tests

__all__ = ["pytest_generate_tests"]

FIXED = {"z_t", "f_t", "memory_s", "memory_t"}
"""Inputs that no gradient is for: the teacher's, and memories."""


def test_the_plain_formula_reproduces_the_file(expected: Expected) -> None:
    arrays = expected.arrays()
    case = case_of(expected, arrays, torch.float64)

    got = PLAIN[expected.method](case.inputs, case.weights, case.hp)[expected.out]

    assert_close(got, arrays[f"out.{expected.out}"], expected.out)
    mark = f"grad.{expected.out}."
    for name in [name for name in arrays if name.startswith(mark)]:
        leaf = leaf_of(case, name.removeprefix(mark))
        assert_close(torch.autograd.grad(got, leaf, retain_graph=True)[0], arrays[name], name)


def test_every_method_has_a_formula_and_other_cases() -> None:
    assert set(PLAIN) == set(ADAPTERS) == {other.method for other in OTHER}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("other", OTHER, ids=str)
def test_equals_the_plain_formula(other: Other, dtype: torch.dtype) -> None:
    adapter, exact, case = ADAPTERS[other.method], other.case(torch.float64), other.case(dtype)
    wanted = PLAIN[other.method](exact.inputs, exact.weights, exact.hp)

    for name, want in wanted.items():
        compute = adapter.out(name)
        assert compute is not None, f"{other}: its adapter does not compute {name}"
        got = compute(case)
        assert_close(got, want.detach().numpy(), f"{other}: {name}")
        if want.requires_grad and name not in other.kinks:
            _compare_gradients(name, (got, case), (want, exact))


def _compare_gradients(out: str, ours: tuple[Tensor, Case], theirs: tuple[Tensor, Case]) -> None:
    """Of the sum of squares, so that each element of an output counts as it should.

    In float32 rounding is that of the largest gradient: a bias before a BatchNorm has none but rounding.
    """
    grads = []
    for value, case in (ours, theirs):
        leaves = {**case.inputs, **case.weights}
        names = [n for n, leaf in leaves.items() if leaf.requires_grad and n.split(".")[0] not in FIXED]
        total = value if value.dim() == 0 else value.square().sum()
        found = torch.autograd.grad(total, [leaves[n] for n in names], allow_unused=True, retain_graph=True)
        grads.append({n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, found, strict=True)})
    got, want = (torch.cat([grad.flatten() for grad in side.values()]) for side in grads)
    assert_close(got, want.numpy(), f"d {out} / d {list(grads[0])}")
