"""What may not change unseen: run as a program this writes frozen.json anew.

    python -m tests.unit.config.frozen

A digest that changed orphans every finished stage of that kind. A default that changed makes two different
stages look the same, as only what differs from the defaults is hashed: raise NUMERICS with it (or the plug-in's
`revision`, where it is an option of a plug-in).
"""

from __future__ import annotations

import json
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdscale import plugins
from kdscale.config.digest import is_outside, stage_digest
from kdscale.config.load import load, resolve_stages
from kdscale.config.schema import InitFrom, ModifierConfig, StageSpec, StudentConfig, TeacherRef, TermConfig

FILE = Path(__file__).with_name("frozen.json")
STUDENT = "student: {model: resnet_cifar, depth: 8}"

CASES: dict[str, str] = {
    "plain": f"{STUDENT}, losses: [{{name: ce}}]",
    "seeded": f"{STUDENT}, losses: [{{name: ce}}], seed: 3",
    "taught": f"{STUDENT}, teachers: {{t: {{from: teacher}}}}, "
    "losses: [{name: ce, weight: 0.1}, {name: kd, weight: 0.9}]",
    "best": f"{STUDENT}, teachers: {{t: {{from: teacher@best}}}}, losses: [{{name: kd, temperature: 2, form: ce}}]",
    "two teachers": f"{STUDENT}, teachers: {{t: {{from: teacher}}, u: {{from: teacher@best}}}}, "
    "losses: [{name: kd, teacher: t}, {name: kd, id: second, teacher: u, weight: {linear: [4, 1]}}]",
    "ensemble": f"{STUDENT}, teachers: {{t: {{from: teacher}}, u: {{from: teacher@best}}, "
    "both: {mean: [t, u], of: probabilities, weights: [2, 1]}}, losses: [{name: kd, teacher: both}]",
    "tapped": f"{STUDENT}, teachers: {{t: {{from: teacher}}}}, "
    "losses: [{name: ce}, {name: fitnet, taps: {student: [stage2, pooled], teacher: [blocks.8, pooled]}}]",
    "tapped in a form": f"{STUDENT}, teachers: {{t: {{from: teacher}}}}, "
    "losses: [{name: ce}, {name: fitnet, taps: {student: stage2, teacher: {module: blocks.8, as: map, grid: [2, 3]}}}]",
    "passes": f"{STUDENT}, teachers: {{t: {{from: teacher}}}}, passes: {{one: [{{name: ce}}], two: [{{name: kd}}]}}",
    "trained otherwise": f"{STUDENT}, losses: [{{name: ce}}], train: {{epochs: 3, lr: 0.05, bn: sync, precision: bf16, "
    "schedule: multistep, ema: 0.999, grad_clip: 1}",
    "other data": f"{STUDENT}, losses: [{{name: ce}}], data: {{name: synthetic, options: {{classes: 4}}, limit: 500, "
    "augment: {flip: true, crop: 4, mixup: 0.2}, split_seed: 2}",
    "initialised": f"{STUDENT}, init_from: {{from: teacher@epoch:2, skip: [head]}}, losses: [{{name: ce}}], "
    "train_only: [head]",
    "imported": "student: {model: 'timm:vit_tiny_patch16_224', classes: 10, weights_hash: abcd, "
    "input: {size: 224, mean: [0.5]}}, train: {epochs: 0}",
}  # fmt: skip


def spec_of(stage: str) -> StageSpec:
    """The stage `x` that a text describes, beside a teacher."""
    text = f"stages: {{teacher: {{{STUDENT}, losses: [{{name: ce}}]}}, x: {{{stage}}}}}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_text(text)
        return resolve_stages(load(path).trials[0])["x"]


def digest_of(spec: StageSpec, **changes: Any) -> str:
    """Digest with made-up parents, data and revisions."""
    references = {role: ref.from_ for role, ref in spec.teachers.items() if ref.from_ is not None}
    if spec.init_from is not None:
        references["init_from"] = spec.init_from.from_
    parents = {role: ("f" * 64, text.partition("@")[2] or "last") for role, text in references.items()}
    arguments: dict[str, Any] = {
        "parents": parents,
        "fingerprint": "pixels",
        "revisions": {"losses.kd": 1, "losses.ce": 2},
    }
    return stage_digest(spec, **(arguments | changes))


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a stage, with its default and whether it is part of the identity."""
    yield from _fields(StageSpec, "")
    for name, model in (("student", StudentConfig), ("teacher", TeacherRef), ("term", TermConfig)):
        yield from _fields(model, f"{name}.")
    for name, model in (("modifier", ModifierConfig), ("init_from", InitFrom)):
        yield from _fields(model, f"{name}.")


def _fields(model: type[BaseModel], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        shown = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        yield f"{at}{name}", {"identity": not is_outside(field), "default": json.loads(json.dumps(shown, default=str))}
        if inner is not None and not is_outside(field) and inner not in (StudentConfig, InitFrom):
            yield from _fields(inner, f"{at}{name}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for one in (annotation, *typing.get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def options() -> dict[str, dict[str, Any]]:
    """Defaults of the options that plug-ins have."""
    found = {}
    for kind in ("losses", "modifiers", "strategies", "models"):
        for name in plugins.available(kind):
            known = {k: _readable(v) for k, v in (plugins.options(kind, name) or {}).items()}
            found[f"{kind}.{name}"] = {"revision": plugins.load(kind, name).revision, "options": known}
    return found


def _readable(default: Any) -> Any:
    if default is plugins.REQUIRED:
        return "required"
    return "computed" if default is plugins.UNREADABLE else json.loads(json.dumps(default))


def current() -> dict[str, Any]:
    """Everything that is frozen, as it is now."""
    digests = {name: digest_of(spec_of(text)) for name, text in CASES.items()}
    return {"digests": digests, "fields": dict(fields()), "plugins": options()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=1) + "\n")
