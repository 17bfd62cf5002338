r"""Contrastive representation distillation: tell the teacher's view of the same sample from its views of others.

Formula:
    \mathcal{L} = \frac{1}{N} \sum_{n} \big( \ell(g^s(f^s_n), M^t) + \ell(g^t(f^t_n), M^s) \big)
    \ell(a, M) = -\log \frac{e_0}{e_0 + m + \varepsilon} - \sum_{k=1}^{K} \log \frac{m}{e_k + m + \varepsilon}
    e_k = \frac{1}{Z} \exp(a \cdot M_{i_k} / \tau), \quad i_0 = \text{the sample's own row}, \quad m =
        \frac{K}{\text{rows of the train set}}

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", arXiv:1910.10699; memory banks,
the constant Z and the update as in the authors' code.
Deviation: negatives are a function of (step, row), drawn on the device, with replacement. A row of the sample's own
class is drawn again, up to twice, as far as labels are known: a bank learns them as rows come by, in the first epoch.
Reduction: per sample, both directions added up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

BIBTEX = """
@inproceedings{tian2020contrastive,
  author = {Tian, Yonglong and Krishnan, Dilip and Isola, Phillip},
  title = {{Contrastive Representation Distillation}},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2020},
  eprint = {1910.10699},
  archivePrefix = {arXiv}
}
"""


class Contrastive(Loss):
    """Bring the student's embedding of a sample near the teacher's, away from those of other rows."""

    class Config(PluginConfig):
        """Options."""

        dimensions: int = Field(128, ge=1, description="of the embeddings")
        negatives: int = Field(16384, ge=1)
        temperature: float = Field(0.07, gt=0)
        momentum: float = Field(0.5, ge=0, lt=1, description="share of a bank's row that stays")
        eps: float = Field(1e-7, ge=0, description="added to the noise's density")

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
        self._z_seen = -1  # the version of log_z that was found to be set
        self.register_buffer("log_z", torch.full((2,), math.nan, dtype=torch.float64))  # nan: before the first batch

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return both directions' loss of each sample, of the last tap. Raises: ShapeError."""
        own, theirs = (pooled(side) for side in map_sides("crd", student, teacher)[-1])
        others = draw_negatives(batch, self.labels, self.config.negatives)
        with torch.autocast(own.device.type, enabled=False):
            values = self.contrast(own, theirs, torch.cat([batch.rows[:, None], others], dim=1))
        if self.training:
            known = ranks.gather_with_gradient(torch.stack([batch.rows, batch.labels]).T)
            self.labels[known[:, 0]] = known[:, 1]
        return values

    def contrast(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D2"], rows: Int64[Tensor, "B K"]
    ) -> Float[Tensor, "B"]:
        """Contrast with the banks at `rows`, each sample's own first; in training, update the banks behind that."""
        embedded = [functional.normalize(self.embed_s(student), eps=1e-6)]
        embedded.append(functional.normalize(self.embed_t(teacher), eps=1e-6))
        banks = [self.memory_t, self.memory_s]
        scores = [self._scores(*pair, rows) for pair in zip(embedded, banks, strict=True)]
        if not self._knows_z():
            self._set_z(scores)
        ratios = [score - log_z.to(score.dtype) for score, log_z in zip(scores, self.log_z, strict=True)]
        values = [noise_contrast(ratio, len(self.labels), self.config.eps) for ratio in ratios]
        if self.training:
            self._update(torch.cat(embedded, dim=1).detach(), rows[:, 0])
        return values[0] + values[1]

    def _scores(self, anchor: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
        return (anchor @ bank.clone().mT).gather(1, rows) / self.config.temperature

    def _knows_z(self) -> bool:
        """Whether Z is there, the same on all ranks; asks the device only after something has written to it."""
        if self._z_seen != self.log_z._version and not self.log_z.isnan().any():
            self._z_seen = self.log_z._version
        return self._z_seen == self.log_z._version

    @torch.no_grad()
    def _set_z(self, scores: Sequence[Tensor]) -> None:
        """The mean over the global batch, of all rows in number."""
        means = torch.stack([s.double().exp().mean() for s in scores])
        self.log_z.copy_(ranks.mean_(means).log() + math.log(len(self.labels)))

    @torch.no_grad()
    def _update(self, embedded: Tensor, rows: Tensor) -> None:
        """All ranks' rows, so that every rank's banks stay the same."""
        rows, embedded = ranks.gather_with_gradient(rows), ranks.gather_with_gradient(embedded)
        kept = self.config.momentum
        for bank, new in zip((self.memory_s, self.memory_t), embedded.chunk(2, dim=1), strict=True):
            bank[rows] = functional.normalize(kept * bank[rows] + (1 - kept) * new, eps=1e-6).to(bank.dtype)


def noise_contrast(log_ratio: Float[Tensor, "B K"], rows: int, eps: float = 1e-7) -> Float[Tensor, "B"]:
    """NCE of log densities, the positive's first: -log h_0 - sum log(1 - h_k), h = e / (e + K / rows + eps)."""
    noise = (log_ratio.shape[1] - 1) / rows
    apart = log_ratio - math.log(noise + eps)
    # torch's softplus leaves the exponential out above 20, 2e-9 of which add up over thousands of negatives
    positive = -functional.logsigmoid(apart[:, 0])
    negatives = -functional.logsigmoid(-apart[:, 1:]) + math.log((noise + eps) / noise)
    return positive + negatives.sum(dim=1)
