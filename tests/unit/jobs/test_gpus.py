"""Stages of one machine share its GPUs evenly. Their numbers are made up: nothing here needs one."""

from __future__ import annotations

import pytest
import torch

from kdscale.jobs.gpus import VISIBLE, Gpus


def test_each_stage_has_its_own_while_there_are_any() -> None:
    gpus = Gpus(["0", "1", "2", "3"])
    assert [gpus.lend(stage, 2) for stage in ("a", "b")] == [{VISIBLE: "0,1"}, {VISIBLE: "2,3"}]


def test_more_stages_than_gpus_share_them_evenly() -> None:
    gpus = Gpus(["0", "1"])
    lent = [gpus.lend(stage, 1)[VISIBLE] for stage in "abcd"]
    assert sorted(lent) == ["0", "0", "1", "1"]


def test_what_came_back_is_lent_again_first() -> None:
    gpus = Gpus(["0", "1", "2"])
    for stage in "abc":
        gpus.lend(stage, 1)
    gpus.take_back("b")
    assert gpus.lend("d", 1) == {VISIBLE: "1"}


def test_a_stage_of_more_processes_than_gpus_sees_all() -> None:
    assert Gpus(["4", "7"]).lend("a", 3) == {VISIBLE: "4,7"}


def test_those_that_the_user_left_visible_are_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(VISIBLE, "5, GPU-12ab")
    gpus = Gpus()
    assert [gpus.lend(stage, 1) for stage in ("a", "b")] == [{VISIBLE: "5"}, {VISIBLE: "GPU-12ab"}]


def test_without_gpus_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Gpus().lend("a", 2) == {}
