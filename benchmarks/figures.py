"""What every benchmark shares: one row a target, the facts of the machine, and a JSON file in results/."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).resolve().parent / "results"
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One figure and what it should be.

    Attributes:
        value: the median, in `unit`.
        sense: whether the target is the least or the most that is wanted.
    """

    what: str
    value: float
    unit: str
    sense: Literal[">=", "<="]
    target: float
    spread: tuple[float, float]
    """Smallest and largest of the values behind the median."""

    @property
    def met(self) -> bool:
        """Whether the figure reaches its target."""
        return self.value >= self.target if self.sense == ">=" else self.value <= self.target

    @property
    def line(self) -> str:
        """The row as text."""
        low, high = self.spread
        verdict = "met" if self.met else "MISSED"
        span = f"({low:.2f} to {high:.2f})"
        return f"{self.what:<34} {self.value:.3f} {self.unit} {span}, goal {self.sense} {self.target:g}: {verdict}"


def row(what: str, values: Sequence[float], unit: str, sense: Literal[">=", "<="], target: float) -> Row:
    """A row from repeated measurements."""
    return Row(what, statistics.median(values), unit, sense, target, (min(values), max(values)))


def machine() -> dict[str, Any]:
    """Facts without which a figure means nothing."""
    import numpy
    import torch

    return {
        "machine": platform.machine(), "processor": _processor(), "cores": len(os.sched_getaffinity(0)),
        "bf16_in_hardware": bool(torch.cpu._is_avx512_bf16_supported()), "system": platform.release(),
        "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
    }  # fmt: skip


def write(name: str, rows: Sequence[Row], *, quick: bool, **measured: Any) -> None:
    """Keep what was measured as results/NAME.json."""
    document = {
        "schema": 1,
        "quick": quick,
        "rows": [asdict(entry) | {"met": entry.met} for entry in rows],
        **measured,
        **machine(),
        "load_average": os.getloadavg(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
