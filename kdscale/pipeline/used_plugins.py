"""Which plug-ins a stage uses, where its config names them, and what stands for their code in its digest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdscale import plugins
from kdscale.config.schema import StageSpec
from kdscale.config.stages import term_key
from kdscale.errors import PluginError
from kdscale.own_code import is_own

__all__ = ["import_own", "revisions_of"]


class Used(NamedTuple):
    """A plug-in, and the key path of its name."""

    key: str
    kind: str
    name: str


def import_own(spec: StageSpec) -> None:
    """Import a stage's own losses, modifiers and strategy. Raises: PluginError, with the key path."""
    for used in _used(spec):
        if is_own(used.name) and used.kind != "models":  # a network's error comes from building it
            try:
                plugins.load(used.kind, used.name, spec.plugins)
            except PluginError as error:
                raise PluginError(f"{used.key}: {error}") from error


def revisions_of(spec: StageSpec) -> dict[str, str | int]:
    """The revision of each plug-in that a stage uses; a user's own class counts by the hash of its file."""
    return {f"{one.kind}.{one.name}": plugins.revision(one.kind, one.name, spec.plugins) for one in _used(spec)}


def _used(spec: StageSpec) -> Iterator[Used]:
    at = f"stages.{spec.name}"
    for pass_, terms in spec.passes.items():
        for term in terms:
            key = term_key(spec, spec.name, pass_, term.id)
            yield Used(f"{key}.name", "losses", term.name)
            yield from (Used(f"{key}.modifiers", "modifiers", modifier.name) for modifier in term.modifiers)
    yield Used(f"{at}.strategy", "strategies", spec.strategy)
    yield Used(f"{at}.data.name", "datasets", spec.data.name)
    yield Used(f"{at}.student.model", "models", spec.student.model)
