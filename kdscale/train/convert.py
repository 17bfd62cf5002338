"""A conversion stage: the data set's images into the form that a loader reads, once, whole or not at all."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from kdscale import plugins
from kdscale.api import Dataset
from kdscale.config.schema import StageSpec
from kdscale.data.store import Progress, Store, write_store
from kdscale.pipeline.artifacts import Claim, Root, StageFolder
from kdscale.train.attempts import STATE_EVERY_S, planned_stage
from kdscale.train.stop import Interrupted, Stop

__all__ = ["run_conversion"]


def run_conversion(root_path: Path, digest: str, stop: Stop | None = None) -> bool:
    """Convert, in this process alone; a stage that is done already is left as it is.

    Returns:
        Whether it is done; False when it was asked to stop, and begins anew the next time.

    Raises:
        DataError: the data is missing or damaged, or the disk is full.
        StageError: another live attempt holds the stage.
    """
    folder = planned_stage(Root.find(root_path), digest)
    if folder.state().get("state") == "done":
        return True
    definition = folder.definition()
    spec = StageSpec.model_validate(definition["spec"])
    begun = time.time()
    claim = folder.claim({"started": begun, "host": socket.gethostname(), "pid": os.getpid(), "world": 1})
    try:
        folder.write_state(state="running", reason="", step=0, steps=_rows(definition))
        progress = _progress(folder, claim, stop or Stop())
        store = _convert(definition, spec, folder.path / "store", progress)
        results = {"content": store.content_hash, "kind": store.kind, "wall_s": time.time() - begun}
        folder.write_state(state="done", reason="", step=_rows(definition), results=results)
    except Interrupted as reason:
        folder.write_state(state="interrupted", reason=str(reason), step=0)
        return False
    finally:
        claim.release()
    return True


def _rows(definition: dict[str, Any]) -> int:
    return int(definition["info"]["train_rows"]) + int(definition["info"]["test_rows"])


def _progress(folder: StageFolder, claim: Claim, stop: Stop) -> Progress:
    """What is done between rows: say how far it is, keep the claim alive, leave when asked."""
    written = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal written
        stop.step = done
        if stop.agreed(done):
            raise Interrupted(stop.reason)
        if time.monotonic() - written < STATE_EVERY_S:
            return
        if folder.cancel_request() is not None:
            stop.ask("cancelled by its user")
        claim.heartbeat()
        folder.write_state(step=done, steps=total)
        written = time.monotonic()

    return told


def _convert(definition: dict[str, Any], spec: StageSpec, target: Path, progress: Progress) -> Store:
    dataset: Dataset = plugins.load("datasets", spec.data.name)(spec.data)
    kind = definition["store_kind"]
    assert kind in ("ffcv", "torch")
    return write_store(dataset, spec.data, target, kind, progress)
