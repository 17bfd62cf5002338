"""Networks from elsewhere that number the classes differently: mapping them, and recognising them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from kdscale.config.schema import StudentConfig
from kdscale.errors import ConfigError

__all__ = ["ClassOrder", "class_map", "permuted_classes"]


class ClassOrder(NamedTuple):
    """What a network's answers say about its numbering of the classes; accuracies in [0, 1]."""

    top1: float
    relabelled_top1: float
    """Under the best one-to-one relabelling of these very samples: never below top1, and optimistic."""
    held_out_top1: float
    """Under relabellings fitted on one half of the samples and scored on the other: chance for a bad network."""

    @property
    def permuted(self) -> bool:
        """Whether the network looks good but numbered in another order."""
        return self.held_out_top1 > 2 * self.top1 + 0.05

    def advice(self, where: str) -> str:
        """What to tell the user; empty for a network whose order is right. `where`: key path of the network."""
        if not self.permuted:
            return ""
        return (
            f"top-1 is {self.top1:.3f}. It looks like a permuted class order: under the best one-to-one relabelling "
            f"it would be {self.relabelled_top1:.3f} -> {where}.class_names: FILE (one name a line), or class_map: FILE"
        )


def permuted_classes(logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"]) -> ClassOrder:
    """Compare a network's top-1 with that under the best one-to-one relabelling of its classes.

    With few samples a class, the best relabelling flatters any network (noise included): so it is also
    fitted on every second sample and scored on the others, both ways round.
    """
    classes = int(logits.shape[1])
    answers, truth = logits.argmax(dim=1).cpu().numpy(), labels.cpu().numpy()
    everything = _best_relabelling(answers, truth, classes)
    halves = [slice(0, None, 2), slice(1, None, 2)]
    right = 0
    for fitted, scored in (halves, halves[::-1]):
        relabelling = _best_relabelling(answers[fitted], truth[fitted], classes)
        right += int((relabelling[answers[scored]] == truth[scored]).sum())
    count = len(truth)
    relabelled = float((everything[answers] == truth).sum()) / count
    return ClassOrder(float((answers == truth).sum()) / count, relabelled, right / count)


def class_map(student: StudentConfig, names: Sequence[str], classes: int) -> tuple[list[int] | None, int]:
    """Where each class of the data lies among the network's logits, and how many logits there are.

    Args:
        student: may hold `class_names` (the network's, in its order) or `class_map` (indices), or a file of either.
        names: the data's class names, in order.
        classes: of the data.

    Returns:
        The map (None when the orders agree), and the number of logits.

    Raises:
        ConfigError: the two do not cover the data's classes.
    """
    if student.class_names is not None:
        return _from_names(_lines(student.class_names), student.classes, names)
    if student.class_map is not None:
        return _from_indices(_integers(student.class_map), student.classes, classes)
    if student.classes not in (None, classes):
        raise ConfigError(
            f"student.classes is {student.classes} but the data has {classes}: "
            "say which logits are meant by class_names (the network's own, in its order) or class_map (indices)"
        )
    return None, classes


def _from_names(own: Sequence[str], declared: int | None, names: Sequence[str]) -> tuple[list[int] | None, int]:
    if declared not in (None, len(own)):
        raise ConfigError(f"student.class_names has {len(own)} names, but student.classes is {declared}")
    places = {name: index for index, name in enumerate(own)}
    if len(places) < len(own):
        raise ConfigError(f"student.class_names names {len(own) - len(places)} classes twice")
    lacking = [name for name in names if name not in places]
    if lacking:
        raise ConfigError(f"student.class_names lacks {len(lacking)} of the data's classes: {', '.join(lacking[:5])}")
    return _unless_identity([places[name] for name in names], len(own))


def _from_indices(indices: Sequence[int], declared: int | None, classes: int) -> tuple[list[int] | None, int]:
    logits = declared or classes
    if len(indices) != classes or len(set(indices)) != classes:
        raise ConfigError(f"student.class_map needs {classes} different indices, one a class of the data")
    if min(indices) < 0 or max(indices) >= logits:
        raise ConfigError(f"student.class_map goes from {min(indices)} to {max(indices)}; there are {logits} logits")
    return _unless_identity(list(indices), logits)


def _unless_identity(indices: list[int], logits: int) -> tuple[list[int] | None, int]:
    return (None if indices == list(range(logits)) else indices), logits


def _lines(source: Path | Sequence[str]) -> list[str]:
    if not isinstance(source, Path):
        return list(source)
    try:
        return [line.strip() for line in source.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} cannot be read: {error}") from error


def _integers(source: Path | Sequence[int]) -> list[int]:
    if not isinstance(source, Path):
        return list(source)
    try:
        return [int(line) for line in _lines(source)]
    except ValueError as error:
        raise ConfigError(f"{source} must hold one index a line: {error}") from error


def _best_relabelling(answers: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """The one-to-one map from answer to label under which most answers are right."""
    from scipy.optimize import linear_sum_assignment  # 0.2 s, for this alone

    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (answers, truth), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    relabelling = np.empty(classes, dtype=np.int64)
    relabelling[rows] = columns
    return relabelling
