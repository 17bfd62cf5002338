"""Stages are found by digest, written by one at a time, and never touched in a read-only root."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdscale.errors import ConfigError, StageError
from kdscale.pipeline import claims
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder

DIGEST = "3f21ab45cd67" + "0" * 52


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "runs")


@pytest.fixture
def stage(root: Root) -> StageFolder:
    return root.create_stage("teacher", DIGEST)


def dead_claim(stage: StageFolder) -> None:
    holder = {"schema": 1, **claims.this(), "started": 1, "attempt": 1, "since": 5.0, "heartbeat": 7e9}
    (stage.path / "claim.json").write_text(json.dumps(holder))


class TestRoot:
    def test_flag_then_environment_then_the_folder_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KDSCALE_RUNS", str(tmp_path / "a"))
        assert Root.find(tmp_path / "b").path == tmp_path / "b"
        assert Root.find().path == tmp_path / "a"
        monkeypatch.delenv("KDSCALE_RUNS")
        monkeypatch.chdir(tmp_path)
        assert Root.find().path == tmp_path / "runs"

    def test_a_file_is_no_root(self, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        with pytest.raises(ConfigError, match="is a file"):
            Root.find(tmp_path / "x")

    def test_an_empty_one_has_nothing(self, root: Root) -> None:
        assert (root.stages(), root.sweeps(), root.stage(DIGEST)) == ([], [], None)
        assert not root.path.exists()

    def test_a_stage_is_found_by_its_digest_alone_and_the_first_name_stays(
        self, root: Root, stage: StageFolder
    ) -> None:
        again = root.create_stage("student", DIGEST)
        assert again.path == stage.path == root.path / "stages" / "teacher-3f21ab45cd67"
        assert (again.name, again.digest, again.digest12) == ("teacher", DIGEST, DIGEST[:12])

    @pytest.mark.parametrize("name", ["../x", "a/b", ".x", "", "a b"])
    def test_names_stay_under_the_root(self, root: Root, name: str) -> None:
        with pytest.raises(ConfigError, match="cannot be called"):
            root.create_stage(name, DIGEST)

    @pytest.mark.parametrize("digest", ["3f21", "*" * 12, "../" * 4])
    def test_what_is_no_digest_is_refused(self, root: Root, digest: str) -> None:
        with pytest.raises(StageError, match="is no digest"):
            root.stage(digest)

    def test_sweeps_come_newest_first(self, root: Root) -> None:
        for i, name in enumerate(["one", "two", "three"]):
            folder = root.create_sweep(name, "abcdef0123")
            if name != "three":
                folder.plan_file.write_text("{}")
                os.utime(folder.plan_file, (i, i))
        assert [s.name for s in root.sweeps()] == ["two", "one"]


class TestReuse:
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Root:
        return Root(tmp_path / "lab")

    @pytest.fixture
    def theirs(self, lab: Root) -> StageFolder:
        folder = lab.create_stage("teacher", DIGEST)
        folder.write_state(state="done")
        return folder

    def test_a_finished_stage_elsewhere_is_found(self, root: Root, theirs: StageFolder, lab: Root) -> None:
        found = Root(root.path, [lab.path]).stage(DIGEST)
        assert found is not None
        assert (found.path, found.writable) == (theirs.path, False)

    def test_an_unfinished_one_is_not(self, root: Root, lab: Root) -> None:
        lab.create_stage("teacher", DIGEST)
        assert Root(root.path, [lab.path]).stage(DIGEST) is None

    def test_the_own_one_comes_first(self, root: Root, stage: StageFolder, theirs: StageFolder, lab: Root) -> None:
        both = Root(root.path, [lab.path])
        found = both.stage(DIGEST)
        assert found is not None
        assert found.path == stage.path
        assert [f.path for f in both.stages()] == [stage.path]

    @pytest.mark.parametrize(
        "act",
        [
            lambda s: s.write_state(state="failed"), lambda s: s.claim({}), lambda s: s.define({}),
            lambda s: s.note_attempt(outcome="x"), lambda s: s.request_cancel("x"), lambda s: s.clear_cancel(),
            lambda s: s.take_out("x"), lambda s: s.drop(s.snapshots), lambda s: s.reconcile(), lambda s: s.unpin(),
            lambda s: s.pin("x"),
        ],
    )  # fmt: skip
    def test_is_never_written(self, theirs: StageFolder, act: Callable[[StageFolder], Any]) -> None:
        theirs.snapshots.mkdir()
        before = {p: p.stat().st_mtime_ns for p in theirs.path.rglob("*")}
        with pytest.raises(StageError, match="read-only"):
            act(StageFolder(theirs.path, writable=False))
        assert {p: p.stat().st_mtime_ns for p in theirs.path.rglob("*")} == before

    def test_roots_come_from_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KDSCALE_REUSE", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
        assert Root.find(tmp_path).reuse == (tmp_path / "a", tmp_path / "b")


class TestState:
    def test_a_new_stage_waits(self, stage: StageFolder) -> None:
        state = stage.state()
        assert (state["state"], state["step"], state["attempts"], state["digest"]) == ("waiting", 0, [], DIGEST)

    def test_changes_are_merged(self, stage: StageFolder) -> None:
        stage.write_state(state="running", step=5)
        stage.write_state(step=6)
        assert (stage.state()["state"], stage.state()["step"]) == ("running", 6)

    def test_only_the_claimant_writes(self, root: Root, stage: StageFolder) -> None:
        claim = stage.claim({"world": 1})
        stage.write_state(state="running")
        another = root.stage(DIGEST)
        assert another is not None
        with pytest.raises(StageError, match="only that process may change it"):
            another.write_state(state="queued")
        claim.release()
        another.write_state(state="queued")

    def test_the_state_that_ends_an_attempt_is_its_outcome(self, stage: StageFolder) -> None:
        stage.write_state(state="interrupted")
        claim = stage.claim({})
        assert stage.state()["attempts"][-1]["outcome"] is None
        stage.write_state(state="running")
        claim.release()
        StageFolder(stage.path).write_state(state="failed", reason="x")
        (attempt,) = stage.state()["attempts"]
        assert attempt["outcome"] == "failed"
        assert attempt["ended"] >= attempt["started"]

    def test_noting_an_attempt_before_the_first_does_nothing(self, stage: StageFolder) -> None:
        stage.note_attempt(outcome="lost")
        assert stage.state()["attempts"] == []

    def test_what_is_done_is_not_claimed_again(self, stage: StageFolder) -> None:
        stage.write_state(state="done")
        with pytest.raises(StageError, match="done already"):
            stage.claim({})
        assert stage.claimant() is None

    def test_a_claim_that_cannot_be_noted_is_given_back(
        self, stage: StageFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(StageFolder, "_write", full)
        with pytest.raises(OSError, match="No space"):
            stage.claim({})
        assert stage.last_claim() is None

    def test_a_damaged_state_says_what_to_do(self, stage: StageFolder) -> None:
        (stage.path / "state.json").write_text("{")
        with pytest.raises(StageError, match=r"launch/runs.py rm teacher-3f21ab45cd67"):
            stage.state()

    def test_an_undefined_stage_says_so(self, stage: StageFolder) -> None:
        with pytest.raises(StageError, match=r"no stage.yaml"):
            stage.definition()
        stage.define({"digest": DIGEST, "kind": "train"})
        assert stage.definition()["kind"] == "train"


class TestReconcile:
    def test_a_stage_whose_process_died_becomes_interrupted_once(self, stage: StageFolder) -> None:
        stage.write_state(state="running", attempts=[{"attempt": 1, "started": 1.0, "ended": None, "outcome": None}])
        dead_claim(stage)
        found = stage.reconcile()
        assert found
        assert "ended without a word" in found
        state = stage.state()
        assert (state["state"], state["attempts"][0]["outcome"]) == ("interrupted", "lost")
        assert state["attempts"][0]["ended"] == 7e9
        content = (stage.path / "state.json").read_bytes()
        assert stage.reconcile() is None
        assert (stage.path / "state.json").read_bytes() == content
        assert stage.last_claim() is None

    @pytest.mark.parametrize("state", ["waiting", "queued", "done", "failed", "interrupted", "paused"])
    def test_others_stay_as_they_are(self, stage: StageFolder, state: str) -> None:
        stage.write_state(state=state)
        assert stage.reconcile() is None
        assert stage.state()["state"] == state

    def test_what_lives_is_left_alone(self, stage: StageFolder) -> None:
        claim = stage.claim({})
        stage.write_state(state="running")
        assert StageFolder(stage.path).reconcile() is None
        claim.release()


class TestMarks:
    @pytest.mark.parametrize(
        ("selector", "folder"), [("last", "last"), ("best", "best"), ("epoch:3", "epoch_3"), ("acc:0.9", "acc_0.9")]
    )
    def test_snapshots_have_places(self, stage: StageFolder, selector: str, folder: str) -> None:
        assert stage.snapshot(selector) == stage.path / "snapshots" / folder / "student.safetensors"

    @pytest.mark.parametrize("selector", ["../x", "epoch", "epoch:../1", "first", ""])
    def test_nothing_else_is_a_selector(self, stage: StageFolder, selector: str) -> None:
        with pytest.raises(ConfigError, match="no snapshot is called"):
            stage.snapshot(selector)

    def test_a_wish_to_cancel_stands_until_cleared_even_while_the_stage_runs(self, stage: StageFolder) -> None:
        claim = stage.claim({})
        StageFolder(stage.path).request_cancel("wrong learning rate")
        wish = stage.cancel_request()
        assert wish is not None
        assert wish["reason"] == "wrong learning rate"
        assert wish["when"] <= time.time()
        stage.clear_cancel()
        assert stage.cancel_request() is None
        claim.release()

    def test_pins(self, stage: StageFolder) -> None:
        assert stage.pinned() is None
        stage.pin("the lab's teacher")
        assert (stage.pinned() or {})["reason"] == "the lab's teacher"
        stage.unpin()
        assert stage.pinned() is None

    def test_what_is_taken_out_is_nowhere_to_be_found_but_kept(self, root: Root, stage: StageFolder) -> None:
        target = stage.take_out("trained on the wrong split")
        assert root.stage(DIGEST) is None
        assert root.stages() == []
        assert json.loads((target / "removed.json").read_text())["reason"] == "trained on the wrong split"
        with pytest.raises(StageError, match="taken out"):
            stage.write_state(state="done")
        assert root.create_stage("teacher", DIGEST).state()["state"] == "waiting"

    def test_what_runs_is_neither_taken_out_nor_dropped(self, root: Root, stage: StageFolder) -> None:
        stage.checkpoints.mkdir()
        claim = stage.claim({})
        another = StageFolder(stage.path)
        for act in (lambda: another.take_out("x"), lambda: another.drop(stage.checkpoints)):
            with pytest.raises(StageError, match="being run"):
                act()
        claim.release()
        another.drop(stage.checkpoints)
        assert not stage.checkpoints.exists()
        assert not list(stage.path.glob(".dropped*"))


class TestSweepFolder:
    def test_without_a_plan_it_says_so(self, root: Root) -> None:
        with pytest.raises(ConfigError, match=r"no plan.json"):
            root.create_sweep("x", "0" * 64).plan()

    def test_has_one_live_launcher(self, root: Root) -> None:
        sweep = root.create_sweep("x", "0" * 64)
        assert sweep.launcher() is None
        with sweep.launching():
            with SweepFolder(sweep.path).launching():
                assert (sweep.launcher() or {})["pid"] == os.getpid()
            assert sweep.launcher() is not None
        assert sweep.launcher() is None
        assert sweep.root.path == root.path
