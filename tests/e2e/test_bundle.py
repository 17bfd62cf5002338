"""A sweep on real images, its bundle, and the bundle run again elsewhere: the same digests, the same weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from kdscale.jobs.command import run_command
from kdscale.pipeline.artifacts import Root
from kdscale.report.archive import read_archive
from kdscale.report.bundle import write_bundle
from tests.unit.jobs.test_bundles import options

pytestmark = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
CANARY = "canary-5d20"
NET = """
from torch import nn

class TinyNet(nn.Module):
    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(128, classes)

    def forward(self, images):
        return self.head(self.body(images))
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A method that is a file of its own, and a network of the user's."""
    folder = tmp_path / "mine"
    (folder / "own").mkdir(parents=True)
    (folder / "own/bundled_birds.py").write_text(NET)
    (folder / "soft.yaml").write_text("stages.student.losses: [{name: kd, temperature: 2}]")
    (folder / "birds.yaml").write_text(
        yaml.safe_dump(
            {
                "extends": "kdscale:base/fashion_mnist.yaml", "name": "birds",
                "data": {"limit": 128, "limit_test": 64, "loader": "torch"},
                "train": {"epochs": 1, "batch_size": 32, "precision": "fp32"}, "engine": {"processes": 1},
                "plugins": {"path": ["own"], "allow": ["bundled_birds"]}, "tracking": {"uri": "off"},
                "sweep": {"method": {"soft": {"use": "soft.yaml"}}},
                "stages": {
                    "teacher": {"student": {"model": "bundled_birds:TinyNet"}, "losses": [{"name": "ce"}]},
                    "student": {
                        "student": {"model": "bundled_birds:TinyNet"}, "teachers": {"teacher": {"from": "teacher"}},
                        "losses": [{"name": "ce"}, {"name": "kd", "weight": 0.5}],
                    },
                },
            }
        )
    )  # fmt: skip
    return folder / "birds.yaml"


def run(config: Path, runs: Path) -> dict[str, str]:
    """Run as the command does; returns the hash of the last weights by digest."""
    asked = options(config, runs)
    asked.dry_run = asked.retry_failed = asked.profile = asked.detach = False
    asked.yes = True
    assert run_command(asked, [str(config)]) == 0
    return {folder.digest: folder.state()["weights"].get("last", "") for folder in Root(runs).stages()}


def test_elsewhere_a_bundle_comes_to_the_same_weights(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SITE_TOKEN", CANARY)
    first = run(config, tmp_path / "first")
    (sweep,) = (tmp_path / "first/sweeps").glob("birds-*")
    write_bundle(sweep, tmp_path / "out.zip")
    for name, data in read_archive(tmp_path / "out.zip").items():
        if not name.startswith("code/kdscale/"):
            assert CANARY.encode() not in data, name
            assert str(tmp_path).encode() not in data, name
            assert str(Path.home()).encode() + b"/" not in data, name
    shutil.rmtree(config.parent)
    del sys.modules["bundled_birds"]
    capsys.readouterr()

    second = run(tmp_path / "out.zip", tmp_path / "second")

    said = capsys.readouterr().out
    assert second == first
    assert len(set(first.values())) == 3  # two networks, and the data, which has no weights
    assert [path.name for path in (tmp_path / "second/sweeps").glob("birds-*")] == [sweep.name]
    assert said.count("here: the same, with equal weights") == 2
    assert "bundle: its plug-ins run here: bundled_birds.py" in said
    assert "stages are not the bundle's" not in said
