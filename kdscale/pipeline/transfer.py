"""A stage on a transfer set learns from its teachers alone: whatever asks for labels is refused before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from kdscale import plugins
from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec, TermConfig
from kdscale.config.stages import term_key
from kdscale.errors import ConfigError
from kdscale.pipeline.cost import training_rows

__all__ = ["refuse_labels"]


def refuse_labels(spec: StageSpec, info: DatasetInfo) -> None:
    """Look for what reads the labels of the rows that train; those of validation and test stay.

    Args:
        spec: of the stage, its caches resolved.
        info: its data.

    Raises:
        ConfigError: with the key path of who reads them, or of a transfer set that has no row.
    """
    if spec.data.transfer is None or not spec.train.epochs:
        return
    if not training_rows(spec, info):
        kept = info.train_rows - round(info.train_rows * spec.data.val_fraction)
        said = f"leaves no row of the {kept} that are not for validation; lower it"
        raise ConfigError(f"stages.{spec.name}.data.transfer: {spec.data.transfer} {said}")
    for at, said in _readers(spec):
        raise ConfigError(f"{at}: {said}, and stages.{spec.name}.data.transfer trains on rows without labels")


def _readers(spec: StageSpec) -> Iterator[tuple[str, str]]:
    """Key path and words of everything that reads a label."""
    for role, ref in spec.teachers.items():
        at = f"stages.{spec.name}.teachers.{role}"
        if ref.virtual is not None:
            yield f"{at}.virtual", "a virtual teacher answers from the labels"
        if ref.cache is not None and ref.cache.record == "topk":
            yield f"{at}.cache.record", "topk keeps what the teacher says of the label (set record: dense)"
    for pass_, terms in spec.passes.items():
        for term in terms:
            yield from _of_term(term, spec, term_key(spec, spec.name, pass_, term.id))


def _of_term(term: TermConfig, spec: StageSpec, at: str) -> Iterator[tuple[str, str]]:
    if "labels" in plugins.load("losses", term.name, spec.plugins).needs:
        yield at, f"{term.name} compares with the labels"
    for modifier in term.modifiers:
        if plugins.load("modifiers", modifier.name, spec.plugins).judges_labels:
            yield f"{at}.modifiers.{modifier.name}", "it asks whether the teacher is right"
