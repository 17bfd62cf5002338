"""What one record of the cache holds, byte by byte. Knows no torch.

A record is one view of one row: fixed-size, packed, little-endian, so that its place in a shard is arithmetic.

    dense        logit C x f2 (minus row max), row_max f4                                     every temperature
    dense_fp32   logit C x f4, the teacher's own bits                                         every temperature
    topk         index K x u2|u4 and logit K x f2 (minus row max), in descending order of logit; row_max f4;
                 log_sum T x f4; target f2, the label's logit minus row max (2 x f2 where views are mixed: the
                 partner's label too); drawn T x N x u2|u4 (`sampled` alone)                  listed temperatures
    all          pooled D x f2, the feature of the tap `pooled`, where it is kept

`log_sum` is log sum exp((logit - row max) / temperature), of all classes: relative to the row max it lies between 0
and log C, where float32 is finest; absolute it would lose what the row max is large by. Differences below what f2
holds are its finite minimum. A field of no values is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from kdscale.errors import CacheError, CacheStale, ShapeError

__all__ = ["Field", "Kind", "Layout", "Residual"]

Kind = Literal["dense", "dense_fp32", "topk"]
Residual = Literal["uniform", "ghost", "to_target", "sampled", "renorm"]
KINDS: tuple[Kind, ...] = ("dense", "dense_fp32", "topk")
RESIDUALS: tuple[Residual, ...] = ("uniform", "ghost", "to_target", "sampled", "renorm")
U2_CLASSES = 2**16
MOST_CLASSES = 2**22


class Field(NamedTuple):
    """One field of a record."""

    name: str
    dtype: str
    """NumPy's name of a little-endian type: <f2, <f4, <u2, <u4."""
    shape: tuple[int, ...]
    """() for a single value."""
    offset: int
    """Bytes from the record's start."""

    @property
    def bytes(self) -> int:
        """Its length in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """What a record holds; equal layouts give equal bytes.

    Attributes:
        k: largest logits kept; of `topk` alone. 0 is possible with `sampled`: then all mass is sampled.
        residual: how the mass of classes that are not kept is spread (cache/residuals.py); of `topk` alone.
        draws: classes drawn from what is not kept, at each temperature; of `sampled` alone.
        temperatures: ascending, 1.0 among them: those a `topk` record answers. Always () for the dense kinds,
            whatever is given: they answer every temperature.
        pooled: features D of the tap `pooled`; 0 keeps none.
        mixing: views are mixtures of two rows, so a `topk` record holds the logits of both labels.

    Raises:
        ShapeError: more kept than there are classes, or sizes that no record can have.
        CacheError: settings that contradict each other.
    """

    classes: int
    kind: Kind
    k: int = 0
    residual: Residual = "uniform"
    draws: int = 0
    temperatures: tuple[float, ...] = (1.0,)
    pooled: int = 0
    mixing: bool = False

    def __post_init__(self) -> None:
        ours = tuple(float(t) for t in self.temperatures) if self.kind == "topk" else ()
        object.__setattr__(self, "temperatures", ours)
        _check_sizes(self)
        if self.kind == "topk":
            _check_topk(self)
        elif self.k or self.draws or self.residual != "uniform":
            raise CacheError(f"a {self.kind} record holds every logit: k, residual and draws belong to kind topk")

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Layout:
        """Take up what `document` wrote.

        Raises:
            CacheStale: its fields do not lie where this version puts them.
            CacheError: it describes no layout.
        """
        given = {name: value for name, value in document.items() if name not in _DERIVED}
        try:
            layout = cls(**{**given, "temperatures": tuple(float(t) for t in given["temperatures"])})
        except (KeyError, TypeError) as error:
            raise CacheError(f"this is no record layout: {error}") from error
        expected = layout.document()
        differing = [name for name in _DERIVED if document.get(name) != expected[name]]
        if differing:
            said = "; ".join(f"{n}: {document.get(n)} there, {expected[n]} here" for n in differing)
            raise CacheStale(f"the cache's records are laid out by another version: {said}; build the cache anew")
        return layout

    def document(self) -> dict[str, Any]:
        """Everything that says what the bytes mean, for JSON: the parameters, and each field's type, shape, offset."""
        fields = [{**field._asdict(), "shape": list(field.shape)} for field in self.fields]
        parameters = {**asdict(self), "temperatures": list(self.temperatures)}
        return {**parameters, "record_bytes": self.record_bytes, "fields": fields}

    @property
    def index_type(self) -> str:
        """Type of a class index: <u2 for up to 65,536 classes, else <u4."""
        return "<u2" if self.classes <= U2_CLASSES else "<u4"

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """What a record holds, in order and without gaps."""
        fields: list[Field] = []
        for name, dtype, shape in _specified(self):
            if math.prod(shape):
                fields.append(Field(name, dtype, shape, fields[-1].offset + fields[-1].bytes if fields else 0))
        return tuple(fields)

    @cached_property
    def record_bytes(self) -> int:
        """Length of a record."""
        return sum(field.bytes for field in self.fields)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """A record as a packed structured type: `np.memmap(shard, layout.dtype)["logit"]`."""
        return np.dtype([(field.name, field.dtype, field.shape) for field in self.fields])


_DERIVED = ("record_bytes", "fields")
"""What a document holds beside the parameters, and follows from them."""


def _specified(layout: Layout) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of every field, empty ones included."""
    pooled = ("pooled", "<f2", (layout.pooled,))
    if layout.kind == "dense_fp32":
        return [("logit", "<f4", (layout.classes,)), pooled]
    if layout.kind == "dense":
        return [("logit", "<f2", (layout.classes,)), ("row_max", "<f4", ()), pooled]
    temperatures = len(layout.temperatures)
    return [
        ("index", layout.index_type, (layout.k,)),
        ("logit", "<f2", (layout.k,)),
        ("row_max", "<f4", ()),
        ("log_sum", "<f4", (temperatures,)),
        ("target", "<f2", (2,) if layout.mixing else ()),
        ("drawn", layout.index_type, (temperatures, layout.draws)),
        pooled,
    ]


def _check_sizes(layout: Layout) -> None:
    if layout.kind not in KINDS:
        raise CacheError(f"no such kind of record: {layout.kind} (there are: {', '.join(KINDS)})")
    if not 1 <= layout.classes <= MOST_CLASSES:
        raise ShapeError(f"a record of {layout.classes} classes: from 1 to {MOST_CLASSES:,} can be kept")
    if not 0 <= layout.k <= layout.classes:
        raise ShapeError(f"k: {layout.k} of {layout.classes} classes cannot be kept; give at most {layout.classes}")
    if min(layout.draws, layout.pooled) < 0:
        raise ShapeError(f"draws: {layout.draws}, pooled: {layout.pooled}: neither can be negative")


def _check_topk(layout: Layout) -> None:
    if layout.residual not in RESIDUALS:
        raise CacheError(f"no such residual: {layout.residual} (there are: {', '.join(RESIDUALS)})")
    sampled = layout.residual == "sampled"
    if layout.k < 1 and not sampled:
        raise CacheError("k: 0 keeps no class; give k: 1 or more, or residual: sampled")
    if sampled != (layout.draws > 0):
        mend = "give draws: 1 or more" if sampled else "it belongs to residual: sampled"
        raise CacheError(f"draws: {layout.draws} with residual: {layout.residual}: {mend}")
    given = layout.temperatures
    if 1.0 not in given or list(given) != sorted(set(given)) or not all(0 < t < math.inf for t in given):
        raise CacheError(f"temperatures: {list(given)}: positive, ascending, without repeats, 1.0 among them")
