r"""Knowledge adaptation: the student follows a code of the teacher's map, and how its locations are alike.

Formula:
    \mathcal{L} = \frac{1}{N} \sum_{n} \Big( \lambda_c \left\lVert \frac{s_n}{\lVert s_n \rVert_2} -
        \frac{t_n}{\lVert t_n \rVert_2} \right\rVert_1 + \frac{\lambda_a}{P^2} \lVert A^s_n - A^t_n \rVert_F^2 +
        \frac{\lambda_r}{D} \big( \lVert F^t_n - \mathrm{dec}(t_n) \rVert_2^2 + a \lVert t_n \rVert_1 \big) \Big)
    t_n = \mathrm{enc}(F^t_n), \quad s_n = \mathrm{adapt}(F^s_n), \quad A_{ij} = \text{cosine of the codes at
        positions } i, j \text{ of } P

Source: He, Shen, Tian, Gong, Sun, Yan, "Knowledge adaptation for efficient semantic segmentation", CVPR 2019,
arXiv:1903.04688, eq. 1 to 6; weights as in torchdistill. A translator E, the encoder of an auto-encoder, learns in a
stage before (`distance: none`), from which the student's term takes it by its `init_from`, with `reconstruction: 0`,
which leaves it as it is. `affinity: perchannel` is torchdistill's: each channel's products of locations.
Deviation: both parts of the auto-encoder's loss are divided by the number of the map's values, so that a rate suits
maps of any size. Cells of the map in which no pixel has a label, as in padding, count nowhere.
Reduction: `adapt` is the L1 norm of each sample's difference of codes of L2 norm 1; an affinity is that of each sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from kdscale.api import IGNORED, Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.nn.pairwise import gram, inner_products, unit_rows
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import map_sides, paired_shapes, total
from kdscale.nn.sync_bn import needs_two_values

__all__ = ["KnowledgeAdaptation"]

BIBTEX = """
@inproceedings{he2019knowledge,
  author = {He, Tong and Shen, Chunhua and Tian, Zhi and Gong, Dong and Sun, Changming and Yan, Youliang},
  title = {{Knowledge Adaptation for Efficient Semantic Segmentation}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2019},
  eprint = {1903.04688},
  archivePrefix = {arXiv}
}
"""

Affinity = Literal["location", "perchannel"]


class KnowledgeAdaptation(Loss):
    """Match the teacher's translated map, and its affinities; several taps add up."""

    class Config(PluginConfig):
        """Options, with the defaults of the source."""

        rate: float = Field(0.5, gt=0, description="channels of a code, as a share of the teacher's map")
        distance: Literal["adaptation", "none"] = Field(
            "adaptation", description="none: reconstruction alone, for the translator's own stage"
        )
        adapt: float = Field(50.0, ge=0, description="weight of the difference of codes in this term")
        affinity_weight: float = Field(1.0, ge=0, description="weight of the difference of affinities in this term")
        affinity: Affinity = "location"
        reconstruction: float = Field(1.0, ge=0, description="weight of the translator's own loss in this term")
        sparsity: float = Field(1e-7, ge=0, description="weight of a code's magnitude in the translator's own loss")

        @model_validator(mode="after")
        def _something_is_asked_for(self) -> KnowledgeAdaptation.Config:
            if self.distance == "none" and not self.reconstruction:
                raise ValueError("distance: none leaves the reconstruction, which needs a weight above 0")
            return self

    config: Config
    revision = 2
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features", "labels"})
    dense: ClassVar[bool] = True

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.translators, self.adapters, self.affinity_adapters = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for (own, *_), (theirs, *_) in paired_shapes("adaptation", shapes.student, shapes.teacher):
            code = max(1, round(config.rate * theirs))
            self.translators.append(Translator(theirs, code))
            if config.distance != "none":
                self.adapters.append(
                    nn.Sequential(nn.Conv2d(own, code, 3, padding=1, bias=False), nn.BatchNorm2d(code), nn.ReLU())
                )
                self.affinity_adapters.append(nn.Conv2d(own, code, 3, padding=1))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's weighted parts, added up. Raises: ShapeError."""
        sides = map_sides("adaptation", student, teacher)
        precision = autocast_as(student.features[0])
        return total([value for i, pair in enumerate(sides) for value in self._parts(i, *pair, batch, precision)])

    def _parts(
        self, index: int, own: Tensor, theirs: Tensor, batch: Batch, precision: torch.autocast
    ) -> Iterator[Tensor]:
        """Each sample's differences of codes and affinities, and its auto-encoder's loss, as far as asked for."""
        config, translator = self.config, self.translators[index]
        assert isinstance(translator, Translator)
        with precision, torch.set_grad_enabled(torch.is_grad_enabled() and config.reconstruction > 0):
            code = at_least_fp32(translator.encoder(theirs))
        if config.reconstruction:
            with precision:
                restored = at_least_fp32(translator.decoder(code))
            yield config.reconstruction * reconstruction(theirs, restored, code, config.sparsity)
        if config.distance == "none":
            return
        code = code.detach()  # the translator learns from its own loss alone
        needs_two_values("adaptation", own, self.adapters[index])
        seen = _seen(batch, code)
        with precision:
            answers = [at_least_fp32(part[index](own)) for part in (self.adapters, self.affinity_adapters)]
        adapted, compared = (_resized(answer, code) for answer in answers)
        yield config.adapt * adaptation(adapted * seen, code * seen)
        kind = location_affinity if config.affinity == "location" else channel_affinity
        yield config.affinity_weight * kind(compared * seen, code * seen, seen.flatten(1).sum(dim=1).clamp(min=1))


