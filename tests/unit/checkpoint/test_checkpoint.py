from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdscale import checkpoint
from kdscale.errors import CheckpointError, CheckpointMismatch
from tests.unit.checkpoint.disk import small_disk

DIGEST = "ab" * 32
FLOATS = 1000


def save(folder: Path, step: int, *, keep: int = 2, is_mine: bool = True, value: float | None = None) -> Path:
    """A checkpoint of 4 kB whose tensor holds its step, so that whoever reads it knows which one it is."""
    tensor = torch.full((FLOATS,), float(step) if value is None else value)
    path = checkpoint.save(
        folder,
        {"step": step, "digest": DIGEST},
        lambda at: save_file({"w": tensor}, at / "training.safetensors"),
        keep=keep,
        is_mine=lambda: is_mine,
    )
    checkpoint.settle()
    return path


def load(folder: Path, digest: str = DIGEST) -> tuple[int, float] | None:
    """The step that is resumed from and the value in its tensors."""
    read: list[float] = []
    loop = checkpoint.load(
        folder, digest, lambda at: read.append(load_file(at / "training.safetensors")["w"][0].item())
    )
    return None if loop is None else (loop["step"], read[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert load(tmp_path / "checkpoints") is None
    assert checkpoint.newest(tmp_path) is None


def test_the_newest_is_read_and_only_so_many_are_kept(tmp_path: Path) -> None:
    for step in (7, 14, 100, 21):  # by number, not by age: 21 is retired at once
        save(tmp_path, step, keep=2)
    assert load(tmp_path) == (100, 100.0)
    assert names(tmp_path) == ["step_00000021", "step_00000100"]


def test_retired_ones_are_out_of_sight_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while large files are removed; whoever ends the process waits for that."""
    goes_on = threading.Event()
    real = shutil.rmtree
    save(tmp_path, 7, keep=1)

    def slowly(path: Path, **options: Any) -> None:
        if threading.current_thread().name == "retired checkpoints":
            assert goes_on.wait(10)
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    write = lambda at: (at / "training.safetensors").write_bytes(b"")  # noqa: E731
    checkpoint.save(tmp_path, {"step": 14, "digest": DIGEST}, write, keep=1, is_mine=lambda: True)
    assert names(tmp_path) == [".step_00000007.retired.tmp", "step_00000014"]
    goes_on.set()
    checkpoint.settle()
    assert names(tmp_path) == ["step_00000014"]


def test_another_stages_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 7)
    with pytest.raises(CheckpointMismatch, match="belongs to stage abababababab, not to cdcdcdcdcdcd"):
        load(tmp_path, "cd" * 32)


def test_an_attempt_that_lost_the_stage_writes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 7)
    with pytest.raises(CheckpointError, match="another attempt has taken this stage over"):
        save(tmp_path, 14, is_mine=False)
    assert load(tmp_path) == (7, 7.0)
    assert names(tmp_path) == ["step_00000007"]


def test_a_writer_that_fails_leaves_the_previous_one(tmp_path: Path) -> None:
    save(tmp_path, 7)

    def fail(at: Path) -> None:
        (at / "training.safetensors").write_bytes(b"half")
        raise RuntimeError("the optimizer has no such state")

    with pytest.raises(RuntimeError, match="no such state"):
        checkpoint.save(tmp_path, {"step": 14, "digest": DIGEST}, fail, keep=2, is_mine=lambda: True)
    assert names(tmp_path) == ["step_00000007"]


# --------------------------------------------------------------------------- killed at any moment


class Killed(BaseException):
    """As SIGKILL: nothing that the code catches, so nothing is tidied up."""


class Fuse:
    """Ends the process at its n-th touch of the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        for module, name in ((os, "fsync"), (os, "rename"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self._burning(getattr(module, name)))

    def _burning(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread().name == "retired checkpoints":
                return real(*args, **options)  # what it removes is out of sight already, whole or not
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*args, **options)

        return call


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("step", [14, 7], ids=["next-step", "same-step-again"])
def test_killed_at_any_moment_there_is_always_a_whole_one(tmp_path: Path, step: int, keep: int) -> None:
    finished = False
    for moment in range(60):
        folder = tmp_path / str(moment)
        save(folder, 7, keep=keep)
        with pytest.MonkeyPatch.context() as patch:
            try:
                Fuse(patch, moment)
                save(folder, step, keep=keep, value=-1.0)
                finished = True
            except Killed:
                pass
        assert load(folder) in ((7, 7.0), (step, -1.0)), f"killed at touch {moment}"
        save(folder, 21, keep=1)
        assert load(folder) == (21, 21.0)
        assert names(folder) == ["step_00000021"], f"killed at touch {moment}: left behind"
        if finished:
            return
    raise AssertionError("it never came to the end")


# --------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "bit": lambda at: flip(at / "training.safetensors"),
    "cut": lambda at: os.truncate(at / "training.safetensors", 100),
    "file gone": lambda at: (at / "training.safetensors").unlink(),
    "loop": lambda at: (at / "loop.json").write_text('{"step": 14, "digest": "x"}'),
    "manifest bit": lambda at: flip(at / "manifest.json"),
    "manifest empty": lambda at: (at / "manifest.json").write_text(""),
    "manifest other": lambda at: (at / "manifest.json").write_text('["files"]'),
    "manifest entry": lambda at: (at / "manifest.json").write_text('{"files": {"loop.json": {}}}'),
    "manifest gone": lambda at: (at / "manifest.json").unlink(),
    "empty": lambda at: [path.unlink() for path in at.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_loudly(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 7)
    DAMAGES[damage](save(tmp_path, 14))
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path) == (7, 7.0)
    assert "CHECKPOINT DAMAGED" in caplog.text
    assert "step_00000014" in caplog.text
    assert names(tmp_path) == ["damaged_step_00000014", "step_00000007"]  # for whoever wants to know why
    assert load(tmp_path) == (7, 7.0)


def test_when_all_are_damaged_training_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (7, 14):
        flip(save(tmp_path, step) / "training.safetensors")
    assert load(tmp_path) is None
    assert caplog.text.count("CHECKPOINT DAMAGED") == 2


# --------------------------------------------------------------------------- full disks


def test_a_full_disk_takes_older_checkpoints_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:  # room for two or three
        for step in (7, 14, 21, 28, 35, 42):
            save(disk, step, keep=10)
        assert "giving up older checkpoints" in caplog.text
        assert load(disk) == (42, 42.0)


def test_a_full_disk_stops_with_the_previous_one_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        save(disk, 7)
        (disk / "somebody-elses").write_bytes(b"x" * (shutil.disk_usage(disk).free - 8192))
        with pytest.raises(CheckpointError) as caught:
            save(disk, 14)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert "step_00000007 is whole and will be resumed from" in str(caught.value)
        assert "free some space" in str(caught.value)
        assert load(disk) == (7, 7.0)
        assert names(disk) == ["somebody-elses", "step_00000007"]


def test_a_quota_takes_damaged_and_older_ones_first(tmp_path: Path) -> None:
    """Without a small disk: a writer that is refused while the folder holds more than one checkpoint."""
    for step in (7, 14, 21):
        save(tmp_path, step, keep=10)
    flip(tmp_path / "step_00000021" / "loop.json")
    assert load(tmp_path) == (14, 14.0)

    def write(at: Path) -> None:
        if len([name for name in names(tmp_path) if not name.startswith(".")]) > 1:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        (at / "training.safetensors").write_bytes(b"")

    checkpoint.save(tmp_path, {"step": 21, "digest": DIGEST}, write, keep=10, is_mine=lambda: True)
    assert names(tmp_path) == ["step_00000014", "step_00000021"]


def test_what_a_checkpoint_says_of_itself(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["files"]["training.safetensors"] == {
        "bytes": (path / "training.safetensors").stat().st_size,
        "xxh3_128": checkpoint.file_hash(path / "training.safetensors"),
    }
