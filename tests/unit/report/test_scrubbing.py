"""What belongs to a machine is taken out of texts, and nothing else."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.report.scrubbing import Scrubber


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HUB_TOKEN", "canary-123")
    monkeypatch.setenv("A_PASSWORD", "1")
    monkeypatch.setattr(socket, "gethostname", lambda: "login1")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/users/ada/x /users/adam", "~/x /users/adam"),
        ("/users/ada/runs/stages", "RUNS/stages"),
        ("x canary-123, 1 step", "x REMOVED, 1 step"),
        ("https://me:pw@site/x http://site", "https://site/x http://site"),
        ("on node7 and login1, not node77", "on HOST and HOST, not node77"),
        ("/scratch/ada/x ada@host ada", "/scratch/USER/x USER@host ada"),
        ("top1 0.9312 of resnet_cifar", "top1 0.9312 of resnet_cifar"),
    ],
)
def test_what_is_a_machines_goes(text: str, clean: str) -> None:
    assert Scrubber({Path("/users/ada/runs"): "RUNS"}, {"node7"}).text(text) == clean


def test_a_config_keeps_names() -> None:
    text = "partition: login1\nroot: /users/ada/data\nkey: canary-123"
    assert Scrubber({}).config(text) == "partition: login1\nroot: ~/data\nkey: REMOVED"


@given(st.text(alphabet="abc/~\n. canary-123@:", max_size=80))
def test_scrubbing_again_changes_nothing(text: str) -> None:
    scrub = Scrubber({Path("/users/ada/runs"): "RUNS"}, {"node7"})
    once = scrub.text(text)
    assert scrub.text(once) == once
    assert "canary-123" not in once
