"""A finished network from a file as a teacher: never trained, checked, and used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdscale.errors import StageError
from kdscale.jobs.inline import run_one
from kdscale.train.stage import run_stage
from kdscale.train.stop import Stop
from tests.e2e.conftest import Make, Sandbox


@pytest.fixture
def weights(sandbox: Make, tmp_path: Path) -> Path:
    """Weights of a good teacher, trained here."""
    box = sandbox("source", "stages.teacher.train.epochs=4")
    for stage in box.plan.todo:
        if stage.name != "student":
            assert run_one(box.root, stage, Stop()) == "done"
    target = tmp_path / "teacher.safetensors"
    target.write_bytes(box.weights("teacher"))
    target.with_suffix(".top1").write_text(repr(box.folder("teacher").state()["results"]["top1"]))
    return target


def _imported(sandbox: Make, name: str, file: Path, *overrides: str) -> Sandbox:
    student = f"stages.teacher.student={{model: resnet_cifar, depth: 8, weights: {file}}}"
    return sandbox(name, student, "stages.teacher.train.epochs=0", *overrides)


def _digest(box: Sandbox) -> str:
    return next(d for d, stage in box.plan.stages.items() if stage.name == "teacher")


def test_an_imported_teacher_is_evaluated_and_not_trained(sandbox: Make, weights: Path) -> None:
    box = _imported(sandbox, "imported", weights)
    assert set(box.run().values()) == {"done"}
    state = box.folder("teacher").state()
    assert state["step"] == 0
    assert state["results"]["top1"] == float(weights.with_suffix(".top1").read_text()) > 0.3
    first, last = load_file(weights), load_file(box.folder("teacher").snapshot("last"))
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_a_permuted_class_order_is_recognised_and_named(sandbox: Make, weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights)
    head = [name for name in tensors if tensors[name].shape[:1] == (10,)]
    turned = {name: t.roll(3, 0) if name in head else t for name, t in tensors.items()}
    save_file(turned, tmp_path / "turned.safetensors")
    box = _imported(sandbox, "turned", tmp_path / "turned.safetensors")
    run_one(box.root, box.plan.todo[0], Stop())
    with pytest.raises(StageError, match=r"permuted class order.*stages\.teacher\.student\.class_names"):
        run_stage(box.root.path, _digest(box))


def test_a_failed_expectation_fails_the_stage(sandbox: Make, weights: Path) -> None:
    box = _imported(sandbox, "expecting", weights, "stages.teacher.expect={top1: 0.1, within: 0.01}")
    run_one(box.root, box.plan.todo[0], Stop())
    with pytest.raises(StageError, match=r"stages\.teacher\.expect: top1 0\.\d+ on test, expected 0\.1 within 0\.01"):
        run_stage(box.root.path, _digest(box))


def test_nothing_else_begins_before_an_imported_network_is_measured(sandbox: Make, weights: Path) -> None:
    lonely = "stages.lonely={student: {model: resnet_cifar, depth: 8, widths: [4, 8, 8]}, losses: [{name: ce}]}"
    wrong = "stages.teacher.expect={top1: 0.1, within: 0.01}"
    box = _imported(sandbox, "first", weights, wrong, lonely, "train.epochs=1")
    assert box.run() == {"data": "done", "teacher": "failed", "student": "blocked", "lonely": "done"}
    measured, began = (box.folder(name).state()["attempts"][-1] for name in ("teacher", "lonely"))
    assert began["started"] >= measured["ended"]
