"""Configs as a user writes them: text in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdscale.config.load import Sweep, load

PAIR = """
name: pair
stages:
  teacher:
    seed: 0
    student: {model: resnet_cifar, depth: 20}
    losses: [{name: ce}]
  student:
    student: {model: resnet_cifar, depth: 8}
    teachers: {teacher: {from: teacher}}
    losses:
      - {name: ce, weight: 0.1}
      - {name: kd, weight: 0.9, temperature: 4, teacher: teacher}
"""

Loading = Callable[..., Sweep]


@pytest.fixture
def load_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    """Load a text as the file `x.yaml`, which is shown as such; PAIR lies before what is not whole."""
    monkeypatch.chdir(tmp_path)

    def loading(text: str = "", *overrides: str, whole: bool = False) -> Sweep:
        Path("x.yaml").write_text(text if whole else PAIR + text)
        return load("x.yaml", overrides)

    return loading
