"""The live view: one row a running stage on a terminal of any width, lines in a log, colour only where wanted."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from kdscale.jobs import watch as module
from kdscale.jobs.watch import Watch
from kdscale.pipeline.artifacts import Claim, Root
from tests.fake_sweeps import Fake, begin, finish, log

STYLES = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def console(width: int = 100, *, terminal: bool, no_color: bool = False, height: int = 24) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=terminal, no_color=no_color, _environ={},
        color_system="truecolor" if terminal else None,
    )  # fmt: skip


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.0)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    fake = Fake(Root(tmp_path), axes={"method": ["kd", "crd"], "seed": ["0", "1"]})
    finish(fake.folder("data"), None)
    finish(fake.folder("teacher"), 0.93)
    claims: list[Claim] = []
    now = time.time()
    for i, values in enumerate([("kd", "0"), ("crd", "1")]):
        folder = fake.folder("student", *values)
        claims.append(begin(folder, now - 100))
        log(folder, 100, now - 50, train__loss=2.0, val__top1=0.5)
        log(folder, 600 + i, now, train__loss=1.25, train__images_per_s=2310.4)
        folder.write_state(epoch=6.0)
    yield fake
    for claim in claims:
        claim.release()


class TestOnATerminal:
    def test_running_stages_have_a_row_each(self, fake: Fake) -> None:
        screen = console(terminal=True)
        with Watch(fake.sweep.path, screen) as watch:
            watch.update()
        text = STYLES.sub("", shown(screen))
        assert "birds  done 2 · running 2 · waiting 2" in text
        row = next(line for line in text.splitlines() if "student[kd,s0]" in line)
        for cell in ("600/1,000", "6.00", "1.2500", "0.5000", "2,310", "0:40"):
            assert cell in row

    @pytest.mark.parametrize("width", [20, 40, 62, 80, 120, 200])
    def test_no_line_is_wider_than_the_terminal(self, fake: Fake, width: int) -> None:
        screen = console(width, terminal=True)
        with Watch(fake.sweep.path, screen) as watch:
            watch.update()
        lines = CONTROL.sub("", shown(screen)).replace("\r", "\n").splitlines()
        assert max(map(len, lines)) <= width
        assert any("student[kd" in line for line in lines)

    def test_more_rows_than_fit_are_counted(self, fake: Fake) -> None:
        screen = console(terminal=True, height=5)
        with Watch(fake.sweep.path, screen) as watch:
            watch.update()
        assert "and 1 more" in shown(screen)

    def test_no_color_means_none(self, fake: Fake) -> None:
        screen = console(terminal=True, no_color=True)
        with Watch(fake.sweep.path, screen) as watch:
            watch.update()
            watch.say("[red]not markup[/red]")
        assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", shown(screen))
        assert "[red]not markup[/red]" in shown(screen)

    def test_what_finishes_is_said_with_its_figure(self, fake: Fake) -> None:
        screen = console(terminal=True)
        finish(fake.folder("student", "kd", "1"), 0.9)
        with Watch(fake.sweep.path, screen) as watch:
            watch.update()
            assert "student[kd,s1]" not in shown(screen)
            finish(fake.folder("student", "crd", "0"), 0.8765, wall_s=75.0)
            watch.update()
            watch.update()
        assert shown(screen).count("student[crd,s0] done in 1:15  top-1 0.8765 on test") == 1

    def test_the_cursor_comes_back(self, fake: Fake) -> None:
        screen = console(terminal=True)
        with contextlib.suppress(KeyboardInterrupt), Watch(fake.sweep.path, screen) as watch:
            watch.update()
            raise KeyboardInterrupt
        assert shown(screen).rindex("\x1b[?25h") > shown(screen).rindex("\x1b[?25l")


class TestInALog:
    def test_lines_without_control_characters(self, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.0)
        screen = console(50, terminal=False)
        with Watch(fake.sweep.path, screen) as watch:
            watch.update()
            watch.say("a line of the launcher's")
        text = shown(screen)
        assert "\x1b" not in text
        first, second, said = text.splitlines()  # never wrapped, however narrow
        assert first.endswith(
            "student[kd,s0]  step 600/1,000  epoch 6.00  loss 1.2500  val top-1 0.5000  2,310 img/s  0:40 left"
        )
        assert "student[crd,s1]" in second
        assert re.fullmatch(r"\d\d:\d\d:\d\d  a line of the launcher's", said)

    def test_starts_and_ends_are_said_once(self, fake: Fake) -> None:
        screen = console(terminal=False)
        with Watch(fake.sweep.path, screen) as watch:
            watch.update()
            assert shown(screen) == ""
            claim = begin(fake.folder("student", "kd", "1"), resumed_from=500)
            watch.update()
            claim.release()
            finish(fake.folder("student", "kd", "1"), 0.9)
            watch.update()
            watch.update()
        said = [line[10:] for line in shown(screen).splitlines()]
        assert said == [
            "student[kd,s1] running, resumed at step 500",
            "student[kd,s1] done in 2:00  top-1 0.9000 on test",
        ]
