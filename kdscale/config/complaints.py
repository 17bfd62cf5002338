"""Pydantic's errors as one line: where in which file, which key, what, and the nearest valid key."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from kdscale.errors import ConfigError

__all__ = ["complain"]


def complain(
    error: ValidationError, model: type[BaseModel], at: str, sources: Mapping[str, str], where: str
) -> ConfigError:
    """Make the one-line error of the first complaint.

    Args:
        error: of the validation.
        model: what was validated.
        at: key path of the validated value in the config.
        sources: place of each key that is set.
        where: the file, for keys that are missing.
    """
    first = min(error.errors(), key=_most_telling)
    path = _path(first["loc"])
    key = ".".join([*([at] if at else []), *path])
    return ConfigError(f"{_place(key, sources, where)}: {key}: {_what(dict(first), model, path)}")


def _most_telling(error: Any) -> tuple[bool, int]:
    """An unknown key explains more than the key that it was meant to be, missing elsewhere."""
    return (error["type"] != "extra_forbidden", -len(error["loc"]))


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of a location, without the names of union members that pydantic puts between them."""
    words = [str(part) for part in loc]
    return [word for word in words if "[" not in word and not word.startswith(("function-", "constrained-"))
            and word not in ("str", "int", "float", "bool", "InitFrom", "path", "literal")]  # fmt: skip


def _place(key: str, sources: Mapping[str, str], where: str) -> str:
    while key:
        if key in sources:
            return sources[key]
        key = key.rpartition(".")[0]
    return where


def _what(error: dict[str, Any], model: type[BaseModel], path: list[str]) -> str:
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        near = get_close_matches(path[-1], fields, 1)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are: {', '.join(fields)}"
    if error["type"] == "missing":
        return "is missing"
    given = error.get("input")
    shown = "" if isinstance(given, dict) else f" (it is {given!r})"
    said = str(error["msg"]).removeprefix("Value error, ")
    return f"{said[:1].lower()}{said[1:]}{shown}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Keys that are valid at a path, found by walking the models' annotations."""
    found = _walk(model, path)
    return [field.alias or name for name, field in found.model_fields.items()] if found else []


def _walk(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    if not path:
        return model
    field = next((f for n, f in model.model_fields.items() if path[0] in (n, f.alias)), None)
    if field is None:
        return None
    rest = path[1:]
    for inner, consumed in _models_in(field.annotation, len(rest)):
        deeper = _walk(inner, rest[consumed:])
        if deeper is not None:
            return deeper
    return None


def _models_in(annotation: Any, left: int, consumed: int = 0) -> list[tuple[type[BaseModel], int]]:
    """Models within an annotation, with how many keys (of mappings, of lists) lead to each."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, consumed)]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    deeper = consumed + (1 if origin in (dict, list) else 0)
    if deeper > left + 1:
        return []
    return [found for argument in arguments for found in _models_in(argument, left, deeper)]
