"""`--show-config` and `--schema`: what a config comes to, and what set each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kdscale.config.load import Sweep
from kdscale.config.schema import Experiment

__all__ = ["json_schema", "show_config"]


def show_config(sweep: Sweep) -> str:
    """Every resolved value of the first trial, one a line, with the file and line or the flag that set it."""
    trial = sweep.trials[0]
    values = trial.experiment.model_dump(mode="json", by_alias=True)
    swept = {key: "sweep" for key in trial.swept}
    lines = [(f"{key}: {_inline(value)}", _source(key, sweep.sources, swept)) for key, value in _leaves(values)]
    width = min(72, max(len(text) for text, _ in lines))
    head = [f"# {len(sweep.trials)} trials; this is the first: " + ", ".join(f"{k}={v}" for k, v in trial.axes.items())]
    return "\n".join((head if sweep.axes else []) + [f"{text:<{width}}  # {source}" for text, source in lines])


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file: an experiment, plus what is taken out before it is validated."""
    schema = Experiment.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "kdscale config"
    schema["properties"] |= {
        "extends": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "sweep": {"type": "object", "description": "axes: lists, range(N), named patches; zip, random, exclude"},
    }
    schema.pop("required", None)
    return schema


def _leaves(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{at}.{key}" if at else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                yield from _leaves(item, f"{path}.{item.get('id') or item.get('name') or index}")
        else:
            yield path, value


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _source(key: str, sources: Mapping[str, str], swept: Mapping[str, str]) -> str:
    """The place that set a key, or the nearest mapping around it that was set whole."""
    if key in swept:
        return "sweep"
    found = sources.get(key) or sources.get(_numbered(key, sources))
    return found or "default"


def _numbered(key: str, sources: Mapping[str, str]) -> str:
    """A term's key as the file has it, where list items go by number."""
    parts = key.split(".")
    if len(parts) >= 5 and parts[2] == "losses":
        for index in range(64):
            candidate = ".".join([*parts[:3], str(index), *parts[4:]])
            if ".".join([*parts[:3], str(index)]) not in sources:
                break
            if candidate in sources:
                return candidate
    return key
