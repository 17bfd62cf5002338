"""The trials of the folder of runs: each passes on a sound file system and fails on one that breaks its promise."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from kdscale.doctor import folder as trials
from kdscale.doctor.folder import clock_skew_s, examine_folder, links_work, locks_work, rename_is_atomic


def test_a_sound_folder_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    findings = list(examine_folder(tmp_path / "runs"))
    assert [finding.name for finding in findings if finding.state != "ok" and finding.name != "room"] == []
    assert "not made yet" in findings[0].text
    assert list(tmp_path.iterdir()) == []


def test_locks_that_keep_nobody_out_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locks_work(tmp_path)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert not locks_work(tmp_path)


def test_a_rename_that_shows_a_gap_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rename_is_atomic(tmp_path)

    def gap(source: Path, target: Path) -> None:
        os.unlink(target)
        time.sleep(0.002)
        shutil.copy(source, target)

    monkeypatch.setattr(os, "replace", gap)
    assert not rename_is_atomic(tmp_path)


def test_links_that_overwrite_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sound").mkdir()
    assert links_work(tmp_path / "sound")
    monkeypatch.setattr(os, "link", shutil.copy)
    assert not links_work(tmp_path)


@pytest.mark.parametrize("ahead_s", [-40.0, 40.0])
def test_a_clock_that_is_off_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    assert abs(clock_skew_s(tmp_path)) < 1
    really = time.time
    monkeypatch.setattr(time, "time", lambda: really() - ahead_s)
    assert clock_skew_s(tmp_path) == pytest.approx(ahead_s, abs=1)
    (finding,) = [finding for finding in examine_folder(tmp_path) if finding.name == "clock"]
    assert finding.state == "note"
    assert f"CLOCK SKEW {ahead_s:+.1f} s" in finding.text


def test_a_folder_that_cannot_be_written_makes_it_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trials.tempfile, "TemporaryDirectory", refuse)
    finding = list(examine_folder(tmp_path))[-1]
    assert finding.stops
    assert "Permission denied" in finding.text


def test_a_file_system_without_locks_is_said_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (finding,) = [finding for finding in examine_folder(tmp_path) if finding.name == "locks"]
    assert finding.stops
    assert "LOCKS: NO" in finding.text
    assert "Function not implemented" in finding.text
