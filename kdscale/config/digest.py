"""A stage's identity: what decides its numbers in exact arithmetic, and nothing else.

Only what differs from the defaults is hashed, so a new key with a default orphans nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from kdscale.config.schema import Experiment, StageConfig, StageSpec

__all__ = ["NUMERICS", "identity", "stage_digest", "variant_of"]

NUMERICS = 1
"""Raised when kdscale itself changes numbers (order, views, split, initial weights, the step)."""

DIGEST_SCHEMA = 1


def identity(spec: StageSpec) -> dict[str, Any]:
    """The identifying fields of a stage that differ from their defaults, as plain data.

    Seeds that the stage does not use are left out: a network that never trains has no `seed`, one without
    augmentation no `view_seed`, one that sees all rows no `split_seed`.
    """
    found = _identity(spec)
    data, train = found.get("data", {}), spec.train
    if train.epochs == 0:
        found.pop("seed", None)
        found.pop("passes", None)
        found["train"] = {"epochs": 0}
    if train.epochs == 0 or spec.data.augment == type(spec.data.augment)():
        data.pop("view_seed", None)
    if spec.data.val_fraction == 0 and spec.data.limit is None and spec.data.limit_test is None:
        data.pop("split_seed", None)
    return found


def stage_digest(
    spec: StageSpec, *, parents: Mapping[str, tuple[str, str]], fingerprint: str, revisions: Mapping[str, str | int]
) -> str:
    """SHA-256 over a stage's identity and those of everything it is made from.

    Args:
        spec: with precision and the like resolved.
        parents: role to (digest, selector).
        fingerprint: of its data.
        revisions: of each plug-in used.

    Returns:
        64 hexadecimal digits.
    """
    document = {
        "schema": DIGEST_SCHEMA,
        "numerics": NUMERICS,
        "stage": identity(spec),
        "parents": {role: list(parent) for role, parent in parents.items()},
        "data": fingerprint,
        "revisions": dict(revisions),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def variant_of(swept: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Swept keys outside the identity that concern a stage: two values of one are two stages all the same."""
    found = {}
    for key, value in swept.items():
        parts = key.split(".")
        if parts[:2] == ["stages", stage] and _outside(StageConfig, parts[2:]):
            found[".".join(parts[2:])] = value
        elif parts[0] != "stages" and _outside(Experiment, parts):
            found[key] = value
    return found


def _outside(model: type[BaseModel], parts: list[str]) -> bool:
    """Whether a dotted key names a field that is marked outside the identity."""
    if not parts or parts[0] not in model.model_fields:
        return False
    if model is StageConfig and parts[0] in ("train", "data", "engine", "resources"):
        return _outside(Experiment, parts)
    field = model.model_fields[parts[0]]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("identity") is False:
        return True
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _outside(annotation, parts[1:])
    return False


def _identity(model: BaseModel) -> dict[str, Any]:
    found = {}
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        value = getattr(model, name)
        if value != field.get_default(call_default_factory=True):
            found[name] = _plain(value)
    return found | {key: _plain(value) for key, value in (model.model_extra or {}).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _identity(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
