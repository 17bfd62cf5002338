"""A stage's objects, built from its definition and its parents' folders on one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdscale import checkpoint, ranks
from kdscale.api import Batch, DatasetInfo, Engine, Strategy, Teacher
from kdscale.config.schema import StageSpec
from kdscale.data.loader import EvalLoader, TrainLoader
from kdscale.data.staging import open_staged
from kdscale.data.store import Store
from kdscale.engines.ddp import DdpEngine
from kdscale.engines.deepspeed import DeepSpeedEngine
from kdscale.errors import ShapeError, StageError
from kdscale.nn.network import Network
from kdscale.nn.precision import autocast_of
from kdscale.nn.split_head import split_head_of
from kdscale.nn.sync_bn import average_buffers, measure_anew, to_sync_bn
from kdscale.nn.weights import fit_tensors, within
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.assemble import Assembled, Parent, assemble, image_size
from kdscale.pipeline.freezing import freeze, keep_frozen_in_eval
from kdscale.teachers.ensemble import Ensemble
from kdscale.teachers.network import NetworkTeacher
from kdscale.train.caches import RecordsAhead, TeacherCache, open_caches
from kdscale.train.evaluate import Evaluator
from kdscale.train.loop import BatchSource
from kdscale.train.stop import Stop

__all__ = ["Parts", "build", "evaluation_rows", "parents_of_stage", "store_of_stage"]

EVALUATION_BATCH = 256
"""Rows a rank answers at once in evaluation, of maps an eighth; no figure depends on it."""


def evaluation_rows(*, per_pixel: bool) -> int:
    """How many rows a rank answers at once in evaluation."""
    return EVALUATION_BATCH // 8 if per_pixel else EVALUATION_BATCH


@dataclass
class Parts:
    """What one rank trains with."""

    spec: StageSpec
    assembled: Assembled
    live: list[NetworkTeacher]
    """The teachers' networks, for evaluation, and for training where there is no cache."""
    caches: list[TeacherCache]
    train_loader: TrainLoader
    store: Store
    size: int
    device: torch.device
    classes: int
    consumed: dict[str, str]
    """Hash of the weights that each parent gave."""
    hashes: list[str] = field(init=False)
    """Of the teachers, before the stage."""

    def __post_init__(self) -> None:
        self.network = self.assembled.network
        self.hashes = [teacher.fingerprint() for teacher in self.live]
        cached = [cache.teacher() for cache in self.caches]
        names = {teacher.name for teacher in cached}
        live = [one for one in self.live if one.name not in names and one.name in self.assembled.heard]
        self.teachers: list[Teacher | Ensemble] = [
            *self.assembled.ensembles, *cached, *live, *self.assembled.virtual,
        ]  # fmt: skip
        """Whom training asks; an ensemble before its members, since fidelity is shown to the first."""
        self.batches: BatchSource = RecordsAhead(self.train_loader, cached) if cached else self.train_loader
        """What it asks about."""
        self._measured: tuple[int, list[Tensor]] | None = None

    @cached_property
    def engine(self) -> Engine:
        """Made when it is first asked for: it may shard the strategy, and who wants that whole comes before."""
        strategy, train, engine = self.assembled.strategy, self.spec.train, self.spec.engine
        steps, rates = self.train_loader.steps_per_epoch, self.assembled.own_rates
        if engine.name == "deepspeed":
            return DeepSpeedEngine(
                strategy, train, zero_stage=engine.zero_stage, steps_per_epoch=steps, own_rates=rates
            )
        return DdpEngine(strategy, train, steps_per_epoch=steps, own_rates=rates)

    def evaluator(self, split: Literal["val", "test"]) -> Evaluator | None:
        """An evaluator of one split; None when it has no rows."""
        data = self.train_loader.data
        per_pixel = self.store.info.per_pixel
        rows = evaluation_rows(per_pixel=per_pixel)
        loader = EvalLoader(self.store, data, split, batch_size=rows, rank=ranks.rank(), world=ranks.world())
        if not loader.samples:
            return None
        heard: list[Teacher | Ensemble] = [*self.assembled.ensembles, *self.live]
        return Evaluator(loader, heard, self.classes, self.device, loader.samples, per_pixel=per_pixel)

    def demand_same_teachers(self) -> None:
        """Raises: StageError, where a teacher is not what it was before it taught."""
        for teacher, before in zip(self.live, self.hashes, strict=True):
            if teacher.fingerprint() != before:
                raise StageError(f"teacher {teacher.name} changed while it taught: its weights or buffers differ")

    def fill_view(self, epoch: int, stop: Stop, told: Callable[[], None]) -> bool:
        """Make what caches lack of the view of an epoch; called by all ranks. False when asked to stop."""
        view = self.train_loader.view_of(epoch)
        return all([cache.fill_view(view, lambda: stop.asked, told) for cache in self.caches])

    @contextmanager
    def exported_weights(self, step: int) -> Iterator[None]:
        """Hold the weights that are evaluated and exported after `step` steps.

        EMA where on; buffers measured anew where the strategy asks for it, and averaged over ranks. Afterwards every
        rank has its own again, bit for bit; called by all ranks.
        """
        strategy = self.assembled.strategy
        held = strategy if strategy.beside else self.network.model
        buffers = dict(held.named_buffers())
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        with self.engine.averaged(), torch.no_grad():
            try:
                self._recalibrate(step)
                for name, mean in average_buffers(held).items():
                    buffers[name].copy_(mean)
                yield
            finally:
                for name, buffer in buffers.items():
                    buffer.copy_(own[name])

    def _recalibrate(self, step: int) -> None:
        """Measure BatchNorm anew on the first batches of training, always the same ones; once a step."""
        count = self.assembled.strategy.recalibration(step)
        if not count:
            return
        buffers = list(self.network.model.buffers())
        if self._measured is not None and self._measured[0] == step:
            torch._foreach_copy_(buffers, self._measured[1])
            return
        with closing(self.train_loader.epoch(0)) as batches, autocast_of(self.spec.train.precision, self.device):
            measure_anew(self.network, (batch.to(self.device).images for batch in islice(batches, count)))
        self._measured = (step, [buffer.clone() for buffer in buffers])

    def tensors(self, term: str = "") -> dict[str, Tensor]:
        """Copies of the network's weights, or of a term's: on a CPU the originals go on changing."""
        module = self.assembled.strategy.get_submodule(f"terms.{term}") if term else self.network.model
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}

    def blank_image(self) -> Tensor:
        """One black image as the loader yields it."""
        shape = (1, self.train_loader.channels, self.size, self.size)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def first_batch(self) -> Batch:
        """The first batch of training."""
        batches = self.train_loader.epoch(0)
        try:
            return next(batches)
        finally:
            batches.close()


