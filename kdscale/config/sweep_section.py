"""The `sweep` section with the command line's part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdscale.config.axes import axes_of, exclusions_of, suggested_axis
from kdscale.config.complaints import hint
from kdscale.config.merging import Layer
from kdscale.config.patches import FLAG, Axis, Override, Point
from kdscale.config.reading import absolute_paths
from kdscale.config.search import SearchConfig, is_search, search_of
from kdscale.errors import ConfigError

__all__ = ["Section", "Suggested"]

Suggested = Mapping[str, Mapping[str, Any]]
"""Values by dotted key, by a trial's label."""

NESTED = ("space", "sampler", "prune")
"""Settings of a search that are mappings themselves."""


class Section:
    """The `sweep` section with the command line's part in it: its axes, exclusions, and what is fixed.

    Args:
        whole: the config.
        flags: of the command line.
        where: the config's path.
        suggested: of a search, its trials; by default the corners of its space.

    Raises:
        ConfigError: an axis, a setting of a search or a flag that cannot be.
    """

    def __init__(self, whole: Layer, flags: Sequence[Override], where: str, suggested: Suggested | None = None) -> None:
        section = whole.values.get("sweep")
        if section is not None and not isinstance(section, dict):
            raise ConfigError(f"{whole.sources.get('sweep', where)}: sweep: is a mapping of axes")
        self.values: dict[str, Any] = dict(section or {})
        self.flagged: set[str] = set()
        self.fixed: dict[str, Any] = {}
        self._sources, self._where = whole.sources, where
        for flag in flags:
            self._take(flag)
        self.search: SearchConfig | None = None
        self.axes = self._searched(suggested) if is_search(self.values) else axes_of(self.values, self._place)
        names = [axis.name for axis in self.axes]
        for twice in {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"{where}: sweep.{twice}: two axes have this name")
        rules = {} if self.search else self.values
        self.exclude = exclusions_of(rules, self.axes, self._place, lenient=bool(self.flagged))

    def _searched(self, suggested: Suggested | None) -> list[Axis]:
        """The trials of a search, and what each suggestion is averaged over."""
        self.search, beside = search_of(self.values, self._place)
        given = self.search.corners() if suggested is None else suggested
        where = f"{self._place('space')}: sweep.space"
        return [suggested_axis(given, self.search.space, where), *axes_of(beside, self._place)]

    def in_order(self, combination: Sequence[Point]) -> list[Point]:
        """Points in the order in which they are applied: patches first, the command line's axes last."""
        pairs = zip(self.axes, combination, strict=True)
        return [point for _, point in sorted(pairs, key=lambda pair: self._rank(pair[0]))]

    def is_flags(self, axis: Axis) -> bool:
        return bool(axis.keys & self.flagged)

    def _rank(self, axis: Axis) -> int:
        return 0 if not axis.keys else 2 if self.is_flags(axis) else 1

    def _take(self, flag: Override) -> None:
        """Put one KEY=VALUE where it belongs: into the section, onto one of its axes, or over every trial."""
        key = flag.key.removeprefix("sweep.")
        values = [absolute_paths({key: value}, Path.cwd())[key] for value in flag.values]
        one = values if flag.sweeps else values[0]
        first, _, rest = key.partition(".")
        if key != flag.key and first in NESTED and rest:
            self._set_within(first, rest, one)
        elif key != flag.key:
            self._set_axis(key, one)
        elif key in SearchConfig.model_fields and is_search(self.values):
            raise ConfigError(f"{FLAG}: {flag.text}: a setting of the search: say sweep.{flag.text}")
        elif isinstance(self.values.get(key), dict) and key not in ("random", "zip", "exclude"):
            self.values[key] = self._picked(flag)
        elif flag.sweeps or key in self.values:
            self.values[key] = values
            self.flagged.add(key)
        else:
            self._refuse_what_changes_together(key)
            self.fixed[key] = one

    def _set_axis(self, key: str, value: Any) -> None:
        self.flagged.add(key)
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value

    def _set_within(self, section: str, key: str, value: Any) -> None:
        """Set one setting of a search's `space`, `sampler` or `prune`; null takes it out."""
        known = self.values.get(section)
        inner = {"name": known} if isinstance(known, str) else dict(known) if isinstance(known, Mapping) else {}
        inner.pop(key, None)
        self.values[section] = inner if value is None else inner | {key: value}
        self.flagged.add(f"{section}.{key}")

    def _picked(self, flag: Override) -> dict[str, Any]:
        """The named patches of an axis that the command line picks."""
        patches = self.values[flag.key]
        for name in map(str, flag.values):
            if name not in patches:
                raise ConfigError(f"{FLAG}: {flag.text}: {name} is no patch of this axis{hint(name, patches)}")
        self.flagged.add(flag.key)
        return {str(name): patches[str(name)] for name in flag.values}

    def _refuse_what_changes_together(self, key: str) -> None:
        groups = self.values.get("zip") or []
        zipped = [
            k for group in (groups if isinstance(groups, list) else [groups]) if isinstance(group, dict) for k in group
        ]
        chance = self.values.get("random")
        drawn = list(chance.get("space") or {}) if isinstance(chance, dict) else []
        searched = list(self.values.get("space") or {}) if is_search(self.values) else []
        for kind, keys in (("zip", zipped), ("random", drawn), ("space", searched)):
            if key in keys:
                out = f"space.{key}" if kind == "space" else kind
                raise ConfigError(
                    f"{FLAG}: {key}: sweep.{kind} goes through its values; take that out with sweep.{out}=null"
                )

    def _place(self, key: str) -> str:
        """`file:line` of a key within the section."""
        first = next((k for k in self.flagged if key == k or key.startswith(f"{k}.")), None)
        if first is not None and (key == first or f"sweep.{key}" not in self._sources):
            return FLAG
        while key:
            if f"sweep.{key}" in self._sources:
                return self._sources[f"sweep.{key}"]
            key = key.rpartition(".")[0]
        return self._sources.get("sweep", self._where)
