"""Reads an MLflow database with plain SQL, so that what kdscale ships is judged by neither of the two."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoredRun:
    """One active run."""

    id: str
    name: str
    status: str
    started: int | None
    ended: int | None
    artifacts: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[tuple[str, int, int, float]]
    """(metric, step, time in ms, value) in order of step."""

    @property
    def level(self) -> str:
        return self.tags["kdscale.level"]

    @property
    def figures(self) -> dict[str, float]:
        """Newest value of each metric at step 0."""
        return {name: value for name, step, _, value in sorted(self.points, key=lambda p: p[2]) if step == 0}

    def curve(self, metric: str) -> list[tuple[int, float]]:
        return [(step, value) for name, step, _, value in self.points if name == metric]

    def doubled(self) -> list[tuple[str, int]]:
        """(metric, step) that stand there more than once, but for final figures, which may be corrected."""
        counted = Counter((name, step) for name, step, _, _ in self.points if step > 0)
        return [what for what, times in counted.items() if times > 1]


def stored_runs(database: Path, *, deleted: bool = False) -> list[StoredRun]:
    """All runs of a database, by name."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select run_uuid, name, status, start_time, end_time, artifact_uri from runs where lifecycle_stage = ?",
            ("deleted" if deleted else "active",),
        ).fetchall()
        runs = [StoredRun(*row, *_of(connection, row[0])) for row in rows]
    connection.close()
    return sorted(runs, key=lambda run: (run.name, run.id))


def experiments(database: Path) -> dict[str, dict[str, str]]:
    """Tags of each experiment, by name."""
    with sqlite3.connect(database) as connection:
        found: dict[str, dict[str, str]] = {}
        for id_, name in connection.execute("select experiment_id, name from experiments").fetchall():
            tags = connection.execute("select key, value from experiment_tags where experiment_id = ?", (id_,))
            found[name] = dict(tags.fetchall())
    connection.close()
    return found


def _of(connection: sqlite3.Connection, run: str) -> tuple[Any, Any, Any]:
    tags = connection.execute("select key, value from tags where run_uuid = ?", (run,)).fetchall()
    params = connection.execute("select key, value from params where run_uuid = ?", (run,)).fetchall()
    points = connection.execute(
        "select key, step, timestamp, case when is_nan then null else value end from metrics where run_uuid = ? "
        "order by key, step, timestamp",
        (run,),
    ).fetchall()
    return dict(tags), dict(params), [(k, s, t, float("nan") if v is None else v) for k, s, t, v in points]
