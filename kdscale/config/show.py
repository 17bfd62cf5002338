"""`--show-config` and `--schema`: what a config comes to, and what set each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from kdscale import plugins
from kdscale.config.load import Sweep, Trial, named_sources
from kdscale.config.macros import MACROS
from kdscale.config.parsing import write_value
from kdscale.config.schema import Experiment, StageSpec, TermConfig
from kdscale.config.stages import MERGED

__all__ = ["json_schema", "show_config"]

Line = tuple[str, Any, str]
"""Dotted key, value, what set it."""


def show_config(sweep: Sweep) -> str:
    """Every resolved value of the first trial, one a line, with the file and line or the flag that set it.

    Of a stage's sections (train, data, engine, resources) only what differs from the top level's stands there.
    """
    trial = sweep.trials[0]
    sources = named_sources(trial)
    lines = [*_top(trial, sources)]
    for name, spec in trial.stages.items():
        lines += _stage(f"stages.{name}", spec, trial, sources)
    texts = [(f"{key}: {_inline(value)}", source) for key, value, source in lines]
    width = min(72, max(len(text) for text, _ in texts))
    return "\n".join([*_head(sweep), *(f"{text:<{width}}  # {source}" for text, source in texts)])


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file: an experiment, plus what is taken out before it is validated."""
    schema = Experiment.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "kdscale config"
    schema["properties"] |= {
        "extends": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "files that lie underneath, the last on top; `kdscale:NAME` is a shipped one",
        },
        "sweep": {
            "type": "object",
            "description": "axes: lists, range(N), named patches; zip, random, exclude; or a search: method: optuna",
        },
    }
    schema["patternProperties"] = {r"\.": {"description": "a dotted key sets what it names, whole"}}
    definitions = schema["$defs"]
    for key, macro in MACROS.items():
        definitions[macro.__name__] = macro.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions |= definitions[macro.__name__].pop("$defs")
        schema["properties"][key] = {"$ref": f"#/$defs/{macro.__name__}"}
    for section in MERGED:
        definitions["StageConfig"]["properties"][section] = {"$ref": f"#/$defs/{section.capitalize()}Config"}
    definitions["TermConfig"]["properties"]["name"]["examples"] = plugins.available("losses")
    definitions["StudentConfig"]["properties"]["model"]["examples"] = plugins.available("models")
    # A file may leave out what its base or a patch brings: what is missing is only seen in the whole.
    partial = ("StageConfig", "StudentConfig", *(macro.__name__ for macro in MACROS.values()))
    for definition in (schema, *(definitions[name] for name in partial)):
        definition.pop("required", None)
    return schema


def _head(sweep: Sweep) -> Iterator[str]:
    if not sweep.axes:
        return
    trial = sweep.trials[0]
    if sweep.search is not None:
        yield f"# a search of {sweep.search.trials} trials; this is one corner of its space"
        yield from (f"#   {key}: {one}" for key, one in sweep.search.dimensions.items())
        return
    many = f"{len(sweep.trials)} trials" if len(sweep.trials) > 1 else "1 trial"
    yield f"# {many}; this is the first: " + ", ".join(f"{k}={v}" for k, v in trial.axes.items())
    for axis, labels in sweep.axes.items():
        yield f"#   {axis}: {', '.join(labels)}"


def _top(trial: Trial, sources: Mapping[str, str]) -> Iterator[Line]:
    for key, value in _leaves(trial.experiment.model_dump(mode="json", exclude={"stages", "cite"})):
        yield key, value, _source(key, sources)


def _stage(at: str, spec: StageSpec, trial: Trial, sources: Mapping[str, str]) -> Iterator[Line]:
    top = trial.experiment
    fields: dict[str, Any] = _dump(
        spec, exclude={"name", "tracking", "plugins", "protocol", "variant", "passes", *MERGED}
    )
    fields["student"] |= _unset("models", spec.student.model, spec.student.arguments)
    passes = {pass_: {term.id: _term(term) for term in terms} for pass_, terms in spec.passes.items()}
    fields |= {"losses": passes["main"]} if list(passes) == ["main"] else {"passes": passes}
    for key, value in _leaves({key: one for key, one in fields.items() if one is not None}, at):
        inherited = key == f"{at}.seed" and key not in sources
        yield key, value, f"{_source('seed', sources)}, inherited" if inherited else _source(key, sources)
    for section in MERGED:
        shared = dict(_leaves(_dump(getattr(top, section))))
        for key, value in _leaves(_dump(getattr(spec, section))):
            if shared.get(key, ...) != value:
                yield f"{at}.{section}.{key}", value, _source(f"{at}.{section}.{key}", sources)


def _term(term: TermConfig) -> dict[str, Any]:
    fields = {key: value for key, value in _dump(term, exclude={"id"}).items() if value is not None}
    return fields | _unset("losses", term.name, term.options)


def _unset(kind: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a plug-in's own options."""
    known = plugins.options(kind, name) if name in plugins.available(kind) else {}
    hidden = (plugins.REQUIRED, plugins.UNREADABLE)
    found = {key: one for key, one in (known or {}).items() if key not in given and one not in hidden}
    return {
        key: list(one) if isinstance(one, tuple) else one
        for key, one in found.items()
        if key not in ("channels", "size")
    }


def _dump(model: BaseModel, exclude: set[str] | None = None) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude=exclude)


def _leaves(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{at}.{key}" if at else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def _inline(value: Any) -> str:
    return write_value(value, inline=True).removesuffix("...\n").strip()


def _source(key: str, sources: Mapping[str, str]) -> str:
    """The place that set a key, or something within it (a list is set where it begins)."""
    found = sources.get(key)
    return found or next((place for k, place in sources.items() if k.startswith(f"{key}.")), "default")
