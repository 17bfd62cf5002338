"""Golden vectors: values and every gradient equal to the published implementations' (tests/golden, or --golden DIR)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.parity.adapters import ADAPTERS
from tests.parity.cases import Case

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Expected:
    """One output of one case of one file."""

    file: Path
    method: str
    case: str
    out: str
    hp: dict[str, Any]

    def arrays(self) -> Arrays:
        """This case's arrays, by name without the case."""
        with np.load(self.file, allow_pickle=False) as archive:
            mark = f"{self.case}."
            return {name.removeprefix(mark): archive[name] for name in archive.files if name.startswith(mark)}

    def __str__(self) -> str:
        return f"{self.file.stem}-{self.case}-{self.out}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = metafunc.config.getoption("--golden")
    if "file" in metafunc.fixturenames:
        files = sorted(folder.glob("*.npz"))
        metafunc.parametrize("file", files or [folder / "no-file.npz"], ids=lambda f: f.stem)
    if "expected" in metafunc.fixturenames:
        found = [e for f in sorted(folder.glob("*.npz")) for e in expectations(f) if e.method in ADAPTERS]
        metafunc.parametrize("expected", found, ids=str)


def expectations(file: Path) -> list[Expected]:
    """Every output that a file holds."""
    with np.load(file, allow_pickle=False) as archive:
        meta, names = json.loads(str(archive["meta"])), archive.files
    return [
        Expected(file, meta["method"], case["case"], name.removeprefix(f"{case['case']}.out."), case["hp"])
        for case in meta["cases"]
        for name in names
        if name.startswith(f"{case['case']}.out.")
    ]


def test_every_file_has_an_adapter_that_knows_all_its_outputs(file: Path) -> None:
    assert file.exists(), f"no golden vectors in {file.parent}"
    found = expectations(file)
    assert found, f"{file.name} expects nothing"
    for expected in found:
        assert expected.method in ADAPTERS, f"{file.name}: method {expected.method!r} has no adapter: missing"
        assert ADAPTERS[expected.method].out(expected.out), f"{expected}: its adapter does not compute this output"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_golden(expected: Expected, dtype: torch.dtype) -> None:
    arrays = expected.arrays()
    adapter = ADAPTERS[expected.method]
    case = case_of(expected, arrays, dtype)

    compute = adapter.out(expected.out)
    assert compute is not None
    got = compute(case)

    assert_close(got, arrays[f"out.{expected.out}"], expected.out)
    mark = f"grad.{expected.out}."
    leaves = {name: leaf for name in arrays if name.startswith(mark) for leaf in [leaf_of(case, name[len(mark) :])]}
    grads = torch.autograd.grad(got, list(leaves.values())) if leaves else ()
    for name, grad in zip(leaves, grads, strict=True):
        assert_close(grad, arrays[name], name)


def case_of(expected: Expected, arrays: Arrays, dtype: torch.dtype) -> Case:
    """The case's inputs and weights as leaves that gradients can be asked for."""

    def leaves(mark: str) -> dict[str, Tensor]:
        found = {n.removeprefix(mark): torch.from_numpy(np.array(a)) for n, a in arrays.items() if n.startswith(mark)}
        return {n: t.to(dtype).requires_grad_() if t.is_floating_point() else t for n, t in found.items()}

    return Case(expected.hp, leaves("in."), leaves("w."), ADAPTERS[expected.method].weight_names)


def leaf_of(case: Case, name: str) -> Tensor:
    return case.inputs[name] if name in case.inputs else case.weights[name]


def assert_close(got: Tensor, wanted: NDArray[Any], what: str) -> None:
    """float64: elementwise, rtol 1e-7. float32: rtol 1e-5 of the array's largest element, where rounding lives."""
    if got.dtype == torch.float64:
        np.testing.assert_allclose(got.detach(), wanted, rtol=1e-7, atol=1e-10, err_msg=what)
    else:
        atol = 1e-5 * np.abs(wanted).max(initial=0.0) + 1e-7
        np.testing.assert_allclose(got.detach(), wanted, rtol=0, atol=atol, err_msg=what)