class Translator(nn.Module):
    """An auto-encoder of the teacher's map (B, C, H, W) whose code (B, M, H, W) is what the student follows."""

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        wide = max(channels, code)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, code, 3, padding=1), nn.ReLU()
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(code, wide, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(wide, channels, 3, padding=1)
        )


def reconstruction(
    x: Float[Tensor, "B C H W"], restored: Float[Tensor, "B C H W"], code: Float[Tensor, "B M H W"], sparsity: float
) -> Float[Tensor, "B"]:
    """Each sample's (||x - D(E(x))||^2 + a ||E(x)||_1), divided by the number of values of x."""
    errors = (x - restored).square().flatten(1).sum(dim=1) + sparsity * code.abs().flatten(1).sum(dim=1)
    return errors / x[0].numel()


def adaptation(student: Float[Tensor, "B M H W"], teacher: Float[Tensor, "B M H W"]) -> Float[Tensor, "B"]:
    """Each sample's L1 norm of the difference of codes, each scaled to an L2 norm of 1."""
    return (unit_rows(student.flatten(1)) - unit_rows(teacher.flatten(1))).abs().sum(dim=1)


def location_affinity(
    student: Float[Tensor, "B M H W"], teacher: Float[Tensor, "B M H W"], locations: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Each sample's ||A_s - A_t||_F^2, where A holds the cosines of all pairs of locations, divided by their number.

    Of matrices N (M, HW) of unit columns, ||N_s^T N_s - N_t^T N_t||_F^2 is worked out from products of channels (M, M)
    where those of locations (HW, HW), as the formula has them, are the larger ones.
    """
    s, t = (functional.normalize(f.flatten(2), dim=1, eps=1e-6) for f in (student, teacher))
    if s.shape[2] <= s.shape[1]:
        return (gram(s.mT) - gram(t.mT)).square().sum((1, 2)) / locations.square()
    own, theirs, across = (products.square().sum((1, 2)) for products in (gram(s), gram(t), inner_products(s, t)))
    return (own + theirs - 2 * across).clamp(min=0) / locations.square()


def channel_affinity(
    student: Float[Tensor, "B M H W"], teacher: Float[Tensor, "B M H W"], locations: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Each sample's Frobenius norm, over all channels, of the difference of n n^T, with n of norm 1 over space."""
    s, t = (functional.normalize(f.flatten(2), dim=2, eps=1e-6) for f in (student, teacher))
    own, theirs = (n.square().sum(dim=2).square() for n in (s, t))
    squares = (own + theirs - 2 * (s * t).sum(dim=2).square()).sum(dim=1)
    return squares.clamp(min=1e-12).sqrt() / locations


def _resized(feature: Tensor, code: Tensor) -> Tensor:
    """A map brought to the size of the code, bilinearly."""
    if feature.shape[2:] == code.shape[2:]:
        return feature
    return functional.interpolate(feature, code.shape[2:], mode="bilinear", align_corners=False)


def _seen(batch: Batch, code: Tensor) -> Float[Tensor, "B 1 H W"]:
    """1 for a cell of the map in which a pixel has a label; everywhere where labels are of images."""
    if batch.labels.dim() == 1:
        return torch.ones_like(code[:, :1])
    labelled = (batch.labels != IGNORED).to(code.dtype)[:, None]
    return functional.adaptive_max_pool2d(labelled, code.shape[2:])
