"""From a cache in a config to what it asks of a teacher's cache, and which terms a cache cannot serve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from kdscale import plugins
from kdscale.api import DatasetInfo, Loss, Modifier
from kdscale.cache.layout import Layout
from kdscale.config.schema import AugmentConfig, CacheConfig, DataConfig, StageSpec, TermConfig
from kdscale.config.stages import term_key
from kdscale.data.loader import view_scheme
from kdscale.errors import ConfigError
from kdscale.pipeline.assemble import plugin_config
from kdscale.pipeline.cache_need import CacheNeed

__all__ = ["doubts", "need_of", "refuse_what_the_cache_cannot_give", "resolve_caches"]

MOST_CLASSES_DENSE = 256
MOST_CLASSES_UNIFORM = 65_536


def resolve_caches(spec: StageSpec, info: DatasetInfo) -> StageSpec:
    """Replace what a cache's config leaves open by what it means for this stage and data.

    Raises:
        ConfigError: it says what does not fit the number of classes, or two caches differ in their views.
    """
    cached = {role: ref.cache for role, ref in spec.teachers.items() if ref.cache is not None}
    if not cached:
        return spec
    if spec.train.epochs == 0:
        raise ConfigError(f"stages.{spec.name}.teachers: a stage that does not train reads no cache; leave it out")
    resolved = {role: _resolved(c, spec, info, f"stages.{spec.name}.teachers.{role}") for role, c in cached.items()}
    if len({cache.views for cache in resolved.values()}) > 1:
        said = ", ".join(f"{role} {cache.views}" for role, cache in resolved.items())
        raise ConfigError(f"stages.{spec.name}.teachers: a student sees one view at a time: equal views ({said})")
    teachers = {
        role: ref.model_copy(update={"cache": resolved[role]}) if role in resolved else ref
        for role, ref in spec.teachers.items()
    }
    return spec.model_copy(update={"teachers": teachers})


def _resolved(cache: CacheConfig, spec: StageSpec, info: DatasetInfo, at: str) -> CacheConfig:
    said = cache.model_dump(exclude_unset=True)
    record = cache.record
    if record == "auto":
        record = "dense" if info.classes <= MOST_CLASSES_DENSE else "topk"
    drawn = 1 if spec.data.augment == AugmentConfig() else cache.views
    said |= {
        "record": record, "views": min(drawn, spec.train.epochs),
        "precision": spec.train.precision if cache.precision == "auto" else cache.precision,
    }  # fmt: skip
    if record != "topk":
        for key in ("k", "residual", "draws"):
            if key in said:
                raise ConfigError(f"{at}.cache.{key}: is for record: topk; {info.classes} classes are kept dense")
        return CacheConfig(**said)
    if cache.k >= info.classes:
        raise ConfigError(f"{at}.cache.k: {cache.k} of {info.classes} classes is all of them: set record: dense")
    if cache.residual == "auto":
        said["residual"] = "uniform" if info.classes <= MOST_CLASSES_UNIFORM else "sampled"
    if "draws" in said and said["residual"] != "sampled":
        raise ConfigError(f"{at}.cache.draws: is for residual: sampled, not {said['residual']}")
    return CacheConfig(**said)


def need_of(
    spec: StageSpec, role: str, parent: tuple[str, str], info: DatasetInfo, fingerprint: str, pooled: int
) -> CacheNeed:
    """What a stage asks of one teacher's cache.

    Args:
        spec: of the stage, resolved.
        role: the teacher's name in it.
        parent: the teacher's digest and selector.
        info: of the stage's data.
        fingerprint: of its data.
        pooled: features of the teacher's tap `pooled`; 0 where they are not kept.
    """
    cache = spec.teachers[role].cache
    assert cache is not None
    assert cache.record != "auto"
    sparse = cache.record == "topk"
    residual = cache.residual if sparse and cache.residual != "auto" else "uniform"
    temperatures = {1.0, *(t for term in _listening(spec, role) for t in [_temperature(term, spec)])}
    layout = Layout(
        classes=info.classes, kind=cache.record, k=cache.k if sparse else 0,
        residual=residual, draws=cache.draws if residual == "sampled" else 0,
        temperatures=tuple(sorted(temperatures)) if sparse else (), pooled=pooled, mixing=spec.data.augment.mixes,
    )  # fmt: skip
    data = {"fingerprint": fingerprint, "views": view_scheme(spec.data, info), "split": _split(spec.data, info)}
    return CacheNeed(
        *parent, data, layout, cache.precision, cache.fold, cache.block_rows, cache.views, cache.shard_mb
    )  # fmt: skip


def _listening(spec: StageSpec, role: str) -> list[TermConfig]:
    """The terms that listen to a teacher, alone or in an ensemble."""
    only = len(spec.teachers) == 1
    names = {role, *(name for name, ref in spec.teachers.items() if role in (ref.mean or []))}
    found = spec.terms
    return [t for t in found if t.teacher in names or (only and t.teacher is None and _listens(t, spec))]


def doubts(layout: Layout) -> Iterator[str]:
    """What a user should know before a cache is filled: key and reason. Figures: benchmarks/residuals.py."""
    if layout.kind != "topk":
        return
    if layout.residual == "renorm":
        yield (
            "residual: renorm takes all probability from the classes that are not kept: students become "
            "overconfident; uniform costs the same and does not"
        )
    softest = layout.temperatures[-1]
    if softest > 1:
        dense = replace(layout, kind="dense", k=0, residual="uniform", draws=0).record_bytes
        yield (
            f"record: at temperature {softest:g} most of the probability lies outside the {layout.k} of "
            f"{layout.classes} logits that are kept (of 1,000 at temperature 4, 10 hold a tenth of it and the gradient "
            f"turns by 40 degrees); dense is exact at every temperature, with {dense:,} bytes a record in "
            f"place of {layout.record_bytes:,}"
        )


def refuse_what_the_cache_cannot_give(spec: StageSpec) -> None:
    """Compare what terms read of cached teachers with what their records hold.

    Raises:
        ConfigError: with the key path of the term, and what would serve it.
    """
    for pass_, terms in spec.passes.items():
        for role, ref in spec.teachers.items():
            if ref.cache is not None:
                listening = [term for term in terms if term in _listening(spec, role)]
                _refuse(spec, role, ref.cache, [(term_key(spec, spec.name, pass_, t.id), t) for t in listening])


def _refuse(spec: StageSpec, role: str, cache: CacheConfig, terms: Iterable[tuple[str, TermConfig]]) -> None:
    for at, term in terms:
        taps = {str(tap) for tap in (term.taps.teacher if term.taps else ())}
        if taps - {"pooled"}:
            raise ConfigError(
                f"{at}.taps: the cache of {role} holds no feature maps ({', '.join(sorted(taps - {'pooled'}))}): take "
                f"`cache` out of stages.{spec.name}.teachers.{role}, or name a second teacher without one"
            )
        if taps and not cache.pooled:
            raise ConfigError(f"{at}.taps: set stages.{spec.name}.teachers.{role}.cache.pooled: true to keep them")
        if cache.record == "topk" and (reader := _reads_logits(term, spec)):
            raise ConfigError(
                f"{at}: {reader} compares logits as they are, of which the cache of {role} holds {cache.k}; set "
                f"stages.{spec.name}.teachers.{role}.cache.record: dense"
            )


def _reads_logits(term: TermConfig, spec: StageSpec) -> str:
    """Who in a term reads more of the teacher's logits than probabilities at its temperature; empty where nobody."""
    loss = _loss(term, spec)
    if "logits" in loss.needs and loss.reads == "logits" and loss.needs_teacher:
        return term.name
    found = zip(term.modifiers, _modifiers(term, spec), strict=True)
    return next((modifier.name for modifier, cls in found if cls.reads == "logits"), "")


