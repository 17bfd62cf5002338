"""Figures of a network on held-out rows: accuracy, calibration, fidelity to its teachers, latency.

Every figure is a sum over samples that is added up over ranks, so it does not depend on how many there
are; each sample is seen exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from kdscale import ranks
from kdscale.api import Batch, Outputs, Teacher
from kdscale.nn.modes import evaluating
from kdscale.nn.precision import autocast_of
from kdscale.teachers.ensemble import Ensemble
from kdscale.train.asking import ask
from kdscale.train.pixels import PixelFigures, PixelSums

__all__ = ["Evaluator", "Figures", "latency_ms"]

ECE_BINS = 15
"""Equal-width confidence bins. Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""


@dataclass(frozen=True)
class Figures:
    """Results over one split; accuracies and agreements in [0, 1], losses in nats."""

    rated_by: ClassVar[str] = "top1"
    samples: int
    top1: float
    top5: float
    nll: float
    ece: float
    per_class: list[float]
    agreement: dict[str, float] = field(default_factory=dict)
    """Share of samples on which student and teacher name the same class."""
    kl: dict[str, float] = field(default_factory=dict)
    """Mean KL(teacher ‖ student) at temperature 1."""
    teacher_top1: dict[str, float] = field(default_factory=dict)
    """What each teacher gets right itself; of an ensemble it is known from nowhere else."""
    top1_of: dict[str, float] = field(default_factory=dict)
    """Accuracy of what the network's answer holds beside its logits, by name."""

    @property
    def rating(self) -> float:
        """What the best snapshot is chosen by."""
        return self.top1

    def results(self) -> dict[str, Any]:
        """What a stage's results hold of them."""
        names = ("top1", "top5", "nll", "ece", "agreement", "kl", "teacher_top1")
        return {name: getattr(self, name) for name in names}

    def metrics(self, split: str) -> dict[str, float]:
        """Flat metrics under the split's name; fidelity is that to the first teacher."""
        flat = {"top1": self.top1, "top5": self.top5, "nll": self.nll, "ece": self.ece}
        for name, values in (("agreement", self.agreement), ("kl", self.kl)):
            if values:
                flat[name] = next(iter(values.values()))
        flat |= {f"top1_of/{name}": top1 for name, top1 in self.top1_of.items()}
        return {f"{split}/{name}": value for name, value in flat.items()}


