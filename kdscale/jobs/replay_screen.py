"""What a replayed step is told as: lines for people, JSON for programs, the sample as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.pipeline.artifacts import StageFolder
from kdscale.train.replay import Replayed
from kdscale.train.replay_start import Start
from kdscale.train.watching import Found, told

__all__ = ["Seen", "lines_of", "picture_name", "picture_of"]

RANKS_NAMED = 4


@dataclass(frozen=True)
class Seen:
    """A replayed step of a stage."""

    folder: StageFolder
    spec: StageSpec
    info: DatasetInfo
    step: int
    start: Start
    found: Replayed
    recorded: Sequence[Mapping[str, Any]]
    """What the stage's ranks wrote down when it failed at this step."""

    @property
    def sample(self) -> tuple[int, int] | None:
        """Rank and place in its batch of the first sample that is not finite, where it is a matter of samples."""
        first = self.found.first
        return None if first is None or first[1].sample is None else (first[0], first[1].sample)

    @property
    def row(self) -> int | None:
        """Its row number."""
        return None if self.sample is None else int(self.found.looks[self.sample[0]].batch.rows[self.sample[1]])

    @property
    def view(self) -> int:
        """Of the batch."""
        return self.found.looks[0].batch.view

    def batch(self) -> dict[str, Tensor]:
        """The global batch, in rank order."""
        parts = [look.batch for look in self.found.looks]
        names = ["images", "labels", "rows", *(["labels_b", "lam"] if parts[0].labels_b is not None else [])]
        return {name: torch.cat([getattr(part, name) for part in parts]).cpu().contiguous() for name in names}

    def document(self) -> dict[str, Any]:
        """All of it for programs."""
        first, definition = self.found.first, self.folder.definition()
        return {
            "schema": 1, "stage": self.folder.digest, "name": definition["name"], "step": self.step, "view": self.view,
            "from": {"step": self.start.step, "checkpoint": self.start.checkpoint and str(self.start.checkpoint)},
            "world": self.start.world, "batch_size": self.spec.train.batch_size, "loss": self.found.loss,
            "terms": {name: self.found.mean(name) for name in self.found.looks[0].watch.terms},
            "first": None if first is None else {"rank": first[0], "row": self.row, "class": _class_of(self)},
            "ranks": [
                {"rank": rank, "rows": look.batch.rows.tolist(), **look.watch.document()}
                | ({"other_precision": look.other.document()} if look.other else {})
                for rank, look in enumerate(self.found.looks)
            ],
            "anomaly": self.found.anomaly, "notes": [*self.start.notes, *self.found.notes],
        }  # fmt: skip


def lines_of(seen: Seen, target: Path, precision: str | None) -> Iterator[str]:
    """The screen, but for how it began.

    Args:
        seen: the step.
        target: where it is kept.
        precision: in which the step ran once more, if it did.
    """
    yield from seen.found.notes
    yield _terms(seen)
    if seen.recorded:
        yield _as_recorded(seen)
    first = seen.found.first
    if first is None:
        yield "everything is finite: losses, weights, answers of teachers and student, gradients"
    else:
        yield from _first(seen, target, *first)
    norm = seen.found.looks[0].watch.gradient_norm
    if norm is not None:
        yield f"gradient norm {norm:.4g}"
    if precision is not None:
        yield f"--precision {precision}: {_compared(seen, precision)}"
    if seen.found.anomaly is not None:
        yield f"--anomaly: {seen.found.anomaly}"
    yield f"saved {target}/: {', '.join(sorted(path.name for path in target.iterdir()))}"
    if first is not None:
        yield "--pdb to stop there   --anomaly for the backward pass   --precision fp32 to compare"


def picture_name(seen: Seen) -> str:
    """By row and view."""
    return f"img_{seen.row}_v{seen.view}.png"


def picture_of(seen: Seen) -> Image.Image | None:
    """The sample as the loader gave it; None where it is not a matter of one."""
    if seen.sample is None:
        return None
    rank, place = seen.sample
    image = seen.found.looks[rank].batch.images[place].cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(image[..., :3] if image.shape[2] >= 3 else image[..., 0]))


