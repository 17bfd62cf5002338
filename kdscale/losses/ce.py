r"""Cross-entropy with the labels: the task itself.

Formula:
    \mathcal{L} = -\frac{1}{N} \sum_{n} \sum_{k} y_{nk} \log \mathrm{softmax}(z^s_n)_k
    y_{nk} = (1 - \varepsilon) \, [k = y_n] + \varepsilon / C

Source: label smoothing from Szegedy et al., "Rethinking the Inception Architecture", arXiv:1512.00567, section 7;
mixed labels from Zhang et al., "mixup", arXiv:1710.09412, and Yun et al., "CutMix", arXiv:1905.04899, eq. 1.
Reduction: per sample; its mean over the batch is the usual cross-entropy.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.mixing import by_share
from kdscale.nn.precision import at_least_fp32

__all__ = ["CrossEntropy"]

BIBTEX = """
@inproceedings{szegedy2016rethinking,
  author = {Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and Wojna, Zbigniew},
  title = {{Rethinking the Inception Architecture for Computer Vision}},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2016},
  eprint = {1512.00567},
  archivePrefix = {arXiv}
}
@inproceedings{zhang2018mixup,
  author = {Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David},
  title = {{mixup: Beyond Empirical Risk Minimization}},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2018},
  eprint = {1710.09412},
  archivePrefix = {arXiv}
}
@inproceedings{yun2019cutmix,
  author = {Yun, Sangdoo and Han, Dongyoon and Oh, Seong Joon and Chun, Sanghyuk and Choe, Junsuk and Yoo, Youngjoon},
  title = {{CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features}},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year = {2019},
  eprint = {1905.04899},
  archivePrefix = {arXiv}
}
"""


class CrossEntropy(Loss):
    """Match the labels; of a mixed sample both labels, each by its share."""

    class Config(PluginConfig):
        """Options."""

        label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread evenly over all classes")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"logits", "labels"})
    needs_teacher: ClassVar[bool] = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the cross-entropy of each sample, in nats."""
        smoothing = self.config.label_smoothing
        return by_share(batch, lambda labels: cross_entropy(student.logits, labels, smoothing))


def cross_entropy(logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"], smoothing: float) -> Float[Tensor, "B"]:
    """Compute -sum_k target_k log softmax(logits)_k, where target is (1 - smoothing) onehot + smoothing / C."""
    return functional.cross_entropy(at_least_fp32(logits), labels, reduction="none", label_smoothing=smoothing)
