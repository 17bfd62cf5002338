"""A small real sweep that tests disturb: two stages on synthetic data, over real worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.load import Sweep, load
from kdscale.jobs.local import LocalRun
from kdscale.jobs.prepare import prepare_folders
from kdscale.jobs.warm import WarmParent
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN, untimed_metrics

EXPERIMENT: dict[str, Any] = {
    "name": "small",
    "data": SMALL_DATA,
    "train": SMALL_TRAIN,
    "engine": {"processes": 1},
    "stages": {
        "teacher": {
            "student": {"model": "resnet_cifar", "depth": 8},
            "losses": [{"name": "ce"}],
            "train": {"epochs": 1},
        },
        "student": {
            "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]},
            "teachers": {"teacher": {"from": "teacher"}},
            "losses": [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}],
        },
    },
}  # fmt: skip


@dataclass
class Sandbox:
    """A runs root with one planned sweep."""

    root: Root
    plan: Plan
    warm: WarmParent
    said: list[str]
    sweep: Sweep
    parallel: int | None = None

    def planned_again(self, *, retry_failed: bool = False) -> Sandbox:
        """The same command, given again."""
        root = Root.find(self.root.path)
        plan = make_plan(self.sweep, root)
        prepare_folders(root, plan, retry_failed=retry_failed)
        return Sandbox(root, plan, self.warm, [], self.sweep)

    def run(self, disturb: Callable[[LocalRun, Sandbox], None] | None = None) -> dict[str, str]:
        """Run what is not done; `disturb` is called ten times a second. Returns states by stage name."""
        local = LocalRun(self.root, self.plan, self.said.append, parallel=self.parallel, warm=self.warm)
        states = local.run(lambda: disturb(local, self) if disturb else None)
        return {self.plan.stages[digest].name: state for digest, state in states.items()}

    def folder(self, name: str) -> StageFolder:
        digest = next(d for d, stage in self.plan.stages.items() if stage.name == name)
        found = self.root.stage(digest)
        assert found is not None
        return found

    def weights(self, name: str) -> bytes:
        return (self.folder(name).path / "student.safetensors").read_bytes()

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Metrics without what the clock decides."""
        return untimed_metrics(self.folder(name))

    def last_step(self, name: str) -> int:
        return max((line["step"] for line in self.metrics(name)), default=0)


Make = Callable[..., Sandbox]


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmParent]:
    parent = WarmParent()
    yield parent
    parent.close()


@pytest.fixture
def sandbox(tmp_path: Path, warm: WarmParent) -> Make:
    """Plan and prepare the small sweep under a folder of its own."""

    def make(name: str = "runs", *overrides: str) -> Sandbox:
        config = tmp_path / "small.yaml"
        config.write_text(yaml.safe_dump(EXPERIMENT))
        root = Root(tmp_path / name)
        sweep = load(config, overrides)
        plan = make_plan(sweep, root)
        prepare_folders(root, plan, retry_failed=False)
        return Sandbox(root, plan, warm, [], sweep)

    return make
