"""`report.py --bibtex`: entries for a bibliography of everything that sweeps used.

A plug-in says its own in its file, `BIBTEX`; a recipe in its config, `cite`; kdscale in CITATION.cff.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

import kdscale
from kdscale import plugins
from kdscale.config.schema import StageSpec
from kdscale.report.records import SweepRecord

__all__ = ["Used", "bibliography", "bibliography_of", "entries_of", "used_by"]

_HEAD = re.compile(r"@(\w+)\s*\{\s*([^\s,{}\"#%~=()\\]+)\s*,")


class Used(NamedTuple):
    """A plug-in that a stage uses."""

    kind: str
    name: str
    path: tuple[Path, ...] = ()
    """Where a user's own lies."""


def bibliography(sweeps: Sequence[SweepRecord]) -> str:
    """Entries of what sweeps used, sorted by key and each once, and comments on what has none."""
    remarks: set[str] = set()
    return _joined(list(_texts(sweeps, remarks)), remarks)


def bibliography_of(spec: StageSpec) -> str:
    """Entries of what one stage uses, likewise."""
    remarks: set[str] = set()
    return _joined(list(_texts_of(spec, remarks)), remarks)


def _joined(texts: Sequence[tuple[str, str, frozenset[str]]], remarks: set[str]) -> str:
    found: dict[str, str] = _of_kdscale()
    for whose, text, optional in texts:
        try:
            entries = entries_of(text)
        except ValueError as error:
            remarks.add(f"{whose}: its BibTeX cannot be read: {error}")
            continue
        found = {key: entry for key, entry in entries.items() if key not in optional} | found
    said = "\n".join(f"% {_plain(remark)}" for remark in sorted(remarks))
    return "\n\n".join([*([said] if said else []), *(found[key] for key in sorted(found))]) + "\n"


def entries_of(text: str) -> dict[str, str]:
    """BibTeX entries by key, as they stand in a text.

    Raises:
        ValueError: it is no sequence of entries with balanced braces.
    """
    found = {}
    rest = text.strip()
    while rest:
        head = _HEAD.match(rest)
        if head is None:
            raise ValueError(f"an entry begins with @kind{{key, not with {rest[:30]!r}")
        end = _end_of(rest, head[2])
        found[head[2]] = rest[:end]
        rest = rest[end:].strip()
    return found


def used_by(spec: StageSpec) -> list[Used]:
    """The plug-ins of a stage."""
    own = tuple(spec.plugins.path)
    found = [Used("losses", term.name) for term in spec.terms]
    found += [Used("modifiers", modifier.name) for term in spec.terms for modifier in term.modifiers]
    found += [Used("strategies", spec.strategy), Used("models", spec.student.model), Used("datasets", spec.data.name)]
    found += [Used("teachers", "virtual") for ref in spec.teachers.values() if ref.virtual is not None]
    found += [Used("teachers", "ensemble") for ref in spec.teachers.values() if ref.mean]
    if not spec.train.epochs:  # what is imported trains on nothing
        found = [one for one in found if one.kind in ("models", "datasets")]
    return [one._replace(path=own) for one in found]


def _texts(sweeps: Sequence[SweepRecord], remarks: set[str]) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Whose, their BibTeX, and the keys of it that do not apply; what has none is remarked on."""
    for sweep in sweeps:
        for name, entry in (sweep.plan.get("cite") or {}).items():
            yield f"{sweep.short}: cite.{name}", entry, frozenset()
        for stage in sweep.trained:
            if "spec" not in stage.definition:
                remarks.add(f"{sweep.name_of(stage)} left no stage.yaml: what it uses is not known")
                continue
            yield from _texts_of(StageSpec.model_validate(stage.definition["spec"]), remarks)


def _texts_of(spec: StageSpec, remarks: set[str]) -> Iterator[tuple[str, str, frozenset[str]]]:
    for used in used_by(spec):
        text = plugins.bibtex(*used)
        if not text and ":" in used.name:
            remarks.add(_without_entry(used))
        yield f"{used.kind} {used.name}", text, _unused(spec) if used.name == "ce" else frozenset()


def _without_entry(used: Used) -> str:
    if used.name.startswith(("torchvision:", "timm:")):
        return f"{used.name} ({used.kind}) has no entry here: cite what its library names"
    return f"{used.name} ({used.kind}) has no entry: its file sets no BIBTEX"


_ONLY_WITH: Mapping[str, Callable[[StageSpec], object]] = {
    "szegedy2016rethinking": lambda spec: (
        spec.train.label_smoothing or any(t.name == "ce" and t.options.get("label_smoothing") for t in spec.terms)
    ),
    "zhang2018mixup": lambda spec: spec.data.augment.mixup,
    "yun2019cutmix": lambda spec: spec.data.augment.cutmix,
}
"""Entries of `ce` that are of what may be asked of it, not of cross-entropy itself."""


def _unused(spec: StageSpec) -> frozenset[str]:
    return frozenset(key for key, applies in _ONLY_WITH.items() if not applies(spec))


def _of_kdscale() -> dict[str, str]:
    cff = yaml.safe_load((Path(kdscale.__file__).parent / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join(f"{{{author['name']}}}" for author in cff["authors"])
    fields = {"author": authors, "title": f"{{{cff['title']}}}", "note": f"version {cff['version']}"}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return {"kdscale": f"@misc{{kdscale,\n{lines}\n}}"}


def _end_of(text: str, key: str) -> int:
    """Where the first entry's last brace is closed."""
    depth = 0
    for sign in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(sign[0], 0)
        if not depth and sign[0] == "}":
            return sign.end()
    raise ValueError(f"entry {key} is not closed")


def _plain(text: str) -> str:
    """A remark between entries: a sign that begins one would be read as one."""
    return text.replace("@", "(at)").replace("\n", " ")
