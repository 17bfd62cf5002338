"""What a loss becomes when each rank compares only its own samples: the mean over shards beside the whole batch.

    python -m benchmarks.shards [--shards 4] [--batch 64] [--write]

Student and teacher answers are drawn, those of the student near the teacher's through a random matrix, so that samples
relate on both sides. Each loss sees them whole (what `pairs: global` gives on any number of ranks) and in shards (what
`pairs: local` gives on as many ranks): `whole` and `shards` are the values, `cosine` the angle between the student's
two gradients, `length` how much longer or shorter the shards' is. Losses that are means over samples are the same in
both: 1 and 1, which the script checks. --write puts the table into docs/losses.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdscale import plugins
from kdscale.api import Batch, Loss, Outputs, Shapes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "losses.md"
BEGIN, END = "<!-- shards: written by benchmarks/shards.py -->", "<!-- end of shards -->"
CLASSES, STUDENT, TEACHER = 10, 16, 32
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("rkd, distances", "rkd", {"distance": 1.0, "angle": 0.0}),
    ("rkd, angles", "rkd", {"distance": 0.0, "angle": 1.0}),
    ("pkt", "pkt", {}),
    ("pkt, `reduction: row`", "pkt", {"reduction": "row"}),
    ("sp", "sp", {}),
    ("cc", "cc", {}),
    ("cc, `kernel: bilinear`", "cc", {"kernel": "bilinear"}),
    ("cc, `kernel: adjacent`", "cc", {"kernel": "adjacent"}),
    ("dist, `inter` alone", "dist", {"intra": 0.0}),
    ("dist, `intra` alone", "dist", {"inter": 0.0}),
    ("mlkd, samples alone", "mlkd", {"classes": 0.0, "batch": 0.0}),
    ("mlkd, classes alone", "mlkd", {"samples": 0.0, "batch": 0.0}),
    ("mlkd, batch alone", "mlkd", {"samples": 0.0, "classes": 0.0}),
    ("projector", "projector", {}),
    ("projector, `form: cross_correlation`", "projector", {"form": "cross_correlation"}),
]
ADDITIVE = {"dist, `inter` alone", "mlkd, samples alone"}
"""Parts that are means over samples, within losses that relate them."""


class Compared(NamedTuple):
    """One loss, whole and in shards."""

    what: str
    whole: float
    shards: float
    cosine: float
    length: float

    @property
    def line(self) -> str:
        """A row of the table."""
        return f"| {self.what} | {self.whole:.4g} | {self.shards:.4g} | {self.cosine:.3f} | {self.length:.2f} |"


def answers(count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and a pooled feature of student and teacher, behind a ReLU as pooled features are."""
    rng = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    theirs = drawn(count, TEACHER)
    own = theirs @ drawn(TEACHER, STUDENT) / TEACHER**0.5 + 0.7 * drawn(count, STUDENT)
    logits = 3 * theirs @ drawn(TEACHER, CLASSES) / TEACHER**0.5
    return [logits + 2 * drawn(count, CLASSES), own.relu()], [logits, theirs.relu()]


def value_and_gradient(loss: Loss, count: int, shards: int) -> tuple[float, Tensor]:
    """The mean over shards, and its gradient by the student's logits and feature."""
    student, teacher = answers(count)
    for leaf in student:
        leaf.requires_grad_()
    values = []
    for at in _shards(count, shards):
        own, theirs = (Outputs(logits[at], [feature[at]]) for logits, feature in (student, teacher))
        images = torch.zeros(len(own.logits), 1, 1, 1, dtype=torch.uint8)
        labels = torch.zeros(len(images), dtype=torch.int64)
        values.append(loss(own, theirs, Batch(images, labels, torch.arange(len(images)), view=0)).mean())
    mean = torch.stack(values).mean()
    grads = torch.autograd.grad(mean, student, materialize_grads=True)
    return float(mean.detach()), torch.cat([grad.flatten() for grad in grads])


def _shards(count: int, shards: int) -> Iterator[slice]:
    size = count // shards
    return (slice(i * size, (i + 1) * size) for i in range(shards))


def compared(what: str, name: str, options: dict[str, Any], count: int, shards: int) -> Compared:
    """One loss on one batch, whole and cut."""
    plugin = plugins.load("losses", name)
    torch.manual_seed(0)
    loss: Loss = plugin(plugin.Config(**options), Shapes(CLASSES, [(STUDENT,)], [(TEACHER,)])).double()
    whole, gradient = value_and_gradient(loss, count, 1)
    cut, other = value_and_gradient(loss, count, shards)
    lengths = [float(g.norm()) for g in (gradient, other)]
    return Compared(what, whole, cut, float(gradient @ other) / (lengths[0] * lengths[1]), lengths[1] / lengths[0])


def table(rows: list[Compared], count: int, shards: int) -> str:
    """Markdown."""
    head = f"| {count} samples | whole | mean of {shards} shards | cosine of gradients | length of the shards' |"
    return "\n".join([head, "|---|---|---|---|---|", *(row.line for row in rows)])


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="put the table into docs/losses.md")
    chosen = parser.parse_args()
    rows = [compared(*case, chosen.batch, chosen.shards) for case in CASES]
    for row in rows:
        equal = abs(row.cosine - 1) < 1e-9 and abs(row.length - 1) < 1e-9
        if equal != (row.what in ADDITIVE):
            raise SystemExit(f"{row.what}: shards and whole are {'equal' if equal else 'different'}")
    print(text := table(rows, chosen.batch, chosen.shards))
    if chosen.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
