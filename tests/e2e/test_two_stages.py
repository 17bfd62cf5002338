"""Methods of two stages: what the second starts from is what the first ended with, and what is frozen stays so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from kdscale import checkpoint
from kdscale.config.load import load
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.plan import make_plan
from kdscale.train.build import Parts, build
from tests.matrix import MATRIX
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN, untimed_metrics

SMALL = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
STAGES: dict[str, Any] = {
    "teacher": {"student": SMALL, "losses": [{"name": "ce"}], "train": {"epochs": 1}},
    "student": {"student": SMALL, "teachers": {"teacher": {"from": "teacher"}}, "train": {"epochs": 1}},
    "tuned": {
        "init_from": "student",
        "init_skip": ["head"],
        "train_only": ["head"],
        "losses": [{"name": "ce"}],
        "train": {"epochs": 2},
    },
}
DOCUMENT: dict[str, Any] = {
    "name": "two_stages",
    "data": SMALL_DATA | {"options": SMALL_DATA["options"] | {"train_rows": 120, "test_rows": 32}},
    "train": SMALL_TRAIN,
    "engine": {"processes": 1},
    "stages": STAGES,
}
FIRST = {"ft": "paraphraser"}
"""The first stage's name, where it is not `init`."""
ABOVE = {"fsp": {"head"}, "fitnet_two_stage": {"stage3", "head"}, "ab": {"head"}, "pad": set(), "ft": set(SMALL)}
"""What of the student lies above its last tap; the paraphraser's stage trains nothing of its network."""


def ran(folder: Path, method: str) -> tuple[Root, dict[str, StageFolder]]:
    """Run a method's stages with a validation between two epochs of the first."""
    first = {f"stages.{FIRST.get(method, 'init')}.train.epochs": 2}
    config = folder / "two_stages.yaml"
    patch = {method: {"use": f"kdscale:methods/{method}.yaml", "stages.student.train.epochs": 1, **first}}
    config.write_text(yaml.safe_dump(DOCUMENT | {"sweep": {"method": patch}}))
    root = Root(folder / "runs")
    plan = make_plan(load(config), root)
    prepare_folders(root, plan, retry_failed=False)
    assert set(run_inline(root, plan, lambda line: None).values()) == {"done"}
    return root, {name: StageFolder(root.path / plan.stages[d].folder) for name, d in plan.trials[0].stages.items()}


def begun(folder: StageFolder, root: Root) -> tuple[Parts, dict[str, Tensor]]:
    """What a stage trains with, and its network as it was before the first step."""
    parts = build(folder.definition(), root, torch.device("cpu"))
    parts.train_loader.close()
    return parts, parts.tensors()


def still(parts: Parts) -> set[str]:
    """Tensors of the network, buffers included, of modules that have parameters and train none of them."""
    frozen = [
        path
        for path, module in parts.network.model.named_modules()
        if list(module.parameters()) and not any(p.requires_grad for p in module.parameters())
    ]
    return {name for name in parts.tensors() if any(not path or name.startswith(f"{path}.") for path in frozen)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor], names: set[str]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize(
    "method", ["fitnet_two_stage", *(pytest.param(m, marks=MATRIX) for m in ABOVE if "fit" not in m)]
)
def test_weights_are_handed_over_and_what_is_frozen_stays(method: str, tmp_path: Path) -> None:
    root, folders = ran(tmp_path, method)
    first, second = folders[FIRST.get(method, "init")], folders["student"]
    parts, before = begun(first, root)
    after = load_file(first.snapshot("last"))
    frozen = still(parts)
    assert {name.partition(".")[0] for name in frozen} == (set(_parts(before)) if method == "ft" else ABOVE[method])
    assert equal(before, after, frozen)
    assert not any(torch.equal(before[name], after[name]) for name in before.keys() - frozen)

    handed = "last#ft" if method == "ft" else "last"
    role = "terms.ft" if method == "ft" else "init_from"
    assert second.state()["consumed"][role] == first.state()["weights"][handed]
    assert second.state()["consumed"][role] == checkpoint.file_hash(first.snapshot(handed))
    parts, start = begun(second, root)
    given = {k: v for k, v in parts.tensors("ft").items() if "paraphrasers" in k} if method == "ft" else start
    kept = load_file(first.snapshot(handed))
    assert given.keys() == kept.keys()
    assert equal(given, kept, set(kept))

    figures = {name for line in untimed_metrics(first) for name in line if name.startswith("train/ab/")}
    assert figures == ({"train/ab/signs"} if method == "ab" else set())

    trained = load_file(second.snapshot("last"))
    parts, tuned = begun(folders["tuned"], root)
    body = {name for name in trained if not name.startswith("head.")}
    assert still(parts) == body
    assert equal(tuned, trained, body)
    assert equal(load_file(folders["tuned"].snapshot("last")), trained, body)
    assert not torch.equal(tuned["head.weight"], trained["head.weight"])
    assert not torch.equal(load_file(folders["tuned"].snapshot("last"))["head.weight"], tuned["head.weight"])

    assert load_file(first.path / "student.safetensors").keys() == before.keys()
    assert load_file(second.path / "student.safetensors").keys() == start.keys()


def _parts(tensors: dict[str, Tensor]) -> set[str]:
    return {name.partition(".")[0] for name in tensors}
