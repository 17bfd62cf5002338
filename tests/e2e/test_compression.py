"""The shipped compression pipeline, run small: what an ensemble says of pictures without labels teaches a student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from kdscale.cache.folder import CacheFolder
from kdscale.config.load import load
from kdscale.config.schema import StageSpec
from kdscale.data.split import carve
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.train.build import store_of_stage
from tests.small_sweep import SMALL_DATA

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "pipelines" / "compression.yaml"
SMALL = [
    f"data={yaml.safe_dump(SMALL_DATA | {'limit': 100}, default_flow_style=True, width=10_000).strip()}",
    "data.options.train_rows=300", "data.loader=torch", "train.batch_size=32", "train.precision=fp32",
    "engine.processes=1", "stages.t1.train.epochs=1", "stages.t2.train.epochs=1", "stages.t3.train.epochs=1",
]  # fmt: skip
NET = "{model: resnet_cifar, depth: 8, widths: [4, 4, 8]}"


def test_the_student_of_unlabelled_pictures_hears_all_teachers_from_caches(tmp_path: Path) -> None:
    small = [f"stages.{name}.student={NET}" for name in ("t1", "t2", "t3", "student")]
    document = yaml.safe_load(CONFIG.read_text())
    document["sweep"]["learns"] = {"unseen": document["sweep"]["learns"]["unseen"]}
    document["sweep"]["learns"]["unseen"]["stages.student.data"]["transfer"] = 100
    config = tmp_path / "compression.yaml"
    config.write_text(yaml.safe_dump(document, sort_keys=False))
    root = Root(tmp_path / "runs")
    plan = make_plan(load(config, [*SMALL, *small]), root)
    prepare_folders(root, plan, retry_failed=False)
    assert set(run_inline(root, plan, lambda line: None).values()) == {"done"}

    [trial] = plan.trials
    student, teacher = (root.stage(trial.stages[name]) for name in ("student", "t1"))
    assert student is not None
    assert teacher is not None
    assert set(student.state()["results"]["teacher_top1"]) == {"all", "t1", "t2", "t3"}
    taught, unseen = (rows_of(stage.definition(), root) for stage in (teacher, student))
    assert (len(taught), len(unseen)) == (100, 170)
    caches = [CacheFolder.open(path) for path in sorted(root.caches.iterdir()) if path.is_dir()]
    assert len(caches) == 3
    for cache in caches:
        assert np.array_equal(cache.rows, unseen)
        assert not set(cache.rows) & set(taught)


def rows_of(definition: Mapping[str, Any], root: Root) -> NDArray[np.int64]:
    """Rows that train a stage, by the data that it read."""
    store = store_of_stage(definition, root, None, lambda: None)
    return carve(store.labels("train"), StageSpec.model_validate(definition["spec"]).data).train
