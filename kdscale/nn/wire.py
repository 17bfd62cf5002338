"""What one machine sends to another within a network: numbers as bytes, by a range that training has observed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

__all__ = ["Wire"]

CODES = 255
"""Steps between the lowest and the highest code of a byte."""
MOMENTUM = 0.1
"""Share of a batch in the range, as of BatchNorm's statistics: early batches are forgotten, an extreme moves it little.

Source: the moving average of minimum and maximum of Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.1.
"""
NARROWEST = 1e-12
"""Range below which all is one value; also that of a wire which has seen nothing yet."""


class Wire(nn.Module):
    """In training it observes minimum and maximum; in evaluation what passes is rounded to 256 even steps of them.

    Each rank observes its own share of a batch; as BatchNorm's, the statistics are averaged for evaluation and export.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self._coded = True

    def forward(self, values: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        """Pass values on: as they are in training, as the other end reads them in evaluation."""
        if self.training:
            self._observe(values.detach().float())
            return values
        return self.read(self.write(values)).to(values.dtype) if self._coded else values

    def write(self, values: Float[Tensor, "B *rest"]) -> UInt8[Tensor, "B *rest"]:
        """One byte a value, the nearest code; what lies outside of the range is sent as its end."""
        return ((values.float() - self.low) / self._step()).round().clamp(0, CODES).to(torch.uint8)

    def read(self, codes: UInt8[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        """The values that codes stand for, within half a step of what was sent."""
        return codes.float() * self._step() + self.low

    @contextmanager
    def uncoded(self) -> Iterator[None]:
        """Within it, values pass evaluation as they are."""
        self._coded = False
        try:
            yield
        finally:
            self._coded = True

    def _step(self) -> Tensor:
        return (self.high - self.low).clamp_min(NARROWEST) / CODES

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        # where, unlike a condition, does not wait for the device
        share = torch.where(self.high > self.low, MOMENTUM, 1.0)
        self.low.lerp_(low.to(self.low.dtype), share.to(self.low.dtype))
        self.high.lerp_(high.to(self.high.dtype), share.to(self.high.dtype))
