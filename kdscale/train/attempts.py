"""One attempt at a stage that has no training loop: found, claimed, run, and let go of."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdscale.config.schema import StageSpec
from kdscale.errors import StageError
from kdscale.pipeline.artifacts import Claim, Root, StageFolder
from kdscale.train.device import device_of_rank
from kdscale.train.held import held
from kdscale.train.records import attempt_record
from kdscale.train.stop import Stop

__all__ = ["STATE_EVERY_S", "Attempt", "attempted", "planned_stage"]

STATE_EVERY_S = 1.0
"""How often the state file, which screens read, is rewritten."""


@dataclass
class Attempt(ABC):
    """What one rank holds while it runs; only rank 0 has the claim."""

    root: Root
    folder: StageFolder
    definition: dict[str, Any]
    spec: StageSpec
    stop: Stop
    claim: Claim | None
    begun: float = field(default_factory=time.time, init=False)
    _written: float = field(default=0.0, init=False)
    """When its state was last written, by the monotonic clock."""

    @abstractmethod
    def run(self, device: torch.device) -> bool:
        """Whether the stage is done; False when it was asked to stop."""


def planned_stage(root: Root, digest: str) -> StageFolder:
    """A stage's folder. Raises: StageError, where it was not planned here."""
    folder = root.stage(digest)
    if folder is None:
        raise StageError(f"no stage {digest[:12]} under {root.path}: was it planned with another --runs?")
    return folder


def attempted(kind: type[Attempt], root_path: Path, digest: str, stop: Stop | None) -> bool:
    """Run a stage, on all of its ranks; one that is done already is left as it is.

    Raises:
        StageError: it was not planned here, or another live attempt holds it.
    """
    root = Root.find(root_path)
    folder = planned_stage(root, digest)
    if folder.state().get("state") == "done":
        return True
    definition = folder.definition()
    spec, device = StageSpec.model_validate(definition["spec"]), device_of_rank()
    with held(folder, attempt_record(definition, spec, device)) as claim:
        return kind(root, folder, definition, spec, stop or Stop(), claim).run(device)
