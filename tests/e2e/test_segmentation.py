"""Knowledge adaptation from end to end: rated by mIoU, and the translator is the one of its stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdscale import atomic, checkpoint
from kdscale.config.load import load
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.plan import make_plan
from kdscale.report.page import write_report
from kdscale.report.results import write_results

SMALL = [
    'data.options={"canvas": 32, "garments": 2, "train_rows": 80, "test_rows": 24}', "train.epochs=1",
    "train.batch_size=16", "train.warmup_epochs=0", "train.precision=fp32", "engine.processes=1",
    "stages.translator.train.epochs=1", "stages.alone=null",
    *(f"stages.{name}.student.{key}" for name in ("teacher", "student") for key in ("depth=8", "widths=[4, 6, 8]")),
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist"
)


def test_runs_from_teacher_to_report(tmp_path: Path, root: Path) -> None:
    runs = Root(tmp_path / "runs")
    plan = make_plan(load(root / "configs" / "pipelines" / "segmentation.yaml", SMALL), runs)
    prepare_folders(runs, plan, retry_failed=False)
    said: list[str] = []
    assert set(run_inline(runs, plan, said.append).values()) == {"done"}
    assert any("mIoU 0." in line for line in said)
    stages = {name: StageFolder(runs.path / plan.stages[d].folder) for name, d in plan.trials[0].stages.items()}

    student = stages["student"].state()
    assert 0 < student["results"]["miou"] < 1
    assert "top1" not in student["results"]
    assert student["results"]["best_miou"] >= 0
    frozen = stages["student"].definition()["frozen"]
    assert {name.split(".")[2] for name in frozen} == {"translators"}, "nothing else of it is left untrained"
    assert len(frozen) == 8
    translator = stages["translator"]
    assert student["consumed"]["terms.adaptation"] == checkpoint.file_hash(translator.snapshot("last#adaptation"))
    kept = load_file(translator.path / "student.safetensors")
    taught = load_file(stages["teacher"].path / "student.safetensors")
    assert all(torch.equal(kept[name], taught[name]) for name in taught), "its own stage leaves the network as it is"

    sweep = tmp_path / "runs" / "sweeps" / plan.folder_name
    sweep.mkdir(parents=True)
    atomic.write_json(sweep / "plan.json", plan.document())
    rows = {row["stage"]: row for row in write_results(sweep)}
    assert rows["student"]["miou"] == student["results"]["miou"]
    assert rows["student"]["top1"] is None
    check_page(write_report(sweep).read_text())


def check_page(page: str) -> None:
    """Figures are those of pixels, and masks have a key."""
    assert "mIoU" in page
    assert "top-1" not in page.lower()
    assert all(f"</i>{name}</span>" in page for name in ("background", "Trouser", "Bag"))
    assert "the student stays as it is" in page, "its translator's stage is meant to give it no gradient"
    assert "no gradient reaches the student" not in page
