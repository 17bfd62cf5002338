"""What does not go with data whose pixels have classes, refused before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from kdscale import plugins
from kdscale.api import DatasetInfo, Loss
from kdscale.config.schema import StageSpec, TeacherRef, TermConfig
from kdscale.config.stages import term_key
from kdscale.errors import ConfigError

__all__ = ["refuse_what_pixels_cannot"]


def refuse_what_pixels_cannot(spec: StageSpec, info: DatasetInfo) -> None:
    """Compare a stage with the labels of its data. Raises: ConfigError, with the key path."""
    found = _for_pixels(spec) if info.per_pixel else _for_images(spec)
    for key, said in found:
        raise ConfigError(f"{key}: {said}")


def _for_images(spec: StageSpec) -> Iterator[tuple[str, str]]:
    if spec.expect is not None and spec.expect.miou is not None:
        yield f"stages.{spec.name}.expect.miou", f"{spec.data.name} has one label an image: say top1"
    for pass_, terms in spec.passes.items():
        for term in terms:
            if _loss(term.name, spec).dense:
                said = f"{term.name} compares pixels, and {spec.data.name} has one label an image"
                yield term_key(spec, spec.name, pass_, term.id), said


def _for_pixels(spec: StageSpec) -> Iterator[tuple[str, str]]:
    at, name, augment = f"stages.{spec.name}", spec.data.name, spec.data.augment
    unfit = {
        "data.augment.mixup": (augment.mixup, "those of two images cannot be mixed; leave it out"),
        "data.augment.cutmix": (augment.cutmix, "those of two images cannot be mixed; leave it out"),
        "data.augment.cutout": (augment.cutout, "it would hide some that have a class; leave it out"),
        "train.accumulation": (spec.train.accumulation > 1, "parts of a batch have unequally many; set it to 1"),
        "data.store": (spec.data.store == "jpeg", "whose classes lie beside the image and stay exact; use raw"),
        "strategy": (spec.strategy != "distill", f"{spec.strategy} takes logits (B, C); distill takes both"),
        "expect.top1": (spec.expect is not None and spec.expect.top1 is not None, "there is no top-1; say miou"),
    }
    yield from ((f"{at}.{key}", f"{name} labels pixels, and {said}") for key, (is_set, said) in unfit.items() if is_set)
    for role, ref in spec.teachers.items():
        yield from _of_teacher(f"{at}.teachers.{role}", ref)
    for pass_, terms in spec.passes.items():
        for term in terms:
            yield from _of_term(term_key(spec, spec.name, pass_, term.id), term, spec)


def _of_term(at: str, term: TermConfig, spec: StageSpec) -> Iterator[tuple[str, str]]:
    if term.modifiers:
        yield f"{at}.modifiers", "they take logits (B, C), and this data labels pixels; leave them out"
    if not _takes_maps(_loss(term.name, spec)):
        said = f"{term.name} takes logits (B, C), and this data labels pixels; losses for these: {_for_maps(spec)}"
        yield at, said


def _of_teacher(at: str, ref: TeacherRef) -> Iterator[tuple[str, str]]:
    for key, value in {"cache": ref.cache, "mean": ref.mean, "virtual": ref.virtual}.items():
        if value is not None:
            yield f"{at}.{key}", "holds logits (B, C), and this data labels pixels; let its network answer live"
    if "@acc:" in (ref.from_ or ""):
        yield f"{at}.from", "snapshots by accuracy are for labels of images; take @best, the highest mIoU"


def _loss(name: str, spec: StageSpec) -> type[Loss]:
    loss: type[Loss] = plugins.load("losses", name, spec.plugins)
    return loss


def _takes_maps(loss: type[Loss]) -> bool:
    return loss.dense or loss.needs == {"features"}


def _for_maps(spec: StageSpec) -> str:
    return ", ".join(name for name in plugins.available("losses") if _takes_maps(_loss(name, spec)))
