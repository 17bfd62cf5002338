"""A conversion as a stage: how far it is, and what stops it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.load import load
from kdscale.data.store import Store
from kdscale.errors import DataError
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.plan import make_plan
from kdscale.train import convert
from kdscale.train.convert import run_conversion
from kdscale.train.stop import Stop

ROWS = 1000 + 200
EXPERIMENT: dict[str, Any] = {
    "name": "conversion",
    "data": {"name": "synthetic", "options": {"train_rows": 1000, "test_rows": 200, "size": 8}},
    "stages": {"student": {"student": {"model": "resnet_cifar", "depth": 8}, "losses": [{"name": "ce"}]}},
}


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Root, StageFolder]:
    """The folder of a planned conversion."""
    config = tmp_path / "conversion.yaml"
    config.write_text(yaml.safe_dump(EXPERIMENT))
    root = Root(tmp_path / "runs")
    plan = make_plan(load(config), root)
    prepare_folders(root, plan, retry_failed=False)
    (stage,) = [stage for stage in plan.todo if stage.kind == "convert"]
    folder = root.stage(stage.digest)
    assert folder is not None
    return root, folder


def digest_of(folder: StageFolder) -> str:
    return str(folder.definition()["digest"])


def test_it_is_done_once(planned: tuple[Root, StageFolder]) -> None:
    root, folder = planned
    assert run_conversion(root.path, digest_of(folder))
    state = folder.state()
    assert (state["state"], state["step"], state["steps"]) == ("done", ROWS, ROWS)
    written = (folder.path / "store" / "manifest.json").stat().st_mtime_ns
    assert run_conversion(root.path, digest_of(folder))
    assert len(folder.state()["attempts"]) == 1
    assert (folder.path / "store" / "manifest.json").stat().st_mtime_ns == written


def test_it_says_how_far_it_is(planned: tuple[Root, StageFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = planned
    monkeypatch.setattr(convert, "STATE_EVERY_S", 0.0)
    seen = []
    write = StageFolder.write_state

    def noted(self: StageFolder, **changes: Any) -> None:
        seen.append(changes.get("step"))
        write(self, **changes)

    monkeypatch.setattr(StageFolder, "write_state", noted)
    run_conversion(root.path, digest_of(folder))
    assert seen == [0, 500, 1000, 1200, ROWS]


def test_asked_to_stop_it_leaves_nothing_and_begins_anew(planned: tuple[Root, StageFolder]) -> None:
    root, folder = planned
    stop = Stop()
    stop.ask("asked to stop by SIGTERM")
    assert not run_conversion(root.path, digest_of(folder), stop)
    state = folder.state()
    assert (state["state"], state["reason"], state["step"]) == ("interrupted", "asked to stop by SIGTERM", 0)
    assert folder.claimant() is None
    assert [name for name in os.listdir(folder.path) if "store" in name and not name.endswith(".lock")] == []
    assert run_conversion(root.path, digest_of(folder))
    assert Store.open(folder.path / "store").rows("train") == 1000


def test_a_request_to_cancel_is_heard(planned: tuple[Root, StageFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = planned
    monkeypatch.setattr(convert, "STATE_EVERY_S", 0.0)
    folder.request_cancel("not needed")
    assert not run_conversion(root.path, digest_of(folder))
    assert folder.state()["reason"] == "cancelled by its user"


def test_a_claim_is_given_up_also_after_an_error(
    planned: tuple[Root, StageFolder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, folder = planned
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(convert, "write_store", lambda *_: (_ for _ in ()).throw(DataError("row 3 cannot be read")))
    with pytest.raises(DataError, match="row 3"):
        run_conversion(root.path, digest_of(folder))
    assert folder.claimant() is None
