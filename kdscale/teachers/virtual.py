"""A teacher without a network: as sure of every label as it is told to be, whatever the image.

Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
arXiv:1909.11723, section 4.2 (Tf-KD_reg), equations 9 and 10. The authors' code softens the probabilities themselves,
softmax(p / temperature), as if they were logits, hence the default; with their logarithms it is p^(1/temperature).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kdscale.api import Batch, Outputs
from kdscale.config.schema import VirtualConfig

__all__ = ["VirtualTeacher"]

BIBTEX = """
@inproceedings{yuan2020revisiting,
  author = {Yuan, Li and Tay, Francis E. H. and Li, Guilin and Wang, Tao and Feng, Jiashi},
  title = {{Revisiting Knowledge Distillation via Label Smoothing Regularization}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2020},
  eprint = {1909.11723},
  archivePrefix = {arXiv}
}
"""


class VirtualTeacher:
    """Satisfies `api.Teacher`: answers from the labels, without an operation on the images.

    Of a mixed sample it is sure of both labels by their shares.

    Args:
        name: what the stage calls it.
        classes: how many there are.
        config: how sure it is, and what its logits are.
    """

    def __init__(self, name: str, classes: int, config: VirtualConfig) -> None:
        self.name = name
        self.provides = frozenset({"logits"})
        self._classes, self._config = classes, config

    def __call__(self, batch: Batch) -> Outputs:
        """Answer in fp32, on the labels' device."""
        probabilities = self._probabilities(batch.labels)
        if batch.labels_b is not None and batch.lam is not None:
            share = batch.lam[:, None]
            probabilities = share * probabilities + (1 - share) * self._probabilities(batch.labels_b)
        return Outputs(probabilities.log() if self._config.logits == "logarithms" else probabilities)

    def fingerprint(self) -> str:
        """What its answers depend on besides the labels."""
        return f"virtual:{self._classes}:{self._config.correct!r}:{self._config.logits}"

    def _probabilities(self, labels: Int64[Tensor, "B"]) -> Float[Tensor, "B C"]:
        others = (1 - self._config.correct) / max(1, self._classes - 1)
        answers = torch.full((len(labels), self._classes), others, device=labels.device)
        return answers.scatter_(1, labels[:, None], self._config.correct)
