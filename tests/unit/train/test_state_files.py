from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdscale.engines import state_files
from kdscale.engines.state_files import write_tensors


def test_only_tensors_that_do_not_stand_alone_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state as large as memory allows can be saved, and saving stops training for no copy of it."""
    buffer = torch.arange(12.0)
    tensors = {
        "alone": torch.ones(3), "part": buffer[:4], "other_part": buffer[4:], "across": torch.ones(2, 3).T,
        "tied": (tied := torch.zeros(5)), "tied_too": tied,
    }  # fmt: skip
    written: dict[str, Tensor] = {}
    real = state_files.save_file

    def save(given: dict[str, Tensor], path: Path) -> None:
        written.update(given)
        real(given, path)

    monkeypatch.setattr(state_files, "save_file", save)
    write_tensors(tmp_path, tensors, {})
    kept = {name for name, tensor in tensors.items() if written[name].data_ptr() == tensor.data_ptr()}
    assert kept == {"alone", "tied"}
    read = load_file(tmp_path / "training.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
