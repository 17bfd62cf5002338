"""What the ranks of a stage wrote down when a loss was not finite: which step, which rows, which values.

logs/nonfinite-step00012034-rank00005.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdscale import atomic

__all__ = ["failures_of", "write_failure"]


def write_failure(logs: Path, document: Mapping[str, Any]) -> None:
    """Keep one rank's record; `document` holds `step` and `rank`."""
    atomic.write_json(logs / f"nonfinite-step{document['step']:08d}-rank{document['rank']:05d}.json", document)


def failures_of(logs: Path, step: int | None = None) -> list[dict[str, Any]]:
    """The records of a step, by rank; by default of the one that was written last."""
    if step is None:
        newest = max(logs.glob("nonfinite-step*.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
        if newest is None:
            return []
        step = int(newest.name.split("-")[1].removeprefix("step"))
    return [atomic.read_json(path) for path in sorted(logs.glob(f"nonfinite-step{step:08d}-rank*.json"))]
