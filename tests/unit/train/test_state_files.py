from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdscale.engines import state_files
from kdscale.engines.state_files import restore_buffers, write_tensors


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


def test_what_all_ranks_held_alike_comes_back_bit_for_bit_and_the_rest_as_its_mean(tmp_path: Path) -> None:
    """A third of three equal numbers' sum need not be the number."""
    alike, module = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), nn.Module()
    assert not torch.equal(torch.stack([alike] * 3).mean(0), alike)
    module.register_buffer("bank", torch.zeros(1000, dtype=torch.float64))
    module.register_buffer("mean", torch.zeros(1))
    for rank in range(3):
        file = tmp_path / f"buffers_rank{rank:05d}.safetensors"
        save_file({"bank": alike, "mean": torch.tensor([float(rank)])}, file)
    restore_buffers(tmp_path, module)
    assert torch.equal(module.get_buffer("bank"), alike)
    assert module.get_buffer("mean") == 1
