"""The rungs that benchmarks/gpu.py climbs: networks, ways to run a step, and the step itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.bare import soft_target_loss
from benchmarks.gpu_nets import ResNet18, ResNet50

KD_WEIGHT = 0.9
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
WARM_UP = 4


@dataclass(frozen=True)
class Case:
    """A network, its images and how many of them make a step."""

    name: str
    network: type[nn.Module]
    classes: int
    size: int
    batch: int
    steps: int
    """Of a turn."""


CASES = (
    Case("ResNet-18 at 32", ResNet18, 100, 32, 512, 20),
    Case("ResNet-50 at 224", ResNet50, 1000, 224, 128, 8),
)
QUICK_CASES = (Case("ResNet-18 at 32", ResNet18, 10, 16, 4, 2),)


@dataclass(frozen=True)
class Rung:
    """One way to run the step."""

    name: str
    tf32: bool = True
    channels_last: bool = True
    bf16: bool = True
    compiled: bool = False
    graph: bool = False
    cached: bool = False


RUNGS = (
    Rung("eager fp32", tf32=False, channels_last=False, bf16=False),
    Rung("eager TF32", channels_last=False, bf16=False),
    Rung("eager TF32, channels-last", bf16=False),
    Rung("eager bf16, channels-last", bf16=True),
    Rung("CUDA graph", graph=True),
    Rung("compiled", compiled=True),
    Rung("compiled, CUDA graph", compiled=True, graph=True),
    Rung("CUDA graph, cached teacher", graph=True, cached=True),
    Rung("compiled, CUDA graph, cached teacher", compiled=True, graph=True, cached=True),
)


class Step:
    """A training step of a rung on a batch that lies on the device; `images` may be filled anew before each."""

    def __init__(self, case: Case, rung: Rung, device: torch.device) -> None:
        self._rung, self._device = rung, device
        layout = torch.channels_last if rung.channels_last else torch.contiguous_format
        torch.manual_seed(0)
        self.network = case.network(classes=case.classes).to(device, memory_format=layout)  # type: ignore[call-overload]
        self._student = torch.compile(self.network) if rung.compiled else self.network
        self._optimizer = torch.optim.SGD(
            self.network.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, foreach=True
        )
        shape = (case.batch, 3, case.size, case.size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self._labels = torch.randint(0, case.classes, (case.batch,), device=device)
        self._answer = torch.randn(case.batch, case.classes, device=device)
        self._layout = layout
        self._run: Callable[[], None] = self._eager

    def prepare(self) -> None:
        """Warm up, and record the graph where one is wanted."""
        if not self._rung.graph or self._device.type != "cuda":
            for _ in range(WARM_UP):
                self._eager()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._eager()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._eager()
        self._run = graph.replay

    def __call__(self) -> None:
        """One step; on a GPU it is launched, not awaited."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._rung.tf32
        self._run()

    def _eager(self) -> None:
        pixels = self.images.to(torch.float32, memory_format=self._layout).mul_(1 / 127.5).sub_(1.0)
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._rung.bf16, cache_enabled=False):
            logits = self._student(pixels)
        loss = F.cross_entropy(logits.float(), self._labels)
        if self._rung.cached:
            loss = (1 - KD_WEIGHT) * loss + KD_WEIGHT * soft_target_loss(logits.float(), self._answer)
        loss.backward()
        self._optimizer.step()
