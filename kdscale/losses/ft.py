r"""Factor transfer: both networks' last maps are boiled down to factors, and the student's follows the teacher's.

Formula:
    \mathcal{L} = \frac{1}{N} \sum_{n} \Big( \frac{1}{M} \left\lVert \frac{s_n}{\lVert s_n \rVert_2} -
        \frac{t_n}{\lVert t_n \rVert_2} \right\rVert_1 + \frac{\lambda}{D} \lVert F^t_n - \mathrm{dec}(t_n)
        \rVert_2^2 \Big)
    s_n = \mathrm{translator}(F^s_n), \quad t_n = \mathrm{enc}(F^t_n), \quad M = \text{values of a factor}

Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv:1802.04977,
form and layers as in the authors' code. `distance: at_like` is RepDistiller's: the factors' attention maps.
Stages: the paraphraser learns in a stage before (`distance: none`), from which the student's term takes it by its
`init_from`, with `reconstruction: 0`, which leaves it as it is. Deviation: without such a stage it learns beside the
student, whose target moves at first. It sees the reconstruction alone (a mean of squares, the authors' code of
magnitudes), and the factor that it gives the student is detached: neither disturbs the other.
Reduction: `l1` is the mean over all elements of a factor, `l1_sum` and `l2` the norm of each sample's difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.nn.pairwise import unit_rows
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import map_sides, paired_shapes, pooled_alike, total
from kdscale.nn.squares import mean_squares
from kdscale.nn.sync_bn import needs_two_values

__all__ = ["FactorTransfer"]

BIBTEX = """
@inproceedings{kim2018paraphrasing,
  author = {Kim, Jangho and Park, SeongUk and Kwak, Nojun},
  title = {{Paraphrasing Complex Network: Network Compression via Factor Transfer}},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2018},
  eprint = {1802.04977},
  archivePrefix = {arXiv}
}
"""

Distance = Literal["l1", "l1_sum", "l2", "at_like", "none"]


class FactorTransfer(Loss):
    """Match the teacher's normalised factors; several taps add up."""

    class Config(PluginConfig):
        """Options."""

        rate: float = Field(0.5, gt=0, description="channels of a factor, as a share of the teacher's map")
        distance: Distance = Field("l1", description="none: reconstruction alone, for the paraphraser's own stage")
        reconstruction: float = Field(0.002, ge=0, description="weight of the paraphraser's own loss in this term")
        reconstruct: Literal["mse", "l1"] = "mse"
        translator_bn: bool = Field(False, description="BatchNorm in the translator, as RepDistiller has it")

        @model_validator(mode="after")
        def _something_is_asked_for(self) -> FactorTransfer.Config:
            if self.distance == "none" and not self.reconstruction:
                raise ValueError("distance: none leaves the reconstruction, which needs a weight above 0")
            return self

    config: Config
    revision = 2
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.paraphrasers, self.translators = nn.ModuleList(), nn.ModuleList()
        for (own, *_), (theirs, *_) in paired_shapes("ft", shapes.student, shapes.teacher):
            factor = max(1, round(config.rate * theirs))
            self.paraphrasers.append(Paraphraser(theirs, factor))
            if config.distance != "none":
                widths = (own, own, factor, factor)
                self.translators.append(_layers(nn.Conv2d, widths, batch_norm=config.translator_bn))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's distance plus its weighted error of reconstruction. Raises: ShapeError."""
        sides = map_sides("ft", student, teacher)
        precision = autocast_as(student.features[0])
        return total([value for index, pair in enumerate(sides) for value in self._parts(index, *pair, precision)])

    def _parts(self, index: int, own: Tensor, theirs: Tensor, precision: torch.autocast) -> Iterator[Tensor]:
        """Each sample's distance of factors, and its error of reconstruction, as far as they are asked for."""
        with precision:
            factor, restored = self._paraphrased(index, theirs)
        if self.config.distance != "none":
            needs_two_values("ft", own, self.translators[index])
            with precision:
                translated = at_least_fp32(self.translators[index](own))
            yield factor_distance(translated, factor, self.config.distance)
        if restored is not None:
            mse = self.config.reconstruct == "mse"
            error = mean_squares(restored, theirs) if mse else (restored - theirs).abs().flatten(1).mean(dim=1)
            yield self.config.reconstruction * error

    def _paraphrased(self, index: int, theirs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The factor, and where the paraphraser learns what it makes of it: half of the work, with its gradient."""
        paraphraser = self.paraphrasers[index]
        assert isinstance(paraphraser, Paraphraser)
        if self.config.reconstruction:
            factor, restored = paraphraser(theirs)
            return at_least_fp32(factor.detach()), at_least_fp32(restored)
        with torch.no_grad():
            return at_least_fp32(paraphraser.encoder(theirs)), None


class Paraphraser(nn.Module):
    """An auto-encoder of the teacher's map (B, C, H, W): gives its code (B, M, H, W), the factor, and its answer."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.encoder = _layers(nn.Conv2d, (channels, channels, factor, factor))
        self.decoder = _layers(nn.ConvTranspose2d, (factor, factor, channels, channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.encoder(x)
        return factor, self.decoder(factor)


def _layers(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d],
    widths: Sequence[int],
    *,
    batch_norm: bool = False,
) -> nn.Sequential:
    """3x3 layers, LeakyReLU(0.1) behind every one, the last too."""
    layers: list[nn.Module] = []
    for inward, outward in pairwise(widths):
        norm = [nn.BatchNorm2d(outward)] if batch_norm else []
        layers.append(nn.Sequential(kind(inward, outward, 3, padding=1), *norm, nn.LeakyReLU(0.1)))
    return nn.Sequential(*layers)


def factor_distance(
    student: Float[Tensor, "B M H W"], teacher: Float[Tensor, "B M H2 W2"], distance: Distance
) -> Float[Tensor, "B"]:
    """Compare each sample's factors, scaled to norm 1; the larger map is averaged down to the smaller."""
    s, t = (_unit(factor, distance == "at_like") for factor in pooled_alike(student, teacher))
    if distance == "l2":
        length: Tensor = torch.linalg.vector_norm(s - t, dim=1)
        return length
    gap = (s - t).abs()
    return gap.sum(dim=1) if distance == "l1_sum" else gap.mean(dim=1)


def _unit(factor: Tensor, attention: bool) -> Tensor:  # noqa: FBT001
    return unit_rows((factor.square().mean(dim=1) if attention else factor).flatten(1))
