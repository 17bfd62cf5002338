"""The finished stage that is exported: its network, what it answers, and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kdscale import checkpoint
from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.data.loader import EvalLoader
from kdscale.errors import CheckpointError, ConfigError, StageError
from kdscale.jobs.named_stages import stage_named
from kdscale.nn.network import Network
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.assemble import Parent, own_network
from kdscale.train.build import store_of_stage

__all__ = [
    "CALIBRATION_IMAGES", "CHECKED_IMAGES", "Finished", "command_of", "finished_stage", "lineage",
    "trained_network",
]  # fmt: skip

CHECKED_IMAGES, CALIBRATION_IMAGES = 1000, 256


@dataclass(frozen=True)
class Finished:
    """A finished stage as its network answers."""

    folder: StageFolder
    spec: StageSpec
    info: DatasetInfo
    network: Network
    images: Tensor
    labels: Tensor
    training_images: Tensor
    expected: Tensor
    """Its logits, computed as evaluation computes them."""


def finished_stage(root: Root, name: str, selector: str) -> Finished:
    """Take up a stage by its name, with the weights of one of its snapshots.

    Raises:
        ConfigError: nothing is called so, or it has no such weights.
        StageError: it is not done.
        CheckpointError: the weights were changed since.
    """
    folder = stage_named(name, root)
    if folder.definition()["kind"] != "train":
        raise ConfigError(f"{name} is no stage that trains a network")
    spec, info, network = trained_network(folder, selector)
    definition = folder.definition()
    images, labels = _images(root, definition, spec, "test", CHECKED_IMAGES)
    seen, _ = _images(root, definition, spec, "train", CALIBRATION_IMAGES)
    with torch.no_grad():
        expected = torch.cat([network(part).logits.float() for part in torch.split(images, 64)])
    return Finished(folder, spec, info, network, images, labels, seen, expected)


def trained_network(folder: StageFolder, selector: str) -> tuple[StageSpec, DatasetInfo, Network]:
    """What a finished stage trained, on the CPU, in evaluation, with the weights of one of its snapshots.

    Raises:
        ConfigError: it has no such weights.
        StageError: it is not done.
        CheckpointError: the weights were changed since.
    """
    definition, state = folder.definition(), folder.state()
    if state["state"] != "done":
        raise StageError(f"{folder.path.name} is {state['state']}: only what is done has a network to take")
    if selector not in state["weights"] or not folder.snapshot(selector).exists():
        raise ConfigError(f"weights {selector}: {folder.path.name} has {', '.join(sorted(state['weights']))}")
    weights = folder.snapshot(selector)
    if checkpoint.file_hash(weights) != state["weights"][selector]:
        raise CheckpointError(f"{weights} is not what the stage recorded: it was changed since")
    spec, info = StageSpec.model_validate(definition["spec"]), DatasetInfo.of(definition["data"]["info"])
    network = own_network(Parent(spec, info, weights))
    return spec, info, network.eval().prepare(channels_last=spec.train.channels_last, device="cpu")


def _images(
    root: Root, definition: Mapping[str, Any], spec: StageSpec, split: Literal["train", "test"], count: int
) -> tuple[Tensor, Tensor]:
    store = store_of_stage(definition, root, None, lambda: None)
    loader = EvalLoader(store, spec.data, split, batch_size=64, rank=0, world=1)
    images, labels = [], []
    for batch in loader:
        images.append(batch.images)
        labels.append(batch.labels)
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count].contiguous(), torch.cat(labels)[:count]


def lineage(finished: Finished) -> list[dict[str, Any]]:
    """The stages that it learnt from, with the hash of the weights that it took, and the caches between."""
    definition, state = finished.folder.definition(), finished.folder.state()
    found = []
    for role, parent in definition["parents"].items():
        reference = finished.spec.teachers.get(role)
        cache = None if reference is None or reference.cache is None else reference.cache.model_dump(mode="json")
        found.append(
            {
                "role": role, "stage": parent["digest"], "selector": parent["selector"],
                "weights": state["consumed"].get(role), "cache": cache,
            }
        )  # fmt: skip
    return found


def command_of(folder: StageFolder, root: Root) -> str | None:
    """Of the sweep that made it, where that is still known."""
    name = folder.definition().get("sweep")
    return next((sweep.plan()["command"] for sweep in root.sweeps() if sweep.path.name == name), None)
