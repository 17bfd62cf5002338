"""Variances that a network predicts of its own errors: where they are large, errors count less."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LogVariance", "weigh_by_variance"]

LARGEST = 10.0
"""A log-variance is held within ± this: e^10 is far beyond any error of normalised features."""


class LogVariance(nn.Module):
    """A linear layer and BatchNorm, from a pooled feature to log-variances.

    Source: VarianceBranch4PAD of torchdistill, after what the authors of PAD provided.
    """

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inward, outward)
        self.norm = nn.BatchNorm1d(outward)

    def forward(self, feature: Float[Tensor, "B D"]) -> Float[Tensor, "B D2"]:
        """Predict log-variances."""
        values: Tensor = self.norm(self.linear(feature))
        return values.clamp(-LARGEST, LARGEST)


def weigh_by_variance(
    error: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*shape"], eps: float
) -> Float[Tensor, "*shape"]:
    """Compute error / (eps + variance) + log variance: least where the variance is the error itself."""
    return error / (eps + log_variance.exp()) + log_variance
