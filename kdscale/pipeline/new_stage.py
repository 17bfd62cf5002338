"""What a stage's folder holds before anything has run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdscale import atomic

__all__ = ["NewStage", "as_yaml", "fresh_state", "lay_out"]

_SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""In C where libyaml is there, six times faster."""


@dataclass(frozen=True)
class NewStage:
    """A stage that is to have a folder."""

    name: str
    digest: str
    definition: Mapping[str, Any] | None = None
    """What its stage.yaml will hold, where that is known already."""


def lay_out(path: Path, new: NewStage) -> None:
    """Write a new stage's files, as far as known, where nobody sees them yet; the caller flushes them."""
    (path / "logs").mkdir(parents=True)
    state = fresh_state(new.name, new.digest) | {"updated": time.time()}
    (path / "state.json").write_text(atomic.as_json(state))
    if new.definition is not None:
        (path / "stage.yaml").write_text(as_yaml(new.definition))


def fresh_state(name: str, digest: str) -> dict[str, Any]:
    """What state.json says of a stage that nobody has touched."""
    return {
        "schema": 1, "digest": digest, "name": name, "state": "waiting", "reason": "", "step": 0, "steps": 0,
        "epoch": 0.0, "updated": 0.0, "attempts": [], "weights": {}, "consumed": {},
    }  # fmt: skip


def as_yaml(definition: Mapping[str, Any]) -> str:
    """A definition as stage.yaml holds it."""
    return str(yaml.dump(dict(definition), Dumper=_SafeDumper, sort_keys=False))
