"""A finished network as a folder: every file answers as the network does, and who has torch alone can use it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file

from kdscale.errors import CheckpointError, ConfigError, StageError
from kdscale.export import formats
from kdscale.jobs.exporting import Wish, export
from tests.e2e.conftest import Make, Sandbox
from tests.matrix import MATRIX

REPOSITORY = Path(__file__).resolve().parents[2]
ALONE = ("stages.student=null", "stages.teacher.student.widths=[4,8,16]", "engine.processes=1")


@pytest.fixture
def done(sandbox: Make) -> Sandbox:
    """One small network, trained."""
    box = sandbox("runs", *ALONE)
    assert set(box.run().values()) == {"done"}
    return box


def exported(box: Sandbox, folder: Path, name: str = "teacher", **wish: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    path = export(box.root, Wish(box.folder(name).digest, out=folder, **wish), said.append)
    return path, said


def torch_only(folder: Path) -> Path:
    """A place that holds torch and what torch itself requires, and nothing else, as in a new environment."""
    found: set[str] = set()
    waiting = ["torch"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name)
    folder.mkdir()
    for name in found:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            target = Path(str(distribution.locate_file(top)))
            if target.exists() and not (folder / top).exists():
                (folder / top).symlink_to(target)
    return folder


def in_a_new_environment(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    code = f"import runpy, sys; sys.path.insert(1, {str(place)!r}); sys.argv = sys.argv[1:]; "
    code += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *command], capture_output=True, text=True, check=False
    )


def test_a_folder_is_whole_and_a_stranger_can_use_it(done: Sandbox, tmp_path: Path) -> None:
    folder, said = exported(done, tmp_path / "exports", int8=True)
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "model.onnx", "model.int8.onnx", "model.pt2", "model.safetensors", "modeling.py", "model.json", "use_me.py",
        "example.png", "CARD.md", "CITATION.bib", "SHA256SUMS",
    }  # fmt: skip
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        files.discard(name)
    assert files == {"SHA256SUMS"}

    document = json.loads((folder / "model.json").read_text())
    state = done.folder("teacher").state()
    assert document["stage"] == done.folder("teacher").digest
    assert document["weights"] == {"selector": "last", "ema": False, "hash": state["weights"]["last"]}
    assert document["input"]["size"] == 16
    by_file = {one["what"]: one for one in document["checked"]["files"]}
    assert by_file.keys() == {"modeling.py", "model.pt2", "model.onnx", "model.int8.onnx"}
    for name in ("modeling.py", "model.pt2", "model.onnx"):
        assert by_file[name]["largest"] < 1e-3 * by_file[name]["scale"]
        assert by_file[name]["top1"] == pytest.approx(state["results"]["top1"], abs=0.011), "a hundred images"
    assert by_file["model.int8.onnx"]["same_top1"] > 0.7
    assert load_file(folder / "model.safetensors").keys() == load_file(done.folder("teacher").snapshot("last")).keys()

    place = torch_only(tmp_path / "torch-only")
    answer = in_a_new_environment(place, str(folder / "use_me.py"), str(folder / "example.png"))
    assert answer.returncode == 0, answer.stderr
    assert re.search(rf"example\.png  ({'|'.join(document['class_names'])}) [01]\.\d{{3}}", answer.stdout)
    (told,) = [line for line in said if line.startswith("tried")]
    assert answer.stdout.split("  ")[1] in told
    probe = tmp_path / "probe.py"
    probe.write_text("import kdscale")
    assert "No module named 'kdscale'" in in_a_new_environment(place, str(probe)).stderr, "the environment is not new"


def test_a_student_names_its_teacher_and_its_cache(sandbox: Make, tmp_path: Path) -> None:
    cache = "stages.student.teachers.teacher.cache={record: dense_fp32, block_rows: 64, views: 2}"
    box = sandbox("runs", cache, "engine.processes=1", "train.ema=0.9")
    assert set(box.run().values()) == {"done"}
    folder, _ = exported(box, tmp_path, "student", formats=["safetensors"], selector="best")
    document = json.loads((folder / "model.json").read_text())
    (teacher,) = document["lineage"]
    assert teacher["stage"] == box.folder("teacher").digest
    assert teacher["weights"] == box.folder("teacher").state()["weights"]["last"]
    assert teacher["cache"]["record"] == "dense_fp32"
    assert document["weights"]["selector"] == "best"
    assert document["weights"]["ema"]
    assert teacher["stage"] in (folder / "CARD.md").read_text()


HEADS = [
    "stages.student.student={model: resnet_cifar, depth: 8, split_head: {split_at: stage2, channels: 2, size: 4}}",
    "stages.student.strategy=split_head", "stages.student.init_from=teacher", "stages.teacher.student.depth=8",
    "stages.student.losses=[{name: fitnet, regressor: none, taps: {student: [stage2], teacher: [stage2]}}]",
]  # fmt: skip


def test_both_sides_of_a_split_head_answer_as_the_whole(sandbox: Make, tmp_path: Path) -> None:
    box = sandbox("runs", *HEADS, "engine.processes=1")
    assert set(box.run().values()) == {"done"}
    folder, said = exported(box, tmp_path, "student")
    assert {f"{side}.{kind}" for side in ("device", "server") for kind in ("pt2", "onnx")} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "modeling.py").exists()
    assert any("no modeling.py: its head was split" in line for line in said)
    checked = {one["what"] for one in json.loads((folder / "model.json").read_text())["checked"]["files"]}
    assert {"device.pt2 + server.pt2", "device.onnx + server.onnx"} <= checked
    sent = torch.export.load(folder / "device.pt2").module()(torch.zeros(3, 1, 16, 16, dtype=torch.uint8))
    assert sent.dtype == torch.uint8
    assert sent.shape == (3, 2, 4, 4)


OWN = '''
"""A network of one's own."""
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, width, 3, stride=2), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))
'''


def test_an_own_network_takes_its_own_file_along(sandbox: Make, tmp_path: Path) -> None:
    (tmp_path / "own_net.py").write_text(OWN)
    own = (
        f"plugins.path=[{tmp_path}]",
        "plugins.allow=[own_net]",
        "stages.teacher.student={model: 'own_net:Net', width: 6}",
    )
    box = sandbox("runs", "stages.student=null", "engine.processes=1", *own)
    assert set(box.run().values()) == {"done"}
    folder, _ = exported(box, tmp_path / "exports", formats=["safetensors", "pt2"])
    text = (folder / "modeling.py").read_text()
    assert "A network of one's own." in text
    assert "'width': 6" in text


PIXELS = (
    "stages.student=null", "engine.processes=1", "data={name: fashion_scenes, val_fraction: 0.1}",
    'data.options={"canvas": 32, "garments": 2, "train_rows": 128, "test_rows": 32}', "train.epochs=1",
    "stages.teacher.losses=[{name: pixel_ce}]",
    "stages.teacher.student={model: segmentation, depth: 8, widths: [4, 8, 16]}",
)  # fmt: skip


def test_a_network_that_answers_for_pixels_is_exported_as_well(sandbox: Make, tmp_path: Path) -> None:
    box = sandbox("runs", *PIXELS)
    assert set(box.run().values()) == {"done"}
    folder, said = exported(box, tmp_path)
    document = json.loads((folder / "model.json").read_text())
    assert document["per_pixel"]
    assert {one["what"] for one in document["checked"]["files"]} == {"modeling.py", "model.pt2", "model.onnx"}
    assert any(line.startswith("tried") for line in said)


PROCEDURES = {
    "one": ["stages.student.strategy=one", "stages.student.options.branches=2"],
    "one's ensemble": [
        "stages.student.student={model: resnet_cifar, depth: 8, branches: {count: 2}}", "stages.student.strategy=one"
    ],
    "iakd": [
        "stages.teacher.student.depth=14", "stages.teacher.student.widths=[4, 8, 16]", "stages.student.strategy=iakd",
        "stages.student.options={p_student: 0.5}", "stages.student.student.widths=[4, 6, 16]",
    ],
}  # fmt: skip


@MATRIX
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_whatever_trained_it_a_network_is_exported(sandbox: Make, tmp_path: Path, procedure: str) -> None:
    box = sandbox("runs", "engine.processes=1", *PROCEDURES[procedure])
    assert set(box.run().values()) == {"done"}
    folder, _ = exported(box, tmp_path, "student")
    checked = {one["what"] for one in json.loads((folder / "model.json").read_text())["checked"]["files"]}
    assert {"model.pt2", "model.onnx"} <= checked


LIBRARIES = {
    "torchvision": "{model: 'torchvision:resnet18'}",
    "timm": "{model: 'timm:vit_tiny_patch16_224', img_size: 32, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3}",
}


@MATRIX
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_s_network_says_which(sandbox: Make, tmp_path: Path, library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    box = sandbox(
        "runs", "stages.student=null", "engine.processes=1", f"stages.teacher.student={LIBRARIES[library]}",
        "data.options.size=32", "data.options.channels=3",
    )  # fmt: skip
    assert set(box.run().values()) == {"done"}
    folder, _ = exported(box, tmp_path)
    assert f"import {library}" in (folder / "modeling.py").read_text()
    document = json.loads((folder / "model.json").read_text())
    assert {one["what"] for one in document["checked"]["files"]} == {"modeling.py", "model.pt2", "model.onnx"}


def test_what_differs_is_not_exported(done: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An enemy's exporter: a weight is changed on its way into the file."""

    def changed(model: torch.nn.Module, path: Path) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        write(model, path)

    write = formats.write_safetensors
    monkeypatch.setattr(formats, "write_safetensors", changed)
    with pytest.raises(StageError, match=r"modeling.py does not answer as the network does"):
        exported(done, tmp_path / "exports", formats=["safetensors"])
    assert not list((tmp_path / "exports").iterdir())


def test_weights_that_were_changed_are_refused(done: Sandbox, tmp_path: Path) -> None:
    weights = done.folder("teacher").snapshot("last").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed since"):
        exported(done, tmp_path)


def test_what_is_there_stays_unless_forced(done: Sandbox, tmp_path: Path) -> None:
    folder, _ = exported(done, tmp_path, formats=["safetensors"])
    (folder / "CARD.md").write_text("mine")
    with pytest.raises(StageError, match="--force"):
        exported(done, tmp_path, formats=["safetensors"])
    assert (folder / "CARD.md").read_text() == "mine"
    exported(done, tmp_path, formats=["safetensors"], force=True)
    assert (folder / "CARD.md").read_text() != "mine"
    with pytest.raises(ConfigError, match=r"weights beast: .* has best, last"):
        exported(done, tmp_path, selector="beast")


def command(done: Sandbox, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "launch/export.py", *arguments, "--runs", str(done.root.path)]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_command_says_what_it_did_and_what_it_cannot(done: Sandbox, tmp_path: Path) -> None:
    made = command(done, done.folder("teacher").digest[:12], "--format", "pt2", "--out", str(tmp_path))
    assert made.returncode == 0, made.stderr
    assert "checked  model.pt2: max |dlogit|" in made.stdout
    wrong = command(done, "teacher", "--format", "onx")
    assert wrong.returncode == 2
    assert "there are safetensors, pt2, onnx" in wrong.stderr
    nothing = command(done, "nobody")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    data = next(s for s in done.plan.stages.values() if s.kind == "convert")
    assert "no stage that trains" in command(done, data.digest[:12]).stderr
