"""What one stage's term has learnt, another stage's term starts from: factor transfer's paraphraser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdscale.config.load import load
from kdscale.errors import ShapeError
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan
from kdscale.train.build import build
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN

STAGES: dict[str, Any] = {
    "teacher": {
        "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]},
        "losses": [{"name": "ce"}],
        "train": {"epochs": 1},
    },
    "student": {
        "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 4, 8]},
        "teachers": {"teacher": {"from": "teacher"}},
        "train": {"epochs": 1},
    },
}
DOCUMENT: dict[str, Any] = {
    "name": "ft",
    "data": SMALL_DATA | {"options": SMALL_DATA["options"] | {"train_rows": 200}},
    "train": SMALL_TRAIN,
    "engine": {"processes": 1},
    "stages": STAGES,
    "sweep": {"method": {"ft": {"use": "kdscale:methods/ft.yaml", "stages.paraphraser.train.epochs": 1}}},
}


def planned(folder: Path, root: Root, *overrides: str) -> Plan:
    config = folder / "ft.yaml"
    config.write_text(yaml.safe_dump(DOCUMENT))
    plan = make_plan(load(config, overrides), root)
    prepare_folders(root, plan, retry_failed=False)
    return plan


def test_the_students_term_takes_the_paraphraser_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    root = Root(tmp_path / "runs")
    plan = planned(tmp_path, root)
    assert set(run_inline(root, plan, lambda line: None).values()) == {"done"}
    folders = {name: root.stage(digest) for name, digest in plan.trials[0].stages.items()}
    teacher, paraphraser, student = (folders[name] for name in ("teacher", "paraphraser", "student"))
    assert teacher
    assert paraphraser
    assert student
    kept = load_file(paraphraser.snapshot("last#ft"))
    assert all(name.startswith("paraphrasers.") for name in kept)
    assert student.state()["consumed"]["terms.ft"] == paraphraser.state()["weights"]["last#ft"]

    unchanged = (load_file(folder.path / "student.safetensors") for folder in (teacher, paraphraser))
    for (name, before), (_, after) in zip(*(sorted(tensors.items()) for tensors in unchanged), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0, msg=name)

    parts = build(student.definition(), root, torch.device("cpu"))
    try:
        given = {k: v for k, v in parts.tensors("ft").items() if k.startswith("paraphrasers.")}
        assert given.keys() == kept.keys()
        assert all(torch.equal(given[name], kept[name]) for name in kept)
        fixed = [p for n, p in parts.assembled.strategy.named_parameters() if "paraphrasers" in n]
        assert fixed
        assert not any(p.requires_grad for p in fixed)
    finally:
        parts.train_loader.close()

    again = planned(tmp_path, root)
    assert all(stage.reuse.done for stage in again.stages.values())
    other = root.stage(planned(tmp_path, root, "stages.student.losses.ft.rate=0.75").trials[0].stages["student"])
    assert other
    with pytest.raises(ShapeError, match=r"losses\.ft\.init_from: paraphraser: paraphrasers\S+ does not fit"):
        build(other.definition(), root, torch.device("cpu"))