def build(
    definition: Mapping[str, Any], root: Root, device: torch.device, *, alive: Callable[[], None] = lambda: None
) -> Parts:
    """Build a stage's loader, networks and teachers.

    Args:
        definition: of the stage, as stage.yaml holds it.
        root: where its parents are.
        device: of this rank.
        alive: called now and then where it takes long.

    Raises:
        StageError: a parent is not done, or does not hold the weights that it recorded.
    """
    spec = StageSpec.model_validate(definition["spec"])
    info = DatasetInfo.of(definition["data"]["info"])
    parents, consumed = parents_of_stage(definition, root)
    store = store_of_stage(definition, root, spec.data.stage_to, alive)
    train, rank, world = spec.train, ranks.rank(), ranks.world()
    views = next((ref.cache.views for ref in spec.teachers.values() if ref.cache), None)
    loader = TrainLoader(
        store, spec.data, batch_size=train.batch_size, seed=spec.seed, rank=rank, world=world, views=views
    )
    assembled = assemble(
        spec,
        info,
        {name: parent for name, parent in parents.items() if name in spec.teachers},
        total_steps=train.epochs * loader.steps_per_epoch,
        train_rows=info.train_rows,
    )
    if "init_from" in parents:
        _initialise(assembled.network.model, parents["init_from"], spec)
    _begin_terms(assembled.strategy, parents, spec)
    _make_ready(assembled, spec, definition.get("frozen", []), device)
    live = {name: _live(name, network, spec, device) for name, network in assembled.teachers.items()}
    opened = open_caches(definition, root, consumed, store)
    caches = [
        TeacherCache(role, need, reader, live[role], loader.views, device, fills)
        for role, (need, reader, fills) in opened.items()
    ]
    size = image_size(spec, info)
    return Parts(spec, assembled, list(live.values()), caches, loader, store, size, device, info.classes, consumed)


