"""The live teacher of a cache, which answers again what the cache holds, bit by bit as filling it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kdscale.config.schema import DataConfig, StageSpec
from kdscale.data.loader import TrainViews
from kdscale.data.store import Store
from kdscale.errors import StageError
from kdscale.jobs.cache_places import CachePlace, CacheUse
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.machine import threads_of
from kdscale.train.build import parents_of_stage, store_of_stage
from kdscale.train.device import device_of_rank
from kdscale.train.filler import Filler

__all__ = ["data_of", "filler_of"]


def filler_of(place: CachePlace, root: Root, stopped: Callable[[], bool] = lambda: False) -> Filler:
    """Load the teacher whose answers a cache holds, with the data that it answered for.

    Args:
        place: the cache.
        root: where its teacher and the stages that need it are.
        stopped: polled between blocks.

    Raises:
        StageError: the teacher is not there, or has other weights by now; or no stage is left that knows the data.
    """
    torch.set_num_threads(threads_of(1))  # as a worker of one process has
    known = place.teacher
    definition = _definition(place)
    asked = {"teacher": {"digest": known["stage"], "selector": known["selector"]}}
    who = f"{place.path.name}: asking its teacher again"
    parents, found = parents_of_stage({"name": who, "parents": asked}, root)
    if found["teacher"] != known["weights"]:
        raise StageError(
            f"{place.path} holds answers of weights {known['weights'][:12]}; {known['stage'][:12]} was trained again "
            f"and has {found['teacher'][:12]} now, so nobody can make these records anew: `python launch/cache.py gc` "
            "frees them, the sweep's command fills a cache of the new weights"
        )
    store, data = data_of(place, root)
    return Filler.of_stage(
        place.opened, definition, parents["teacher"], TrainViews(store, data), device_of_rank(), stopped
    )


def data_of(place: CachePlace, root: Root) -> tuple[Store, DataConfig]:
    """The converted data that a cache's rows are of, and the section that says how views are made of it.

    Raises:
        StageError: no stage is left that knows it, or it is not converted here.
    """
    definition = _definition(place)
    store = store_of_stage(definition, root, None, lambda: None)
    data = StageSpec.model_validate(definition["spec"]).data
    return store, data.model_copy(update={"limit": _use(place).need.limit})


def _definition(place: CachePlace) -> Mapping[str, Any]:
    return _use(place).stage.definition()


def _use(place: CachePlace) -> CacheUse:
    """A stage that says where the data is; those that are done had it for certain."""
    uses = sorted(place.uses, key=lambda use: (use.state != "done", not use.fills))
    if not uses:
        raise StageError(
            f"{place.path}: no stage under this root, or under those of $KDSCALE_REUSE, reads or fills this cache, so "
            "nothing says where its data is; plan a sweep that reads it, or name the root where one is: --runs DIR"
        )
    return uses[0]
