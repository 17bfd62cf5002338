"""What trains beside the student is saved with it, and no file of weights that leaves a stage holds any of it."""

from __future__ import annotations

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kdscale.models.resnet_cifar import ResNetCifar
from tests.e2e.conftest import Make

TERMS = [
    {"name": "ce"},
    {"name": "fitnet", "lr": 0.5, "weight_decay": 0, "taps": {"student": ["stage1"], "teacher": ["stage1"]}}
    | {"modifiers": [{"name": "prime_aware"}]},
    {"name": "crd", "taps": {"student": ["pooled"], "teacher": ["pooled"]}, "negatives": 20, "dimensions": 4},
]


def test_two_ranks_save_parts_of_terms_and_export_none(sandbox: Make) -> None:
    box = sandbox("parts", "engine.processes=2", "train.bn=sync", f"stages.student.losses={json.dumps(TERMS)}")
    assert box.run()["student"] == "done"
    folder = box.folder("student")
    newest = sorted(folder.checkpoints.glob("step_*"))[-1]
    saved = load_file(newest / "training.safetensors")
    for part in ("terms.fitnet.regressors", "modifiers.fitnet.0.head", "terms.crd.embed_t"):
        assert any(name.startswith(f"parameter.{part}") for name in saved), part
    trained = [name for name in saved if name.startswith("parameter.")]
    assert len([name for name in saved if name.endswith("momentum_buffer")]) == len(trained)

    memories = [load_file(path) for path in sorted(newest.glob("buffers_rank*.safetensors"))]
    assert len(memories) == 2
    for name in ("memory_s", "memory_t", "labels", "log_z"):
        assert torch.equal(memories[0][f"terms.crd.{name}"], memories[1][f"terms.crd.{name}"])
    # synchronised, these would differ if each rank saw its own samples
    name = "terms.fitnet.regressors.0.bn.running_mean"
    assert torch.equal(memories[0][name], memories[1][name])

    own = set(ResNetCifar(classes=10, depth=8, widths=[4, 8, 16], channels=3).state_dict())
    exported = sorted(folder.snapshots.rglob("*.safetensors"))
    assert exported
    for path in exported:
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == own, path