def _live(name: str, network: Network, spec: StageSpec, device: torch.device) -> NetworkTeacher:
    """A teacher's network as it answers live; one with a cache as it answers for that."""
    cache = spec.teachers[name].cache
    if cache is None:
        return NetworkTeacher(name, network, device=device, precision=spec.train.precision)
    return NetworkTeacher(name, network, device=device, precision=cache.precision, fold=cache.fold)


def _make_ready(assembled: Assembled, spec: StageSpec, frozen: list[str], device: torch.device) -> None:
    """Freeze what does not train, synchronise BatchNorm if asked, and move to the device in its fast layout."""
    strategy = assembled.strategy
    freeze(strategy, assembled.network, frozen, spec.train_only)
    if spec.train.bn == "sync":
        to_sync_bn(strategy)
    strategy.to(device)
    for part in strategy.modules():
        if isinstance(part, Network):
            part.prepare(spec.train.channels_last, device)
    strategy.train()
    keep_frozen_in_eval(strategy)


def parents_of_stage(definition: Mapping[str, Any], root: Root) -> tuple[dict[str, Parent], dict[str, str]]:
    """The producing stages, done and holding exactly the weights that they recorded; and those weights' hashes."""
    found: dict[str, Parent] = {}
    consumed: dict[str, str] = {}
    for role, reference in definition["parents"].items():
        digest, selector = reference["digest"], reference["selector"]
        folder = root.stage(digest)
        if folder is None or folder.state()["state"] != "done":
            state = "missing" if folder is None else folder.state()["state"]
            raise StageError(f"{definition['name']} takes {role} from {digest[:12]}, which is {state}")
        weights = folder.snapshot(selector)
        if not weights.exists():
            raise StageError(f"{folder.path.name} has no snapshot {selector}: it never got there ({weights})")
        recorded, actual = folder.state()["weights"].get(selector), checkpoint.file_hash(weights)
        if recorded != actual:
            raise StageError(
                f"{weights} is not what its stage wrote (recorded {recorded}, found {actual}): "
                f"python launch/sweep.py CONFIG --fresh {folder.name} makes it anew"
            )
        known = folder.definition()
        info = DatasetInfo.of(known["data"]["info"])
        found[role] = Parent(StageSpec.model_validate(known["spec"]), info, weights)
        consumed[role] = actual
    return found, consumed


def store_of_stage(definition: Mapping[str, Any], root: Root, stage_to: str | None, alive: Callable[[], None]) -> Store:
    """A stage's converted data, on the node's own disk where it is to lie there. Raises: StageError."""
    digest = definition["data"]["store"]
    folder = root.stage(digest)
    if folder is None or folder.state()["state"] != "done":
        raise StageError(f"{definition['name']}: its data is not converted yet ({digest[:12]})")
    return open_staged(folder.path / "store", stage_to, alive)


def _begin_terms(strategy: Strategy, parents: Mapping[str, Parent], spec: StageSpec) -> None:
    """Start terms' trained parts from those that another stage's term ended with."""
    for term in spec.terms_begun:
        file = parents[f"terms.{term.id}"].weights
        assert file is not None
        module, saved = strategy.get_submodule(f"terms.{term.id}"), load_file(file)
        own = {name: tensor.shape for name, tensor in module.state_dict().items()}
        wrong = [name for name, tensor in saved.items() if own.get(name) != tensor.shape]
        if wrong or not saved:
            said = f"{wrong[0]} does not fit" if wrong else "it has no trained parts"
            raise ShapeError(
                f"stages.{spec.name}.losses.{term.id}.init_from: {term.init_from}: {said}; give both terms the same "
                "options and taps"
            )
        module.load_state_dict(saved, strict=False)


def _initialise(model: nn.Module, parent: Parent, spec: StageSpec) -> None:
    """Start from another stage's weights, except the parts that start fresh."""
    assert parent.weights is not None
    assert spec.init_from is not None
    found = None if parent.spec.student.split_head else split_head_of(model)
    skip = [*spec.init_from.skip, *(found[1].replaced if found else ())]  # the parts that a head stands for
    saved = {k: v for k, v in load_file(parent.weights).items() if not within(k, skip)}
    fit_tensors(model, saved, strict=skip or True, source=f"init_from {spec.init_from.from_}")
