"""What an examination of this machine finds: one line of the screen, one object of the JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "document", "is_fit"]

State = Literal["ok", "note", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    section: Literal["software", "runs", "data", "scheduler", "node"]
    name: str
    state: State
    text: str
    mend: str = ""
    """What it is for and what would bring it, where it is missing or broken."""
    needed: bool = False
    """Whether training on this machine is impossible without it."""
    details: dict[str, Any] = field(default_factory=dict)
    """Figures, for the JSON."""

    @property
    def stops(self) -> bool:
        """Whether nothing can be trained before this is mended."""
        return self.needed and self.state in ("missing", "broken")


def is_fit(findings: Iterable[Finding]) -> bool:
    """Say whether everything that training needs is there."""
    return not any(finding.stops for finding in findings)


def document(findings: list[Finding]) -> dict[str, Any]:
    """Arrange findings as the JSON output."""
    return {"schema": 1, "ok": is_fit(findings), "findings": [asdict(finding) for finding in findings]}
