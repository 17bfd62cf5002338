"""Whether a stage that ended badly comes back, when, and where not; remembered beside it, whoever decides.

runs/stages/<name>-<digest12>/retries.json     step, failures in a row without a step in between, failures by node

its own error (an exception, nan, out of GPU memory)   failed: only --retry-failed runs it again
quota, input/output, network, port                     interrupted, again after 1, 5 and 25 minutes, then paused
killed, hung, node lost                                interrupted, again at once; paused after 3 times without a step
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kdscale import atomic
from kdscale.jobs.causes import blamed, wording
from kdscale.jobs.wording import duration
from kdscale.pipeline.artifacts import StageFolder

__all__ = ["WAITS_S", "Verdict", "excluded_nodes", "judge", "not_before"]

WAITS_S = (60.0, 300.0, 1500.0)
WITHOUT_PROGRESS = 3
"""Losses in a row, without a step in between, after which a stage waits for its user."""
NODE_FAILURES = 2
"""Failures of one stage on one node, after which it is kept away from there."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a stage."""

    state: str
    """failed, paused or interrupted."""
    reason: str
    wait_s: float = 0.0
    """Before an interrupted stage runs again."""


def judge(
    folder: StageFolder, causes: Sequence[Mapping[str, Any] | None], *, how: str, node: str = "",
    waits_s: Sequence[float] = WAITS_S,
) -> Verdict:  # fmt: skip
    """Decide on a stage whose processes are gone, and remember the decision.

    Args:
        folder: of the stage.
        causes: what each rank wrote down of its end; None of a rank that wrote nothing.
        how: its processes ended, in words, for when no rank says.
        node: that it ran on, where no rank says and it was only one.
        waits_s: before each further try after a passing failure; empty: a full disk pauses at once.
    """
    cause = blamed(causes)
    kind = str(cause["class"]) if cause is not None else "lost"
    reason = wording(cause) if cause is not None else how
    if kind == "own" or (kind == "disk" and not waits_s):
        return Verdict("failed" if kind == "own" else "paused", reason)
    known = _read(folder)
    step = int(folder.state()["step"])
    in_a_row = known["in_a_row"] if step <= known["step"] else {}
    count = in_a_row.get(kind, 0) + 1
    where = str(cause.get("host") or node) if cause is not None else node
    nodes = {**known["nodes"], where: known["nodes"].get(where, 0) + 1} if where and kind != "disk" else known["nodes"]
    verdict = _after(kind, count, reason, waits_s or WAITS_S)
    noted = _write(
        folder,
        {
            "schema": 1, "step": step, "in_a_row": {**in_a_row, kind: count}, "nodes": nodes,
            "not_before": time.time() + verdict.wait_s,
        },
    )  # fmt: skip
    if not noted and verdict.wait_s:  # nothing can be counted on a full disk: the longest wait is the kindest
        return Verdict(verdict.state, verdict.reason, max(waits_s))
    return verdict


def _after(kind: str, count: int, reason: str, waits_s: Sequence[float]) -> Verdict:
    if kind == "lost":
        if count >= WITHOUT_PROGRESS:
            return Verdict("paused", f"{reason}, {count} times in a row without a step")
        return Verdict("interrupted", reason)
    if count > len(waits_s):
        return Verdict("paused", f"{reason} ({count} times in a row)")
    wait_s = waits_s[count - 1]
    return Verdict("interrupted", f"{reason}; again in {duration(wait_s)}", wait_s)


def not_before(folder: StageFolder) -> float:
    """When an interrupted stage may run again, unix time; 0 for at once."""
    return float(_read(folder)["not_before"])


def excluded_nodes(folder: StageFolder) -> list[str]:
    """Nodes on which the stage has failed too often."""
    return sorted(node for node, failures in _read(folder)["nodes"].items() if failures >= NODE_FAILURES)


def _read(folder: StageFolder) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with suppress(ValueError):  # half a file can only be another program's: begin to count anew
        found = atomic.read_json(folder.path / "retries.json") or {}
    return {"step": -1, "in_a_row": {}, "nodes": {}, "not_before": 0.0, **found}


def _write(folder: StageFolder, document: Mapping[str, Any]) -> bool:
    try:
        atomic.write_json(folder.path / "retries.json", document)
    except OSError as error:
        if not atomic.is_disk_full(error):
            raise
        return False
    return True
