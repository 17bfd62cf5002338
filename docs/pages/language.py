"""The page of the stage language: every key of a config, from the schema that configs are validated by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from docs.pages.markdown import prose, table
from kdscale.config.macros import MACROS
from kdscale.config.schema import StageSpec
from kdscale.config.show import json_schema
from kdscale.jobs.slurm.profile import Profile

__all__ = ["page", "profile", "words"]

HEAD = """\
# The stage language

A config is one YAML file: sections that all stages share, and `stages`, each of which trains one network. This page
lists every key, written from the schema that configs are validated by; an unknown key is an error that names the
nearest one.

- **In the digest**: *yes* means that the key can change the numbers, so a stage with another value is another stage
  and is trained anew. *no* means that it may change at any time: what is done stays done. Only what differs from a
  default is hashed, so a key that a later kdscale adds orphans nothing.
- `train`, `data`, `engine` and `resources` stand at the top for all stages; a stage's own lie over them key by key.
- Editors complete and check keys by the [JSON Schema](commands.md#sweep): `python launch/sweep.py --schema >
  schema.json`, then `# yaml-language-server: $schema=schema.json` at the top of a config.
- What extends what, sweeps, overrides and names: [Sweeps](sweeps.md). Paths of networks that teach each other:
  [Macros](macros.md). What a term compares: [Taps](taps.md).
"""
ALIASES = {"losses": "passes", "init_skip": "init_from"}
"""Keys of a stage as the user writes it, by what they become in the stage that is hashed."""
EXPANDED = {macro.__name__ for macro in MACROS.values()}
BY_ITS_KEYS = {"train", "data", "stages", "teachers", "losses", "passes", "student"}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
KINDS = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false", "null": "null"}


def page() -> str:
    """All sections, each where the first key leads to it."""
    schema = json_schema()
    definitions = schema["$defs"]
    places = dict(_places(schema, definitions))
    parts = [HEAD, "## The top of a file { #top }\n", _section(schema, "", places, definitions)]
    for name, path in places.items():
        said = definitions[name].get("description", "").partition("\n")[0]
        title = f"## `{path}` {{ #{_anchor(path)} }}"
        parts += [title, said, _section(definitions[name], name, places, definitions)]
    return "\n\n".join(parts) + "\n"


def profile() -> str:
    """The keys of a site's profile."""
    rows = [
        [f"`{key}`", words(value, {}), _default(value, {}, key), prose(value.get("description", ""))]
        for key, value in Profile.model_json_schema()["properties"].items()
    ]
    return table(["key", "type", "default", "meaning"], rows)


def _places(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each definition with the path of keys that leads to it, the shortest one."""
    seen: set[str] = set()
    waiting = [("", schema)]
    while waiting:
        path, node = waiting.pop(0)
        for key, value in node.get("properties", {}).items():
            for name, more in _references(value, f"{path}.{key}" if path else key):
                if name not in seen and name in definitions:
                    seen.add(name)
                    waiting.append((more, definitions[name]))
                    yield name, more


def _references(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Definitions that a property names, with their paths."""
    if "$ref" in value:
        yield value["$ref"].rsplit("/", 1)[1], path
    for one in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        yield from _references(one, path)
    if isinstance(value.get("items"), dict):
        yield from _references(value["items"], path)
    if isinstance(value.get("additionalProperties"), dict):
        yield from _references(value["additionalProperties"], f"{path}.NAME")


def _section(
    node: Mapping[str, Any], name: str, places: Mapping[str, str], definitions: Mapping[str, Any]
) -> str:  # fmt: skip
    rows = []
    for key, value in node.get("properties", {}).items():
        meaning = value.get("description") or _said(value, definitions)
        rows.append(
            [f"`{key}`", words(value, places), _default(value, node, key), prose(meaning), _hashed(name, key, value)]
        )
    more = "\n\nFurther keys are options of what is named." if node.get("additionalProperties") is True else ""
    return table(["key", "type", "default", "meaning", "in the digest"], rows) + more


def _said(value: Any, definitions: Mapping[str, Any]) -> str:
    names = [name for name, _ in _references(value, "")]
    return definitions[names[0]].get("description", "").partition("\n")[0] if names else ""


def words(value: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """A type in words, with a link where it has a section of its own."""
    if "$ref" in value:
        path = places.get(value["$ref"].rsplit("/", 1)[1])
        return f"[`{path}`](#{_anchor(path)})" if path else "mapping"
    if "enum" in value or "const" in value:
        return " or ".join(f"`{json.dumps(one)}`".replace('"', "") for one in value.get("enum", [value.get("const")]))
    choices = [one for one in (*value.get("anyOf", ()), *value.get("oneOf", ())) if one.get("type") != "null"]
    if choices:
        return " or ".join(dict.fromkeys(words(one, places) for one in choices))
    if value.get("type") == "array":
        inner = value.get("items")
        return f"list, each {words(inner, places)}" if isinstance(inner, dict) else "list"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return f"mapping, each {words(inner, places)}" if isinstance(inner, dict) else "mapping"
    bounds = [f"{said} {value[bound]:g}" for bound, said in BOUNDS.items() if bound in value]
    return " ".join([KINDS.get(value.get("type", ""), "anything"), ", ".join(bounds)]).strip()


def _default(value: Mapping[str, Any], node: Mapping[str, Any], key: str) -> str:
    if key in node.get("required", ()):
        return "required"
    found = value.get("default")
    if found is None or found in ({}, [], "") or isinstance(found, dict):
        return ""
    return f"`{json.dumps(found, ensure_ascii=False)}`".replace('"', "")


def _hashed(name: str, key: str, value: Mapping[str, Any]) -> str:
    """Whether a key enters a stage's digest; of what all stages share it is the stage's own mark that counts."""
    if name == "PublishedFigure":
        return "no"
    if name in EXPANDED:
        return "what it comes to"
    if name in ("", "StageConfig"):
        if key in BY_ITS_KEYS:
            return "by its keys"
        if key in ("extends", "sweep", "params", *MACROS):
            return "what it comes to"
        field = StageSpec.model_fields.get(ALIASES.get(key, key))
        return "yes" if field is not None and _is_identity(field.json_schema_extra) and key != "name" else "no"
    return "yes" if _is_identity(value) else "no"


def _is_identity(extra: Any) -> bool:
    return not (isinstance(extra, Mapping) and extra.get("identity") is False)


def _anchor(path: str) -> str:
    return path.lower().replace(".", "-")