class Evaluator:
    """Evaluates one network again and again on the same rows.

    Held-out views never change, so each teacher answers them once; its answers stay in host memory.

    Args:
        loader: yields this rank's share of the split, each sample once over all ranks.
        teachers: whom agreement is measured with; the members of an ensemble are among them.
        classes: number of classes.
        device: where the network is.
        samples: rows of the split, over all ranks.
        per_pixel: whether labels and answers are of pixels; teachers are not asked about these.
    """

    def __init__(
        self, loader: Iterable[Batch], teachers: Sequence[Teacher | Ensemble], classes: int, device: torch.device,
        samples: int, *, per_pixel: bool = False,
    ) -> None:  # fmt: skip
        self._loader = loader
        self._teachers: Sequence[Teacher | Ensemble] = () if per_pixel else teachers
        self._classes = classes
        self._device = device
        self._per_pixel = per_pixel
        self._answers: list[dict[str, Tensor]] = []
        self._samples = samples

    def __call__(
        self, network: nn.Module, *, precision: str = "fp32", interrupted: Callable[[int], bool] | None = None
    ) -> Figures | PixelFigures | None:
        """Evaluate; called by all ranks.

        Args:
            network: answers a batch's images with Outputs; in eval mode for as long, each module back in its own after.
                `beside`, if it has that, names what its answers hold beside their logits, alike on all ranks.
            precision: bf16 and fp16 run under autocast.
            interrupted: polled after each batch that every rank has; True ends the evaluation.

        Returns:
            The figures over all ranks, or None when interrupted.
        """
        sums = self._sums(getattr(network, "beside", ()))
        with torch.no_grad(), evaluating(network):
            polls = 0
            for index, batch in enumerate(self._loader):
                polls = polls or self._polls(len(batch.rows))
                moved = batch.to(self._device)
                with autocast_of(precision, self._device):
                    answered: Outputs = network(moved.images)
                sums.add(answered, moved.labels, self._taught(index, moved))
                if interrupted is not None and index < polls and interrupted(index):
                    return None
        return sums.figures()

    def _sums(self, beside: Sequence[str]) -> _Sums | PixelSums:
        if self._per_pixel:
            return PixelSums(self._classes, self._device)
        return _Sums(self._classes, [t.name for t in self._teachers], self._device, beside)

    def _polls(self, first_batch: int) -> int:
        """Batches that every rank has: shares differ by one row, so only that many may end in a collective."""
        return -(-(self._samples // ranks.world()) // first_batch)

    def _taught(self, index: int, batch: Batch) -> dict[str, Tensor]:
        if index == len(self._answers):
            answers = ask(self._teachers, batch)
            # kept for later epochs: with its graph, which at_grad's teacher has, a batch would keep all of its maps
            self._answers.append({name: answer.logits.detach().float().cpu() for name, answer in answers.items()})
        return {name: logits.to(self._device) for name, logits in self._answers[index].items()}


class _Sums:
    """Sums over samples, on the device, in float64 so that their order hardly matters."""

    def __init__(self, classes: int, teachers: Sequence[str], device: torch.device, beside: Sequence[str]) -> None:
        self._teachers, self._beside = list(teachers), list(beside)
        self._classes = classes
        self._scalars = torch.zeros(4 + 3 * len(self._teachers), dtype=torch.float64, device=device)
        self._bins = torch.zeros(3, ECE_BINS, dtype=torch.float64, device=device)
        self._by_class = torch.zeros(2, classes, dtype=torch.float64, device=device)
        self._right_beside = torch.zeros(len(self._beside), dtype=torch.float64, device=device)

    def add(self, answered: Outputs, labels: Int64[Tensor, "B"], taught: Mapping[str, Float[Tensor, "B C"]]) -> None:
        logits = answered.logits.float()
        log_q = logits.log_softmax(dim=1)
        confidence, guess = log_q.exp().max(dim=1)
        right = (guess == labels).double()
        within5 = (logits.topk(min(5, self._classes), dim=1).indices == labels[:, None]).any(dim=1)
        nll = F.nll_loss(log_q, labels, reduction="sum")
        scalars = [torch.tensor(float(len(labels)), device=logits.device), right.sum(), within5.sum(), nll]
        for name in self._teachers:
            log_p = taught[name].log_softmax(dim=1)
            named = log_p.argmax(dim=1)
            scalars += [(named == guess).sum(), (log_p.exp() * (log_p - log_q)).sum(), (named == labels).sum()]
        self._scalars += torch.stack([value.double() for value in scalars])
        bins = (confidence * ECE_BINS).long().clamp(0, ECE_BINS - 1)
        for row, values in enumerate((torch.ones_like(right), confidence.double(), right)):
            self._bins[row].index_add_(0, bins, values)
        self._by_class[0].index_add_(0, labels, torch.ones_like(right))
        self._by_class[1].index_add_(0, labels, right)
        for index, name in enumerate(self._beside):
            self._right_beside[index] += (answered.beside[name].argmax(dim=1) == labels).sum()

    def figures(self) -> Figures:
        for tensor in (self._scalars, self._bins, self._by_class, *([self._right_beside] if self._beside else [])):
            ranks.sum_(tensor)
        count, right, within5, nll, *taught = self._scalars.tolist()
        count = max(1.0, count)
        agreement, kl, theirs = (
            {name: value / count for name, value in zip(self._teachers, taught[measure::3], strict=True)}
            for measure in range(3)
        )
        gap = (self._bins[1] - self._bins[2]).abs().sum().item() / count
        totals, hits = self._by_class.tolist()
        return Figures(
            samples=int(count),
            top1=right / count,
            top5=within5 / count,
            nll=nll / count,
            ece=gap,
            per_class=[hit / total if total else float("nan") for hit, total in zip(hits, totals, strict=True)],
            agreement=agreement,
            kl=kl,
            teacher_top1=theirs,
            top1_of={name: r / count for name, r in zip(self._beside, self._right_beside.tolist(), strict=True)},
        )


@torch.no_grad()
def latency_ms(network: nn.Module, images: Tensor, runs: int = 50) -> tuple[float, float]:
    """Median and 95th percentile of answering one image in fp32, in milliseconds, as the process runs now."""
    device = images.device
    times: list[float] = []
    with evaluating(network):
        for _ in range(runs + 10):
            begun = time.perf_counter()
            network(images[:1])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append((time.perf_counter() - begun) * 1e3)
    ordered = sorted(times[10:])
    return ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