def _listens(term: TermConfig, spec: StageSpec) -> bool:
    """Whether a term that names no teacher hears the only one."""
    return _loss(term, spec).needs_teacher or any(cls.needs_teacher for cls in _modifiers(term, spec))


def _modifiers(term: TermConfig, spec: StageSpec) -> list[type[Modifier]]:
    return [plugins.load("modifiers", modifier.name, spec.plugins) for modifier in term.modifiers]


def _temperature(term: TermConfig, spec: StageSpec) -> float:
    loss = _loss(term, spec)
    return loss.temperatures(plugin_config(loss, term.options, f"losses.{term.id}"))[0]


def _loss(term: TermConfig, spec: StageSpec) -> type[Loss]:
    found: type[Loss] = plugins.load("losses", term.name, spec.plugins)
    return found


def _split(data: DataConfig, info: DatasetInfo) -> dict[str, Any]:
    """Which rows train, by the keys that decide it."""
    left = info.train_rows - round(info.train_rows * data.val_fraction) - (data.transfer or 0)
    limit = data.limit if data.limit is not None and data.limit < left else None
    seed = data.split_seed if data.val_fraction or data.transfer or limit is not None else 0
    found = {"val_fraction": data.val_fraction, "split_seed": seed, "limit": limit}
    return found | ({"transfer": data.transfer} if data.transfer else {})
