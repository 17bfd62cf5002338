from __future__ import annotations

import os
import platform
import subprocess
import sys

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


FAULTS = """
import resource, sys
import torch
from kdscale.train.device import settle_heap
torch.set_num_threads(1)
sizes = [1 << 20, 3 << 20, 6 << 20]
def step():
    return [torch.ones(size // 4) for size in sizes for _ in range(2)]
for _ in range(3):
    step()
if sys.argv[1] == "settled":
    settle_heap()
    for _ in range(20):  # the heap takes the shape that it keeps; how soon, hangs on where it lies
        step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at every step")
def test_a_step_finds_the_memory_of_the_one_before() -> None:
    """Else the kernel hands it over anew, page by page: ten thousand faults a step."""

    def faults(how: str) -> int:
        # glibc's own threshold, but fixed: one that adapts has the heap settled by chance now and then
        env = os.environ | {"MALLOC_TRIM_THRESHOLD_": "131072"}
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=env)
        return int(done.stdout)

    assert 20 * faults("settled") < faults("as it comes")
