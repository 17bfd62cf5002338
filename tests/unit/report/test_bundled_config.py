"""A config for another machine: the same stages, and no folder of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.load import Sweep, load, resolve_stages
from kdscale.errors import ConfigError
from kdscale.report.bundled_config import BundledConfig, bundled_config

CONFIG = """
extends: base.yaml
name: mine
plugins: {path: [own], allow: [birds]}
tracking: {uri: "http://me:secret@server:5000"}
data: {root: images, stage_to: /scratch/me}
sweep:
  method: {plain: {}, more: {use: parts/kd.yaml, train.lr: 0.3}, shipped: {use: "kdscale:methods/at.yaml"}}
stages:
  teacher:
    student: {model: resnet_cifar, depth: 8, weights: nets/teacher.pth, class_names: names.txt}
    train: {epochs: 0}
  student:
    student: {model: resnet_cifar, depth: 8}
    teachers: {teacher: {from: teacher}}
    losses: [{name: ce}, {name: kd, temperature: 1e1}]
"""
KD = "name: kd\nstages.student.losses: [{name: kd, weight: 0.5}]\nstages.teacher.student.weights: ../nets/other.pth"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    (folder / "parts").mkdir(parents=True)
    (folder / "base.yaml").write_text("train: {epochs: 3, lr: 0.05}")
    (folder / "parts/kd.yaml").write_text(KD)
    (folder / "names.txt").write_text("a\nb\n")
    for place in (folder / "nets", tmp_path / "there/weights"):
        place.mkdir(parents=True)
        for name in ("teacher.pth", "other.pth"):
            (place / name).touch()
    (folder / "mine.yaml").write_text(CONFIG)
    return folder


def bundled(folder: Path, to: Path, precision: str | None = None) -> BundledConfig:
    """Load, as a launch does, and lay what is made of it down elsewhere."""
    (to / "sweep.yaml").write_text(load(folder / "mine.yaml").text)
    made = bundled_config(to / "sweep.yaml", precision)
    for name, data in {**made.files, "sweep.yaml": made.text.encode()}.items():
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_bytes(data)
    return made


def without_places(sweep: Sweep) -> list[tuple[dict[str, str], dict[str, Any]]]:
    found = []
    for trial in sweep.trials:
        stages = {}
        for name, spec in resolve_stages(trial).items():
            document = spec.model_dump(mode="json", exclude={"tracking", "plugins"})
            for key in ("root", "stage_to"):
                document["data"].pop(key)
            if document["student"]["weights"]:
                document["student"]["weights"] = Path(document["student"]["weights"]).name
            stages[name] = document
        found.append((trial.axes, stages))
    return found


def test_elsewhere_it_comes_to_the_same_stages(here: Path, tmp_path: Path) -> None:
    wanted = without_places(load(here / "mine.yaml"))
    bundled(here, tmp_path / "there")
    for gone in (here / "parts/kd.yaml", here / "names.txt", here / "base.yaml"):
        gone.unlink()
    sweep = load(tmp_path / "there/sweep.yaml")
    assert without_places(sweep) == wanted
    assert sweep.trials[0].stages["teacher"].student.class_names == ["a", "b"]


def test_no_folder_or_address_of_this_machine_is_left(here: Path, tmp_path: Path) -> None:
    made = bundled(here, tmp_path / "there")
    for text in (made.text, *(data.decode() for data in made.files.values())):
        assert str(tmp_path) not in text
        assert "secret" not in text
        assert "/scratch" not in text
    assert yaml.safe_load(made.text)["plugins"] == {"path": ["code/plugins"], "allow": ["birds"]}


def test_what_the_other_machine_needs_is_said(here: Path, tmp_path: Path) -> None:
    needs = bundled(here, tmp_path / "there").needs
    assert "data.root=FOLDER, where the data does not lie in the usual place" in needs
    assert "stages.teacher.student.weights=FILE, imported weights (here teacher.pth)" in needs
    assert "stages.teacher.student.weights=FILE, imported weights (here other.pth)" in needs


@pytest.mark.parametrize(("train", "pinned"), [("{}", "bf16"), ("{precision: fp32}", "fp32")])
def test_precision_that_the_machine_chose_is_pinned(here: Path, tmp_path: Path, train: str, pinned: str) -> None:
    (here / "base.yaml").write_text(f"train: {train}")
    made = bundled(here, tmp_path / "there", "bf16")
    assert yaml.safe_load(made.text)["train"]["precision"] == pinned


def test_two_files_of_one_name_are_kept_apart(here: Path, tmp_path: Path) -> None:
    (here / "more").mkdir()
    (here / "more/kd.yaml").write_text("stages.student.losses: [{name: kd, weight: 0.25}]")
    text = CONFIG.replace("kdscale:methods/at.yaml", "more/kd.yaml")
    (here / "mine.yaml").write_text(text)
    made = bundled(here, tmp_path / "there")
    assert {name for name in made.files if name.startswith("fragments")} == {
        "fragments/1-kd.yaml",
        "fragments/2-kd.yaml",
    }


def test_a_file_that_is_gone_is_named(here: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(load(here / "mine.yaml").text)
    (here / "names.txt").unlink()
    with pytest.raises(ConfigError, match=r"stages\.teacher\.student\.class_names: .*names\.txt went with the sweep"):
        bundled_config(tmp_path / "sweep.yaml", None)
