"""The stages that convert data sets for the loader; one is shared by all who read it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from kdscale.api import DatasetInfo
from kdscale.config.digest import NUMERICS
from kdscale.config.schema import DataConfig, StageSpec
from kdscale.data.convert import stored_side
from kdscale.data.loader import resolve_loader
from kdscale.pipeline.cost import conversion_cost
from kdscale.pipeline.planned import PlannedStage

__all__ = ["conversion", "data_identity"]


def conversion(spec: StageSpec, info: DatasetInfo, fingerprint: str) -> PlannedStage:
    """The stage that converts the data of another.

    Args:
        spec: of the stage that reads it.
        info: of the data set.
        fingerprint: of the data set.
    """
    data = spec.data
    what = {
        "kind": "convert", "name": data.name, "fingerprint": fingerprint, "store": data.store, "numerics": NUMERICS,
        "store_size": stored_side(info, data), "store_kind": resolve_loader(data), "options": data.options,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    kept = {"name", "root", "size", "store", "store_size", "options", "loader"}
    own = StageSpec(
        name="data", student=spec.student, data=DataConfig(**data.model_dump(include=kept)),
        resources=spec.resources, engine=spec.engine, plugins=spec.plugins,
    )  # fmt: skip
    definition = what | {
        "schema": 1, "digest": digest, "info": asdict(info), "parents": {},
        "spec": own.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"name": "data"},
    }  # fmt: skip
    return PlannedStage(digest, "data", "convert", {}, 0, data.name, conversion_cost(definition, info), definition)


def data_identity(data: DataConfig, fingerprint: str) -> str:
    """JPEG decoders differ by rounding, so who decodes is part of what the data is; raw pixels have no decoder."""
    return f"{fingerprint}:{resolve_loader(data)}" if data.store == "jpeg" else fingerprint
