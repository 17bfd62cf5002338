"""Build each distinct architecture once, run it forward and backward on made-up images, and count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError, KDScaleError
from kdscale.nn.network import Network
from kdscale.nn.split_parts import split_parts, wire_cost
from kdscale.pipeline.assemble import Parent, assemble, dry_backward, image_size
from kdscale.pipeline.cost import Counted, training_rows
from kdscale.pipeline.flops import forward_flops
from kdscale.pipeline.freezing import freeze

__all__ = ["DryRun", "dry_run"]


@dataclass(frozen=True)
class DryRun:
    """What a dry run of a stage's networks and terms tells."""

    counted: Counted
    frozen: list[str]
    """Parameters that no term reaches."""
    wire: dict[str, int] | None
    """Of a split head: bytes that a sample sends, bytes of its image, and FLOPs of a sample before it sends."""
    model: str
    """One phrase for tables, such as "resnet_cifar depth=20"."""


_seen: dict[str, DryRun] = {}


def dry_run(spec: StageSpec, info: DatasetInfo, producers: Mapping[str, Parent]) -> DryRun:
    """Run a stage's mathematics once, without its weights; equal architectures are run once a process.

    Raises:
        ConfigError, PluginError, TapError, ShapeError: whatever would fail in training, with its key path.
    """
    key = json.dumps(
        [_shape_of(spec), [(n, _shape_of(p.spec), str(p.info)) for n, p in producers.items()], str(info)], default=str
    )
    if key not in _seen:
        try:
            _seen[key] = _run(spec, info, producers)
        except KDScaleError as error:
            at = f"stages.{spec.name}"
            raise error if at in str(error) else type(error)(f"{at}: {error}") from error
    return _seen[key]


def _run(spec: StageSpec, info: DatasetInfo, producers: Mapping[str, Parent]) -> DryRun:
    size = image_size(spec, info)
    rows = training_rows(spec, info)
    steps = spec.train.epochs * (rows // spec.train.batch_size)
    assembled = assemble(spec, info, producers, total_steps=max(1, steps), train_rows=info.train_rows)
    frozen, step_flops = list[str](), 0
    if spec.train.epochs:
        if not any(spec.passes.values()):
            raise ConfigError(f"stages.{spec.name}.losses: a stage that trains needs at least one term")
        freeze(assembled.strategy, assembled.network, [], spec.train_only)
        frozen, step_flops = dry_backward(assembled, info, size, f"stages.{spec.name}")
    teacher_flops = {
        name: forward_flops(teacher, info, size)
        for name, teacher in assembled.teachers.items()
        if name in assembled.heard or spec.strategy != "distill"  # whose blocks another strategy may run
    }
    params = sum(p.numel() for p in assembled.network.model.parameters())
    return DryRun(
        Counted(params, forward_flops(assembled.network, info, size), step_flops, teacher_flops),
        frozen=frozen,
        wire=_wire(assembled.network, info, size),
        model=phrase(spec),
    )


def _wire(network: Network, info: DatasetInfo, size: int) -> dict[str, int] | None:
    sent = wire_cost(network)
    return sent and sent | {"device_flops": forward_flops(split_parts(network)[0], info, size)}


def phrase(spec: StageSpec) -> str:
    """A student in one phrase: its model and arguments."""
    arguments = [f"{k}={v}" for k, v in spec.student.arguments.items() if not isinstance(v, (dict, list))]
    head = spec.student.split_head
    split = [f"split_at={head.split_at}", f"channels={head.channels}"] if head else []
    branches = [f"branches={spec.student.branches.count}"] if spec.student.branches else []
    return " ".join([spec.student.model, *arguments, *split, *branches])


def _shape_of(spec: StageSpec) -> dict[str, Any]:
    """What decides whether a stage's networks and terms fit; not its seeds, rates or schedule."""
    kept = {"student", "teachers", "passes", "strategy", "options", "train_only"}
    return spec.model_dump(mode="json", by_alias=True, include=kept) | {
        "size": spec.data.size, "trains": spec.train.epochs > 0, "smoothing": spec.train.label_smoothing,
        "accumulation": spec.train.accumulation, "mixes": spec.data.augment.mixes,
        "train": spec.train.model_dump(mode="json") if spec.options else None,  # a strategy's options refer to it
    }  # fmt: skip
