from __future__ import annotations

import pytest
import torch

from kdscale.train.device import seed_generators

CPU = torch.device("cpu")


def test_draws_are_those_after_torchs_own_seeding() -> None:
    torch.manual_seed(2**62 + 5)
    expected = torch.rand(4)
    seed_generators(2**62 + 5, CPU)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.gpu
def test_draws_on_a_gpu_are_those_after_torchs_own_seeding() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(7)
    expected = torch.rand(4, device="cuda")
    seed_generators(7, torch.device("cuda", torch.cuda.current_device()))
    assert torch.equal(torch.rand(4, device="cuda"), expected)
