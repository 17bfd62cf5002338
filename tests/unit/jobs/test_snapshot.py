"""The code that jobs run."""

from __future__ import annotations

from pathlib import Path

import kdscale
from kdscale.jobs.slurm.snapshot import take_snapshot
from kdscale.pipeline.planned import Plan

PACKAGE = Path(kdscale.__file__).parent


def test_the_code_comes_with_its_dates_and_what_numba_compiled_of_it(tmp_path: Path) -> None:
    plan = Plan("none", "", {}, [], {}, {})
    code = take_snapshot(tmp_path, plan)
    for source in sorted((PACKAGE / "data").glob("*.py")):
        copy = code / "kdscale" / "data" / source.name
        assert copy.read_bytes() == source.read_bytes()
        assert copy.stat().st_mtime_ns == source.stat().st_mtime_ns
    compiled = {path.name for path in (PACKAGE / "data" / "__pycache__").glob("*.nb[ic]")}
    assert compiled == {path.name for path in (code / "kdscale" / "data" / "__pycache__").glob("*.nb[ic]")}
    assert take_snapshot(tmp_path, plan) == code
    assert [path.name for path in (tmp_path / "code").iterdir()] == [code.name]
