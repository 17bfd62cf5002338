"""Errors as one line: where in which file, which key, what, and the nearest valid key."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdscale.config.merging import Layer, called, index_of
from kdscale.errors import ConfigError

__all__ = ["KeyedError", "hint", "located", "validated"]

M = TypeVar("M", bound=BaseModel)
_INHERITED = re.compile(r"^stages\.[^.]+\.(?=(train|data|engine|resources|eval)\.)")


class KeyedError(ConfigError):
    """What is wrong with which key; the loader adds the file and line that set it."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key}: {what}")
        self.key, self.what = key, what


def validated(model: type[M], values: Any, at: str = "") -> M:
    """Validate plain data that stands at a key path. Raises: KeyedError of the most telling complaint."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        first = min(errors, key=lambda one: (one["type"] != "extra_forbidden", -len(one["loc"])))
        path = _path(first["loc"], values, missing=first["type"] == "missing")
        raise KeyedError(".".join([*([at] if at else []), *path]), _what(dict(first), model, path)) from None


def located(error: KeyedError, layer: Layer, where: str) -> tuple[str, str]:
    """Where an error's key was set, and the key as it is written there: a stage may have it from the top level."""
    top = _INHERITED.sub("", error.key)
    first = error.key[: len(error.key) - len(top)] + ".".join(top.split(".")[:2])
    own = any(key == first or key.startswith(f"{first}.") for key in layer.sources)
    key = error.key if own or _place_of(top, layer, "") == "" else top
    return _place_of(key, layer, where), key


def _place_of(key: str, layer: Layer, where: str) -> str:
    """`file:line` that set a key, or else what lies around or under it; `where` when nothing says."""
    path = _numbered(key, layer.values)
    while path:
        at = ".".join(path)
        found = layer.sources.get(at) or next((v for k, v in layer.sources.items() if k.startswith(f"{at}.")), None)
        if found:
            return found
        path.pop()
    return where


def hint(word: str, known: Iterable[str]) -> str:
    """The nearest valid word, or else all of them."""
    known = list(known)
    near = get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"


def _path(loc: tuple[int | str, ...], values: Any, *, missing: bool) -> list[str]:
    """The keys of a location, without the names of union members that pydantic puts between them."""
    path: list[str] = []
    at = values
    for depth, part in enumerate(loc):
        if isinstance(at, dict) and part in at:
            path.append(str(part))
            at = at[part]
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
            path.append(called(at) if isinstance(at, dict) and ("id" in at or "name" in at) else str(part))
        elif missing and depth == len(loc) - 1:
            path.append(str(part))
    return path


def _numbered(key: str, values: Any) -> list[str]:
    """A key path with items of lists by number, as places are noted."""
    path = []
    for part in key.split("."):
        if isinstance(values, list):
            index = index_of(values, part)
            path.append(part if index is None else str(index))
            values = None if index is None else values[index]
        else:
            path.append(part)
            values = values.get(part) if isinstance(values, dict) else None
    return path


def _what(error: dict[str, Any], model: type[BaseModel], path: list[str]) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key{hint(path[-1], _fields_at(model, path[:-1]))}"
    if error["type"] == "missing":
        return "is missing"
    given = error.get("input")
    if given is None:
        return "is empty; give it a value, or leave it out"
    shown = "" if isinstance(given, dict) else f" (it is {given!r})"
    said = str(error["msg"]).removeprefix("Value error, ").partition(" or instance of ")[0]
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
