"""Contrastive representation distillation: tell the teacher's view of the same sample from its views of others.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", arXiv:1910.10699; memory banks,
the constant Z and the update as in the authors' code.
Deviation: negatives are a function of (step, row), drawn on the device, with replacement. A row of the sample's own
class is drawn again, up to twice, as far as labels are known: a bank learns them as rows come by, in the first epoch.
Reduction: per sample, both directions added up.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdscale import ranks
from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.negatives import draw_negatives
from kdscale.nn.sides import map_sides, paired_shapes, pooled

__all__ = ["Contrastive"]

EPS = 1e-7
"""Added to the noise's density, as in the authors' code."""


class Contrastive(Loss):
    """Bring the student's embedding of a sample near the teacher's, away from those of other rows."""

    class Config(PluginConfig):
        """Options."""

        dimensions: int = Field(128, ge=1, description="of the embeddings")
        negatives: int = Field(16384, ge=1)
        temperature: float = Field(0.07, gt=0)
        momentum: float = Field(0.5, ge=0, lt=1, description="share of a bank's row that stays")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features", "labels"})
    stateful: ClassVar[bool] = True
    memory_s: Tensor
    memory_t: Tensor
    labels: Tensor
    log_z: Tensor

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("crd", shapes.student, shapes.teacher)
        if shapes.train_rows < 2:
            raise ShapeError(f"crd: contrasts rows of the train set, and there are {shapes.train_rows}")
        self.embed_s, self.embed_t = (nn.Linear(shape[0], config.dimensions) for shape in pairs[-1])
        bound = math.sqrt(3 / config.dimensions)
        for name in ("memory_s", "memory_t"):
            bank = nn.init.uniform_(torch.empty(shapes.train_rows, config.dimensions), -bound, bound)
            self.register_buffer(name, bank)
        self.register_buffer("labels", torch.full((shapes.train_rows,), -1))
        self.register_buffer("log_z", torch.full((2,), math.nan, dtype=torch.float64))  # nan: before the first batch

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return both directions' loss of each sample, of the last tap. Raises: ShapeError."""
        own, theirs = (pooled(side) for side in map_sides("crd", student, teacher)[-1])
        others = draw_negatives(batch, self.labels, self.config.negatives)
        with torch.autocast(own.device.type, enabled=False):
            values = self.contrast(own, theirs, torch.cat([batch.rows[:, None], others], dim=1))
        if self.training:
            rows, labels = ranks.gather_with_gradient(batch.rows), ranks.gather_with_gradient(batch.labels)
            self.labels[rows] = labels
        return values

    def contrast(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D2"], rows: Int64[Tensor, "B K"]
    ) -> Float[Tensor, "B"]:
        """Contrast with the banks at `rows`, each sample's own first; in training, update the banks behind that."""
        embedded = [functional.normalize(self.embed_s(student), eps=1e-6)]
        embedded.append(functional.normalize(self.embed_t(teacher), eps=1e-6))
        banks = [self.memory_s, self.memory_t]
        values = [self._direction(i, embedded[i], banks[1 - i].clone(), rows) for i in range(2)]
        if self.training:
            for bank, embedding in zip(banks, embedded, strict=True):
                self._update(bank, embedding.detach(), rows[:, 0])
        return values[0] + values[1]

    def _direction(self, i: int, anchor: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
        scores = (anchor @ bank.mT).gather(1, rows) / self.config.temperature
        if self.log_z[i].isnan():
            mean = ranks.mean_(scores.detach().double().exp().mean())
            self.log_z[i] = mean.log() + math.log(len(bank))
        return noise_contrast(scores - self.log_z[i].to(scores.dtype), len(bank))

    @torch.no_grad()
    def _update(self, bank: Tensor, embedding: Tensor, rows: Tensor) -> None:
        """All ranks' rows, so that every rank's bank stays the same."""
        rows, embedding = ranks.gather_with_gradient(rows), ranks.gather_with_gradient(embedding)
        kept = self.config.momentum
        bank[rows] = functional.normalize(kept * bank[rows] + (1 - kept) * embedding, eps=1e-6).to(bank.dtype)


def noise_contrast(log_ratio: Float[Tensor, "B K"], rows: int) -> Float[Tensor, "B"]:
    """NCE of log densities, the positive's first: -log h_0 - sum log(1 - h_k), h = e / (e + K / rows + eps)."""
    noise = (log_ratio.shape[1] - 1) / rows
    apart = log_ratio - math.log(noise + EPS)
    positive = functional.softplus(-apart[:, 0])
    negatives = functional.softplus(apart[:, 1:]) + math.log((noise + EPS) / noise)
    return positive + negatives.sum(dim=1)