# --------------------------------------------------------------------------- lines


def _terms(seen: Seen) -> str:
    per_epoch = max(1, int(seen.folder.definition()["cost"]["steps"]) // seen.spec.train.epochs)
    values = "   ".join(_term(seen, name) for name in seen.found.looks[0].watch.terms)
    where = f"epoch {seen.step // per_epoch}, batch {seen.step % per_epoch}, view {seen.view}"
    return f"step {seen.step:,} ({where}):   {values}   loss {seen.found.loss:.6g}"


def _term(seen: Seen, name: str) -> str:
    bad = [rank for rank, look in enumerate(seen.found.looks) if not math.isfinite(look.watch.terms[name])]
    many = len(seen.found.looks) > 1
    whose = (
        f" (rank {', '.join(map(str, bad[:RANKS_NAMED]))}{' ...' * (len(bad) > RANKS_NAMED)})" if bad and many else ""
    )
    return f"{name} {seen.found.mean(name):.6g}{whose}"


def _as_recorded(seen: Seen) -> str:
    """Whether the replay has what the stage's ranks wrote down, to the last bit."""
    by_rank = {one["rank"]: one["terms"] for one in seen.recorded}
    here = {rank: look.watch.terms for rank, look in enumerate(seen.found.looks)}
    pairs = [(there[name], here[rank][name]) for rank, there in by_rank.items() if rank in here for name in there
             if name in here[rank]]  # fmt: skip
    same = all(one == other or (one != one and other != other) for one, other in pairs)
    if same:
        return "the same values as the stage recorded when it failed"
    told_there = ", ".join(f"{name} {value:.6g}" for name, value in by_rank[min(by_rank)].items())
    return f"not the values that the stage recorded when it failed (rank {min(by_rank)}: {told_there})"


def _first(seen: Seen, target: Path, rank: int, found: Found) -> Iterator[str]:
    yield f"first non-finite: {told(found)}"
    if found.operation:
        yield f"  by {found.operation} at {found.place}"
    if found.kind == "weight":
        yield f"  before the step: its loss is not to blame; --step {max(0, seen.step - 1)} is the update before"
    if found.kind == "update":
        yield "  the gradient is finite, and the update too large: lower train.lr, or set train.grad_clip"
    if found.kind in ("module", "term"):
        term = next((n for look in seen.found.looks for n, v in look.watch.terms.items() if not math.isfinite(v)), None)
        yield f"first non-finite term: {term}" if term else "all terms are finite all the same"
    at = f"rank {rank}'s " if len(seen.found.looks) > 1 else ""
    share = len(seen.found.looks[rank].batch.rows)
    if found.sample is not None:
        more = f" and {found.samples - 1} more of {share}" if found.samples > 1 else ""
        yield (
            f"sample: row {seen.row:,}   view {seen.view}   {at}number {found.sample}{more}   "
            f"class {_class_of(seen)}   {target / picture_name(seen)}"
        )
    elif found.samples:
        yield f"samples: all {found.samples} of {at or 'a '}batch"


def _class_of(seen: Seen) -> str | None:
    if seen.sample is None:
        return None
    rank, place = seen.sample
    labels = seen.found.looks[rank].batch.labels[place]
    names = seen.info.class_names
    if labels.dim():
        present = [names[label] for label in sorted(set(labels.flatten().tolist())) if label < len(names)]
        return " and ".join(repr(name) for name in present[:RANKS_NAMED])
    return repr(names[int(labels)])


def _compared(seen: Seen, precision: str) -> str:
    own = seen.spec.train.precision
    others = [look.other for look in seen.found.looks if look.other is not None]
    bad = next((one.first for one in others if one.first), None)
    values = ", ".join(f"{n} {sum(one.terms[n] for one in others) / len(others):.6g}" for n in others[0].terms)
    if own == precision:
        return f"the stage trains in {own} as it is ({values})"
    if seen.found.first is None:
        return f"{values}, finite too" if bad is None else f"{values}, but not finite: {told(bad)}"
    if bad is None:
        return f"finite ({values}): an overflow of {own}"
    return f"not finite either ({told(bad)}): no matter of {own}"
