"""Several teachers as one: the weighted mean of their logits, or of their softened probabilities.

Source: logits: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, arXiv:1312.6184, section 2.2;
probabilities: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, sections 2, 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kdscale.api import Outputs, Taught
from kdscale.config.schema import MeanOf
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32

__all__ = ["Ensemble"]

BIBTEX = """
@inproceedings{ba2014do,
  author = {Ba, Jimmy and Caruana, Rich},
  title = {{Do Deep Nets Really Need to be Deep?}},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2014},
  eprint = {1312.6184},
  archivePrefix = {arXiv}
}
@misc{hinton2015distilling,
  author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  title = {{Distilling the Knowledge in a Neural Network}},
  year = {2015},
  eprint = {1503.02531},
  archivePrefix = {arXiv}
}
"""


@dataclass(frozen=True, kw_only=True)
class EnsembleOutputs(Outputs):
    """The answer of an ensemble, which still knows its members' answers.

    `logits` are the mean at temperature 1. A loss at another temperature sees `at(...)`: there each member completes
    its answer first, where it comes from a record that holds a part of the logits, and the mean is taken afterwards.
    """

    members: Sequence[Outputs]
    shares: Sequence[float]
    of: MeanOf

    def at(self, temperature: float, student: Float[Tensor, "B C"], own: float = 1.0) -> Outputs:
        """Average what the members answer at one temperature. Raises: CacheMiss where records do not hold it."""
        answers = [member.at(temperature, student, own).logits for member in self.members]
        return Outputs(_mean(answers, self.shares, self.of, temperature))


class Ensemble:
    """Answers from what its members have answered: it is asked after them, and computes no network itself.

    Args:
        name: what the stage calls it.
        shares: of each member in the mean, by name; they add up to 1.
        of: what is averaged. `probabilities`: its softmax at a term's temperature is the mean of the members' there.
    """

    def __init__(self, name: str, shares: Mapping[str, float], of: MeanOf) -> None:
        self.name, self.shares, self.of = name, shares, of

    def __call__(self, taught: Taught) -> Outputs:
        """Average the members' answers to one batch. Raises: ShapeError where they tell other classes apart."""
        members = [taught[name] for name in self.shares]
        if len({member.logits.shape[1] for member in members}) > 1:
            counts = ", ".join(f"{name} {taught[name].logits.shape[1]}" for name in self.shares)
            raise ShapeError(f"teachers.{self.name}: its members tell different numbers of classes apart ({counts})")
        shares = list(self.shares.values())
        logits = _mean([member.logits for member in members], shares, self.of, 1.0)
        return EnsembleOutputs(logits, members=members, shares=shares, of=self.of)


def _mean(
    answers: Sequence[Float[Tensor, "B C"]], shares: Sequence[float], of: MeanOf, temperature: float
) -> Float[Tensor, "B C"]:
    """Logits of the ensemble, in fp32 at least; probabilities are averaged as logarithms, where none vanishes."""
    with torch.no_grad():
        exact = [at_least_fp32(answer) for answer in answers]
        if of == "logits":
            return torch.stack([share * logits for share, logits in zip(shares, exact, strict=True)]).sum(0)
        parts = [
            math.log(share) + (logits / temperature).log_softmax(1) for share, logits in zip(shares, exact, strict=True)
        ]
        return temperature * torch.stack(parts).logsumexp(0)
