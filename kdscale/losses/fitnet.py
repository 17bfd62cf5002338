r"""Hints: a regressor on the student's features must reproduce the teacher's, layer by layer.

Formula:
    \mathcal{L} = \sum_{l} \frac{1}{N D_l} \sum_{n} \lVert r_l(F^s_{l,n}) - F^t_{l,n} \rVert_2^2

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, eq. 3; regressor and mean of RepDistiller
(`regressor: conv_bn`), one matrix over channels as in the code of RKD (`conv1x1`), or nothing (`none`).
Deviation: the mean over the feature's elements by default, as the CIFAR-100 benchmark has it (its weight: 100); the
paper's half sum is `reduction: paper`. The regressor ends in a ReLU only where the teacher's taps do, as otherwise no
negative target could be met. The paper trains the student up to the hint first, which is a stage of its own.
Reduction: mean over elements and samples, sum over layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import MapShape, map_sides, paired_shapes, total
from kdscale.nn.squares import mean_squares, sum_squares
from kdscale.nn.sync_bn import needs_two_values

__all__ = ["Hints"]

BIBTEX = """
@inproceedings{romero2015fitnets,
  author = {Romero, Adriana and Ballas, Nicolas and Ebrahimi Kahou, Samira and Chassang, Antoine and Gatta, Carlo
    and Bengio, Yoshua},
  title = {{FitNets: Hints for Thin Deep Nets}},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2015},
  eprint = {1412.6550},
  archivePrefix = {arXiv}
}
"""


class Hints(Loss):
    """Match the teacher's features through a regressor that trains with the student."""

    class Config(PluginConfig):
        """Options."""

        regressor: Literal["conv_bn", "conv1x1", "none"] = Field(
            "conv_bn", description="between the features; none: they are compared as they are, as shapes that agree"
        )
        relu: bool | None = Field(None, description="whether conv_bn ends in a ReLU; null: where the teacher's taps do")
        reduction: Literal["mean", "paper"] = Field("mean", description="over elements: the mean, or half the sum")

    config: Config
    revision = 2
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        relu = shapes.post_relu if config.relu is None else config.relu
        pairs = paired_shapes("fitnet", shapes.student, shapes.teacher)
        makers: dict[str, Callable[[MapShape, MapShape], nn.Module]] = {
            "conv_bn": lambda s, t: _Regressor(s, t, relu=relu), "conv1x1": _matrix, "none": _as_it_is,
        }  # fmt: skip
        self.regressors = nn.ModuleList(makers[config.regressor](s, t) for s, t in pairs)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's squared distances, summed over layers. Raises: ShapeError."""
        sides = map_sides("fitnet", student, teacher)
        with autocast_as(student.features[0]):
            regressed = [
                at_least_fp32(regressor(own)) for regressor, (own, _) in zip(self.regressors, sides, strict=True)
            ]
        return total(
            [
                hint_squares(own, theirs, self.config.reduction)
                for own, (_, theirs) in zip(regressed, sides, strict=True)
            ]
        )


def hint_squares(
    regressed: Float[Tensor, "B C H W"], hint: Float[Tensor, "B C H W"], reduction: Literal["mean", "paper"]
) -> Float[Tensor, "B"]:
    """Compute mean (regressed - hint)² of each sample, or half the sum."""
    return mean_squares(regressed, hint) if reduction == "mean" else sum_squares(regressed, hint) / 2


class _Regressor(nn.Module):
    """From the student's map to the teacher's: a convolution that bridges the sizes, BatchNorm, and maybe a ReLU."""

    def __init__(self, student: MapShape, teacher: MapShape, *, relu: bool) -> None:
        super().__init__()
        self.conv = _bridge(student, teacher)
        self.bn = nn.BatchNorm2d(teacher[0])
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        mapped: Tensor = self.conv(features)
        needs_two_values("fitnet", mapped, self.bn)
        regressed: Tensor = self.relu(self.bn(mapped))
        return regressed


def _bridge(student: MapShape, teacher: MapShape) -> nn.Module:
    (inward, *ours), (outward, *theirs) = student, teacher
    if ours == theirs:
        return nn.Conv2d(inward, outward, 1)
    if ours == [2 * side for side in theirs]:
        return nn.Conv2d(inward, outward, 3, stride=2, padding=1)
    if [2 * side for side in ours] == theirs:
        return nn.ConvTranspose2d(inward, outward, 4, stride=2, padding=1)
    if all(own >= side for own, side in zip(ours, theirs, strict=True)):
        kernel = (1 + ours[0] - theirs[0], 1 + ours[1] - theirs[1])
        return nn.Conv2d(inward, outward, kernel)
    raise ShapeError(
        f"fitnet: no regressor leads from the student's {ours[0]}x{ours[1]} to the teacher's {theirs[0]}x{theirs[1]}; "
        "tap a layer of the student that is as large, half as large, or larger"
    )


def _as_it_is(student: MapShape, teacher: MapShape) -> nn.Module:
    if student != teacher:
        raise ShapeError(
            f"fitnet: regressor none compares features of one shape, but the student's is {list(student)} and the "
            f"teacher's {list(teacher)}; tap layers of one shape, or use regressor: conv_bn"
        )
    return nn.Identity()


def _matrix(student: MapShape, teacher: MapShape) -> nn.Module:
    if student[1:] != teacher[1:]:
        raise ShapeError(
            f"fitnet: conv1x1 keeps a map's size, but the student's is {student[1]}x{student[2]} and the teacher's "
            f"{teacher[1]}x{teacher[2]}; tap layers of one size, or use regressor: conv_bn"
        )
    conv = nn.Conv2d(student[0], teacher[0], 1, bias=False)
    nn.init.uniform_(conv.weight, -0.005, 0.005)
    return conv
