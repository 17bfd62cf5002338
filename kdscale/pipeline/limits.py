"""What terms and modifiers cannot do in a stage, refused before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdscale import plugins
from kdscale.api import Loss, Modifier, Term
from kdscale.config.schema import StageSpec, TermConfig
from kdscale.errors import ConfigError

__all__ = ["may_accumulate", "refuse_accumulation", "refuse_modifiers"]


def refuse_accumulation(spec: StageSpec, passes: Mapping[str, Sequence[Term]], where: str) -> None:
    """Micro-batches give another result than the whole batch where a term looks at the batch as a whole."""
    if spec.train.accumulation == 1:
        return
    at = f"{where}.train.accumulation: {spec.train.accumulation}"
    if len(passes) > 1:
        raise ConfigError(f"{at} does not go with several passes over a batch; set it to 1")
    for term in (term for terms in passes.values() for term in terms):
        if term.loss.relational or term.loss.stateful or any(modifier.selects for modifier in term.modifiers):
            raise ConfigError(f"{at} does not go with {term.id}, which looks at the batch as a whole; set it to 1")


def may_accumulate(spec: StageSpec, *, per_pixel: bool) -> bool:
    """Whether a stage's batches may be computed in parts."""
    losses = [plugins.load("losses", term.name, spec.plugins) for term in spec.terms]
    modifiers = [plugins.load("modifiers", one.name, spec.plugins) for term in spec.terms for one in term.modifiers]
    whole = any(loss.relational or loss.stateful for loss in losses) or any(one.selects for one in modifiers)
    return not (per_pixel or whole or len(spec.passes) > 1)


def refuse_modifiers(built: Sequence[Modifier], term: TermConfig, loss: Loss, spec: StageSpec, where: str) -> None:
    """Refuse modifiers that this term, or this stage's data, gives nothing to."""
    for modifier, config in zip(built, term.modifiers, strict=True):
        at = f"{where}.modifiers.{config.name}"
        if modifier.judges_labels and spec.data.augment.mixes:
            raise ConfigError(
                f"{at}: asks whether the teacher is right, and a mixed sample has two labels; set "
                f"stages.{spec.name}.data.augment.mixup and cutmix to 0"
            )
        if modifier.selects and not loss.per_sample:
            raise ConfigError(f"{at}: picks samples, but {term.name} has one value a batch; take it off this term")
