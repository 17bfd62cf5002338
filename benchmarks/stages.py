"""A runs folder with the stages of configs/quickstart.yaml that the benchmarks train, on real Fashion-MNIST."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import REPOSITORY
from kdscale.config.load import load
from kdscale.config.schema import StageSpec
from kdscale.data.loader import TrainLoader
from kdscale.data.store import Store
from kdscale.jobs.inline import run_one
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage
from kdscale.train.stop import Stop

QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
WORLD = 2
EPOCHS = 100
"""More than any benchmark trains; its end is never reached."""
MEASURED = {"ce": "teacher", "kd": "assistant"}
"""The quickstart's stage behind each case."""


@dataclass(frozen=True)
class Case:
    """A stage to be trained by both sides."""

    name: str
    root: Path
    digest: str
    precision: str
    batch_size: int

    def ours(self, steps: int) -> list[str]:
        """Command of kdscale's side."""
        return ["benchmarks.ours", str(self.root), self.digest, str(steps)]

    def bare(self, steps: int) -> list[str]:
        """Command of the bare loop."""
        return ["benchmarks.bare", str(self.root / "bare"), self.name, self.precision, str(steps), str(self.batch_size)]


def make_case(name: str, folder: Path, more: Sequence[str] = (), *, world: int = WORLD) -> Case:
    """Convert the data, make the teacher where there is one (two steps: its figures do not matter here)."""
    overrides = [f"stages.{MEASURED[name]}.train.epochs={EPOCHS}", f"engine.processes={world}", *more]
    if name == "kd":
        overrides += ["stages.teacher.data.limit=256", "stages.teacher.train.epochs=1"]
        overrides += ["stages.teacher.engine.processes=1", "stages.assistant.teachers.teacher.cache=null"]
    root = Root(folder / name)
    plan = make_plan(load(str(QUICKSTART), overrides), root)
    prepare_folders(root, plan, retry_failed=False)
    wanted = next(stage for stage in plan.stages.values() if stage.name == MEASURED[name])
    for digest, _ in wanted.parents.values():
        finish(plan, plan.stages[digest], root)
    finish(plan, plan.stages[wanted.definition["data"]["store"]], root)
    spec = StageSpec.model_validate(wanted.definition["spec"])
    write_views(root, wanted, spec)
    return Case(name, root.path, wanted.digest, spec.train.precision, spec.train.batch_size)


def make_data(folder: Path) -> Path:
    """A runs folder in which configs/quickstart.yaml finds its data converted, and nothing else done."""
    root = Root(folder)
    plan = make_plan(load(str(QUICKSTART), []), root)
    prepare_folders(root, plan, retry_failed=False)
    for stage in plan.stages.values():
        if stage.kind == "convert":
            finish(plan, stage, root)
    for stage in plan.stages.values():
        if stage.kind != "convert":
            made = root.stage(stage.digest)
            assert made is not None
            shutil.rmtree(made.path)
    return root.path


def finish(plan: Plan, stage: PlannedStage, root: Root) -> None:
    """Run a stage and its parents in this process."""
    for digest, _ in stage.parents.values():
        finish(plan, plan.stages[digest], root)
    state = run_one(root, stage, Stop())
    if state != "done":
        raise RuntimeError(f"{stage.name} is {state}")


def write_views(root: Root, stage: PlannedStage, spec: StageSpec) -> None:
    """The first epoch's batches as arrays for the bare loop: the same views in the same order."""
    folder = root.stage(stage.definition["data"]["store"])
    assert folder is not None
    store = Store.open(folder.path / "store")
    loader = TrainLoader(store, spec.data, batch_size=spec.train.batch_size, seed=spec.seed, rank=0, world=1)
    batches = list(loader.epoch(0))
    target = root.path / "bare"
    target.mkdir()
    np.save(target / "images.npy", np.concatenate([np.ascontiguousarray(batch.images.numpy()) for batch in batches]))
    np.save(target / "labels.npy", np.concatenate([batch.labels.numpy() for batch in batches]))
    np.save(target / "pixels.npy", np.array([store.info.mean[0], store.info.std[0]]))
