"""What does not go with labels of pixels is refused with its key path, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.load import load
from kdscale.errors import ConfigError, KDScaleError
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import Plan, make_plan

NETWORK = {"model": "segmentation", "depth": 8, "widths": [4, 6, 8], "output_stride": 8}
SCENES = {"name": "fashion_scenes", "options": {"canvas": 32, "garments": 2, "train_rows": 40, "test_rows": 10}}
STAGES: dict[str, Any] = {
    "teacher": {"student": NETWORK, "losses": [{"name": "pixel_ce"}]},
    "student": {
        "student": NETWORK,
        "teachers": {"t": {"from": "teacher"}},
        "losses": [
            {"name": "pixel_ce"},
            {"name": "fitnet", "teacher": "t", "taps": {"student": ["stage3"], "teacher": ["stage3"]}},
        ],
    },
}
KD = '[{"name": "kd", "id": "kd", "teacher": "t"}]'

pytestmark = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist"
)


def planned(folder: Path, *overrides: str) -> Plan:
    document = {
        "name": "pixels", "data": SCENES, "train": {"epochs": 1, "batch_size": 8}, "engine": {"processes": 1},
        "stages": STAGES,
    }  # fmt: skip
    config = folder / "pixels.yaml"
    config.write_text(yaml.safe_dump(document))
    return make_plan(load(config, list(overrides)), Root(folder / "runs"))


def test_a_segmentation_network_with_losses_for_pixels_and_features_is_planned(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    student = plan.stages[plan.trials[0].stages["student"]]
    assert student.definition["data"]["info"]["per_pixel"]
    assert student.cost.flops > 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.augment.mixup=0.2", r"teacher\.data\.augment\.mixup: fashion_scenes labels pixels"),
        ("data.augment.cutmix=1.0", r"teacher\.data\.augment\.cutmix"),
        ("data.augment.cutout=4", r"teacher\.data\.augment\.cutout"),
        ("data.store=jpeg", r"teacher\.data\.store"),
        ("stages.teacher.expect.top1=0.5", r"teacher\.expect\.top1: .* say miou"),
        ("stages.student.teachers.t.cache=true", r"student\.teachers\.t\.cache: holds logits"),
        ("stages.student.teachers.t.from=teacher@acc:0.5", r"student\.teachers\.t\.from: .* take @best"),
        ("stages.student.teachers.v={'virtual': {'correct': 0.9}}", r"student\.teachers\.v\.virtual"),
        (f"stages.student.losses={KD}", r"student\.losses\.kd: kd takes logits \(B, C\).*: .*fitnet.*pixel_ce"),
        ("stages.teacher.losses=[{'name': 'ce'}]", r"teacher\.losses\.ce: ce takes logits"),
        ("stages.student.losses.fitnet.modifiers=[{'name': 'zscore'}]", r"student\.losses\.fitnet\.modifiers"),
        ("stages.teacher.strategy=one", r"teacher\.strategy: fashion_scenes labels pixels, and one takes"),
        ("train.accumulation=2", r"train\.accumulation: .* unequally many"),
        ("stages.teacher.student={'model': 'resnet_cifar', 'depth': 8}", r"must answer with logits \(B, C, 32, 32\)"),
    ],
)
def test_what_pixels_cannot_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(KDScaleError, match=said):
        planned(tmp_path, override)


def test_images_with_one_label_take_no_network_or_loss_for_pixels(tmp_path: Path) -> None:
    plain = "data={'name': 'synthetic', 'options': {'train_rows': 40, 'test_rows': 10}}"
    with pytest.raises(ConfigError, match=r"teacher\.losses\.pixel_ce: .* one label an image"):
        planned(tmp_path, plain)
    with pytest.raises(ConfigError, match=r"teacher\.expect\.miou: synthetic has one label an image: say top1"):
        planned(tmp_path, plain, "stages.teacher.losses=[{'name': 'ce'}]", "stages.teacher.expect.miou=0.5")
    with pytest.raises(KDScaleError, match=r"must answer with logits \(B, C\), not"):
        planned(tmp_path, plain, "stages.teacher.losses=[{'name': 'ce'}]")
