"""A stage's identity: what decides its numbers in exact arithmetic, and nothing else.

Only what differs from the defaults is hashed, so a new key with a default orphans nothing. A default that
changes would make two different stages look the same: tests/unit/config/frozen.json holds every default.
Names of stages are no part of it: what a stage takes from others enters as their digests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdscale import plugins
from kdscale.config.schema import Experiment, StageConfig, StageSpec, StudentConfig, TeacherRef, TermConfig

__all__ = ["NUMERICS", "identity", "stage_digest", "variant_of"]

NUMERICS = 5
"""Raised when kdscale itself changes numbers (order, views, split, initial weights, the step, snapshots)."""

DIGEST_SCHEMA = 1
_FROM_DATA = frozenset({"classes", "channels", "size"})
"""Arguments of models that are filled in from the data when they are not given: absent is not their default."""


def identity(spec: StageSpec) -> dict[str, Any]:
    """The identifying fields of a stage that differ from their defaults, as plain data by the keys of a config.

    Seeds that the stage does not use are left out: a network that never trains and whose weights are given
    has no `seed`, one without augmentation no `view_seed`, one that sees all rows no `split_seed`.
    """
    found = _fields(spec)
    found["student"] = _student(spec.student)
    for key, value in (("teachers", {role: _taken(ref) for role, ref in spec.teachers.items()}), *_chosen(spec)):
        found.pop(key, None)
        found |= {key: value} if value else {}
    if spec.init_from is not None:
        found["init_from"] = {"skip": sorted(spec.init_from.skip)} if spec.init_from.skip else {}
    _drop_what_is_not_used(found, spec)
    cleaned: dict[str, Any] = _canonical(found)
    return cleaned


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
        # The first revision goes without saying: a plug-in that begins to count its revisions orphans nothing.
        "revisions": {name: revision for name, revision in revisions.items() if revision != 1},
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def variant_of(swept: Mapping[str, Any], stage: str, own: StageConfig) -> dict[str, Any]:
    """Swept keys outside the identity that concern a stage: two values of one are two stages all the same.

    Args:
        swept: value by dotted key.
        stage: its name.
        own: what the stage says itself: there the top level's key does not reach it.
    """
    found = {}
    for key, value in swept.items():
        parts = key.split(".")
        if len(parts) == 2 and parts[1] in getattr(own, parts[0], {}):
            continue
        if parts[:2] == ["stages", stage] and _outside(StageConfig, parts[2:]):
            found[".".join(parts[2:])] = value
        elif parts[0] != "stages" and _outside(Experiment, parts):
            found[key] = value
    return found


# --------------------------------------------------------------------------- parts of a stage


def _student(student: StudentConfig) -> dict[str, Any]:
    if student.weights is not None and student.weights_hash is None:
        raise ValueError(f"{student.weights} has not been hashed: a path does not say which weights are meant")
    found = _fields(student)
    defaults = plugins.options("models", student.model) if ":" not in student.model else {}
    return {k: v for k, v in found.items() if k in _FROM_DATA or not _is_default(v, (defaults or {}).get(k, _NONE))}


def _taken(ref: TeacherRef) -> dict[str, Any]:
    """What a stage takes from a teacher, besides its digest: of `from` only the part.

    An ensemble is the roles of its members, whose digests are among the parents, with their shares.
    """
    part = (ref.from_ or "").partition("#")[2]
    found = {k: v for k, v in _fields(ref).items() if k not in ("from", "weights")}
    return found | ({"part": part} if part else {}) | ({"mean": ref.shares} if ref.mean else {})


def _chosen(spec: StageSpec) -> list[tuple[str, Any]]:
    """What the stage sets of its strategy's options, and its terms."""
    defaults = plugins.options("strategies", spec.strategy) or {}
    options = {k: v for k, v in _plain(spec.options).items() if not _is_default(v, defaults.get(k, _NONE))}
    return [("options", options), *_terms(spec)]


def _terms(spec: StageSpec) -> list[tuple[str, Any]]:
    """Terms by id, as the order of a sum decides nothing; the order of passes does."""
    by_pass = {pass_: {term.id: _term(term, spec) for term in terms} for pass_, terms in spec.passes.items()}
    if list(by_pass) == ["main"]:
        return [("passes", None), ("losses", by_pass["main"])]
    return [("passes", by_pass), ("order_of_passes", list(by_pass) if len(by_pass) > 1 else None)]


def _term(term: TermConfig, spec: StageSpec) -> dict[str, Any]:
    found = _fields(term)
    found.pop("id", None)
    found.pop("init_from", None)  # which stage and term it is stands among the parents
    if len(spec.teachers) == 1:
        found.pop("teacher", None)  # naming the only teacher says nothing
    defaults = dict(plugins.options("losses", term.name) or {})
    if spec.train.label_smoothing and term.name == "ce":
        defaults.pop("label_smoothing", None)  # there an absent key takes that of `train`
    found = {key: value for key, value in found.items() if not _is_default(value, defaults.get(key, _NONE))}
    if term.modifiers:
        found["modifiers"] = [_fields(modifier) for modifier in term.modifiers]
    return found


def _drop_what_is_not_used(found: dict[str, Any], spec: StageSpec) -> None:
    data = found.get("data", {})
    if spec.train.epochs == 0:
        for key in ("losses", "passes", "order_of_passes"):
            found.pop(key, None)
        found["train"] = {"epochs": 0}
        data.pop("augment", None)
        if _weights_are_given(spec):
            found.pop("seed", None)
    if spec.train.epochs == 0 or spec.data.augment == type(spec.data.augment)():
        data.pop("view_seed", None)
    if not (spec.data.val_fraction or spec.data.limit or spec.data.limit_test or spec.data.transfer):
        data.pop("split_seed", None)
    if not data:
        found.pop("data", None)


def _weights_are_given(spec: StageSpec) -> bool:
    """Whether nothing of the network is drawn by the seed."""
    from_file = spec.student.weights is not None and spec.student.strict in (True, [])
    return from_file or (spec.init_from is not None and not spec.init_from.skip)


# --------------------------------------------------------------------------- fields


def _outside(model: type[BaseModel], parts: list[str]) -> bool:
    """Whether a dotted key names a field that is marked outside the identity."""
    if not parts or parts[0] not in model.model_fields:
        return False
    if model is StageConfig and parts[0] in ("train", "data", "engine", "resources", "eval"):
        return _outside(Experiment, parts)
    field = model.model_fields[parts[0]]
    if is_outside(field):
        return True
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _outside(annotation, parts[1:])
    return False


def is_outside(field: FieldInfo) -> bool:
    """Whether a field is marked as no part of a stage's identity."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("identity") is False


def _fields(model: BaseModel) -> dict[str, Any]:
    """The identifying fields that differ from their defaults, by alias, and a plug-in's own options."""
    found = {}
    for name, field in type(model).model_fields.items():
        value = _plain(getattr(model, name))
        if not is_outside(field) and value != _plain(field.get_default(call_default_factory=True)):
            found[field.alias or name] = value
    return found | {key: _plain(value) for key, value in (model.model_extra or {}).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


_NONE = object()


def _is_default(value: Any, default: Any) -> bool:
    if default in (_NONE, plugins.REQUIRED, plugins.UNREADABLE):
        return False
    return bool(_canonical(value) == _canonical(_plain(default)) and (type(value) is bool) == (type(default) is bool))


def _canonical(value: Any) -> Any:
    """Equal values as equal JSON: 4.0 is 4."""
    if isinstance(value, dict):
        return {key: _canonical(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_canonical(one) for one in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
