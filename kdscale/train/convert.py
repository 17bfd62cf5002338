"""A conversion stage: the data set's images into the form that a loader reads, once, whole or not at all."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from kdscale import plugins
from kdscale.api import Dataset
from kdscale.config.schema import StageSpec
from kdscale.data.store import Store, write_store
from kdscale.errors import StageError
from kdscale.pipeline.artifacts import Root

__all__ = ["run_conversion"]


def run_conversion(root_path: Path, digest: str) -> None:
    """Convert, in this process alone; a stage that is done already is left as it is.

    Raises:
        DataError: the data is missing or damaged, or the disk is full.
        StageError: another live attempt holds the stage.
    """
    folder = Root.find(root_path).stage(digest)
    if folder is None:
        raise StageError(f"no stage {digest[:12]} under {root_path}: was it planned with another --runs?")
    if folder.state().get("state") == "done":
        return
    definition = folder.definition()
    spec = StageSpec.model_validate(definition["spec"])
    begun = time.time()
    claim = folder.claim({"started": begun, "host": socket.gethostname(), "pid": os.getpid(), "world": 1})
    try:
        folder.write_state(state="running", reason="", step=0, steps=definition["info"]["train_rows"])
        store = _convert(definition, spec, folder.path / "store")
        results = {"content": store.content_hash, "kind": store.kind, "wall_s": time.time() - begun}
        folder.write_state(state="done", reason="", step=definition["info"]["train_rows"], results=results)
    finally:
        claim.release()


def _convert(definition: dict[str, object], spec: StageSpec, target: Path) -> Store:
    dataset: Dataset = plugins.load("datasets", spec.data.name)(spec.data)
    kind = definition["store_kind"]
    assert kind in ("ffcv", "torch")
    return write_store(dataset, spec.data, target, kind, None)
