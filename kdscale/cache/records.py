"""A teacher's answer as records of the cache, and records as a teacher's answer (layout.py has what a record holds)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from kdscale.api import Outputs
from kdscale.cache.layout import Field, Layout
from kdscale.cache.residuals import Sparse, complete
from kdscale.cache.tail import drawn_classes, log_sums
from kdscale.errors import CacheError, ShapeError

__all__ = ["SparseOutputs", "decode", "encode"]

LEAST_F2, MOST_F2 = -65504.0, 65504.0
SMALLEST_F2 = 2.0**-24
INTEGERS = {"<u2": (2, torch.int16, 2**16 - 1), "<u4": (4, torch.int32, 2**32 - 1)}
"""Bytes, the signed type of that size (torch hardly knows unsigned ones), and a mask that makes it unsigned."""
FLOATS = {"<f2": torch.float16, "<f4": torch.float32}


class SparseOutputs(Outputs):
    """A teacher's answer of which the records hold only some logits.

    Args:
        record: what they hold.
        features: pooled ones, where the layout keeps them.
    """

    def __init__(self, record: Sparse, features: Sequence[Tensor]) -> None:
        top = record.classes[:, 0] if record.layout.k else None  # the largest is kept first; a residual may hide it
        vars(self).update(record=record, features=list(features), pixels=None, top=top)
        self.record: Sparse

    @cached_property
    def logits(self) -> Float[Tensor, "B C"]:  # made when asked for: terms see `at(...)`
        """Completed for temperature 1, for a student that knows nothing yet where the layout asks a student."""
        return complete(self.record, 1.0, None)

    def at(self, temperature: float, student: Float[Tensor, "B C"], own: float = 1.0) -> Outputs:
        """Complete the logits for one temperature. Raises: CacheMiss where the records do not hold it."""
        return Outputs(complete(self.record, temperature, student.detach() / own), self.features, top=self.top)


# --------------------------------------------------------------------------- a teacher's answer as records


def encode(  # noqa: PLR0913
    logits: Float[Tensor, "B C"],
    layout: Layout,
    *,
    labels: Int64[Tensor, "B"],
    rows: Int64[Tensor, "B"],
    view: int,
    labels_b: Int64[Tensor, "B"] | None = None,
    pooled: Float[Tensor, "B D"] | None = None,
) -> UInt8[Tensor, "B R"]:
    """Write records, on the CPU; a record depends on its own row's values alone, not on batch or order.

    Args:
        logits: on any device; float64 is rounded to float32 first.
        layout: what to write.
        labels: of the rows, on the device of `logits`, as every tensor here.
        rows: row numbers of the full train set; draws depend on them.
        view: which view of the rows this is; draws depend on it.
        labels_b: the mixing partners' labels, where the layout is of mixtures.
        pooled: the feature of the tap `pooled`, where the layout keeps it.

    Raises:
        CacheError: the teacher answered nan or inf, or a feature that float16 cannot hold.
        ShapeError: what is given does not fit the layout.
    """
    with torch.no_grad():
        exact = logits.detach().float()
        parts = {"logit": exact}
        known = _labels(layout, labels, labels_b) if layout.kind == "topk" else labels[:, None]
        _check_answer(exact, known, rows, layout)
        if layout.kind != "dense_fp32":
            exact = exact + 0.0  # -0 becomes 0: equal logits have equal bits, which decides ties and bytes
            row_max = exact.amax(1, keepdim=True)
            parts = {"logit": _below(row_max, exact), "row_max": row_max}
        if layout.kind == "topk":
            parts |= _sparse_parts(exact, parts["row_max"], known, layout, rows=rows, view=view)
        if layout.pooled:
            parts["pooled"] = _feature(pooled, rows, layout)
        return torch.cat([_bytes(parts[field.name], field) for field in layout.fields], dim=1).cpu()


def _sparse_parts(
    exact: Float[Tensor, "B C"],
    row_max: Float[Tensor, "B 1"],
    labels: Int64[Tensor, "B L"],
    layout: Layout,
    *,
    rows: Int64[Tensor, "B"],
    view: int,
) -> dict[str, Tensor]:
    """What a `topk` record holds beside the row max."""
    index = _largest(exact, layout.k)
    parts = {
        "index": index,
        "logit": _below(row_max, exact.gather(1, index)),
        "log_sum": log_sums(exact, row_max, layout.temperatures),
        "target": _below(row_max, exact.gather(1, labels)),
    }
    if layout.draws:
        known = torch.cat([index, labels], 1)
        parts["drawn"] = drawn_classes(exact, known, rows, view, layout.temperatures, layout.draws)
    return parts


def _largest(logits: Float[Tensor, "B C"], k: int) -> Int64[Tensor, "B k"]:
    """Classes of the k largest logits, largest first; of equal ones the lower class, which torch.topk leaves open.

    Each logit's bits (never -0's) are read as an integer that sorts as it does, with the class below them: no two
    are equal.
    """
    bits = logits.view(torch.int32)
    sortable = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    last = logits.shape[1] - 1
    classes = torch.arange(last, -1, -1, device=logits.device)
    keys = torch.topk((sortable << 32) + classes, k, dim=1).values
    return last - (keys & 0xFFFFFFFF)


def _below(row_max: Float[Tensor, "B 1"], logits: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Logits minus the row's largest, within float16; what is below it stays below it, so the top class stays alone."""
    gaps = logits - row_max
    return torch.where(gaps < 0, gaps.clamp(LEAST_F2, -SMALLEST_F2), gaps)


def _feature(pooled: Float[Tensor, "B D"] | None, rows: Int64[Tensor, "B"], layout: Layout) -> Float[Tensor, "B D"]:
    """The feature, once it is known to fit."""
    if pooled is None or pooled.shape[1:] != (layout.pooled,):
        given = "none" if pooled is None else list(pooled.shape)
        raise ShapeError(f"records keep {layout.pooled} features of the tap `pooled`, the teacher gave {given}")
    bad = ~(pooled.abs() <= MOST_F2)  # nan too
    _refuse(bad, rows, f"a feature that float16 cannot hold (beyond {MOST_F2:,.0f}, or nan)")
    return pooled.detach()


def _bytes(values: Float[Tensor, "B N"] | Int64[Tensor, "B N"], field: Field) -> UInt8[Tensor, "B M"]:
    if field.dtype in FLOATS:
        return values.to(FLOATS[field.dtype]).contiguous().view(torch.uint8)
    size = INTEGERS[field.dtype][0]
    return values.contiguous().view(torch.uint8).reshape(*values.shape, 8)[..., :size].flatten(1)


# --------------------------------------------------------------------------- records as a teacher's answer


def decode(
    records: UInt8[Tensor, "B R"],
    layout: Layout,
    *,
    labels: Int64[Tensor, "B"],
    labels_b: Int64[Tensor, "B"] | None = None,
    lam: Float[Tensor, "B"] | None = None,
) -> Outputs:
    """Read records where they lie, with no word from the device to the host.

    Args:
        records: bytes, on any device.
        layout: what they hold.
        labels: of the rows, as they were when the records were made; on the device of `records`, as every tensor here.
        labels_b: the mixing partners' labels, where the layout is of mixtures.
        lam: share of `labels` in each mixture, where the residual goes to the labels.

    Raises:
        ShapeError: the records are of another length, or labels are missing.
    """
    if records.shape[1] != layout.record_bytes:
        raise ShapeError(f"records of {records.shape[1]} bytes; this layout's have {layout.record_bytes}")
    parts = {field.name: _values(records, field) for field in layout.fields}
    features = [parts["pooled"].float()] if layout.pooled else []
    if layout.kind == "topk":
        record = _sparse(parts, layout, _labels(layout, labels, labels_b), lam)
        return SparseOutputs(record, features)
    if layout.kind == "dense":
        return Outputs(parts["logit"] + parts["row_max"], features)  # of two types, so the sum has the wider: float32
    return Outputs(parts["logit"], features)


def _sparse(
    parts: Mapping[str, Tensor], layout: Layout, labels: Int64[Tensor, "B L"], lam: Float[Tensor, "B"] | None
) -> Sparse:
    none = labels[:, :0]  # a field of no values is not in the record
    index = parts.get("index", none)
    return Sparse(
        layout=layout,
        classes=torch.cat([index, labels], 1),
        first=_first(index, labels),
        logits=torch.cat([parts.get("logit", none), parts["target"]], 1).float(),
        row_max=parts["row_max"],
        log_sums=parts["log_sum"],
        drawn=parts.get("drawn", none),
        shares=_shares(layout, labels, lam),
    )


def _first(index: Int64[Tensor, "B K"], labels: Int64[Tensor, "B L"]) -> Bool[Tensor, "B J"]:
    """Where a class is named for the first time: among the kept always; a label may be kept, or the partner's too."""
    kept = (labels[:, :, None] == index[:, None, :]).any(2)
    kept[:, 1:] |= labels[:, 1:] == labels[:, :1]
    return torch.cat([torch.ones_like(index, dtype=torch.bool), ~kept], 1)


def _shares(layout: Layout, labels: Int64[Tensor, "B L"], lam: Float[Tensor, "B"] | None) -> Float[Tensor, "B L"]:
    """How much of the residual each label gets; a label that is both's gets all, named twice."""
    if not layout.mixing or layout.residual != "to_target":
        return torch.ones_like(labels, dtype=torch.float32)
    if lam is None:
        raise ShapeError("the residual of a mixture goes to both labels by their shares: give lam")
    shares = torch.stack([lam, 1 - lam], 1).float()
    return torch.where(labels[:, :1] == labels[:, 1:], torch.ones_like(shares), shares)


def _values(records: UInt8[Tensor, "B R"], field: Field) -> Float[Tensor, "B N"] | Int64[Tensor, "B N"]:
    """One field of every record."""
    if field.dtype in FLOATS:
        return _read(records, field, FLOATS[field.dtype])
    _, signed, mask = INTEGERS[field.dtype]
    return _read(records, field, signed).long() & mask


def _read(records: UInt8[Tensor, "B R"], field: Field, dtype: torch.dtype) -> Tensor:
    """The field's bytes as a type: where they lie if they are aligned to it, else copied, as torch demands."""
    size, count = dtype.itemsize, math.prod(field.shape)
    if records.shape[1] % size or field.offset % size or records.storage_offset() % size:
        mine = records[:, field.offset : field.offset + count * size]
        return mine.clone(memory_format=torch.contiguous_format).view(dtype)
    first = field.offset // size
    return records.view(dtype)[:, first : first + count]


# --------------------------------------------------------------------------- both


def _labels(layout: Layout, labels: Int64[Tensor, "B"], labels_b: Int64[Tensor, "B"] | None) -> Int64[Tensor, "B L"]:
    """The labels whose logits a record holds."""
    if not layout.mixing:
        return labels[:, None]
    if labels_b is None:
        raise ShapeError("these records hold the logits of both labels of a mixture: give labels_b")
    return torch.stack([labels, labels_b], 1)


def _check_answer(
    logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B L"], rows: Int64[Tensor, "B"], layout: Layout
) -> None:
    if logits.shape[1] != layout.classes:
        raise ShapeError(f"the teacher tells {logits.shape[1]} classes apart, the records are of {layout.classes}")
    _refuse(~logits.isfinite(), rows, "nan or inf; a cache would teach it: see why this teacher gives it")
    _refuse((labels < 0) | (labels >= layout.classes), rows, f"a label outside of its {layout.classes} classes")


def _refuse(bad: Bool[Tensor, "B N"], rows: Int64[Tensor, "B"], what: str) -> None:
    """Name the rows that cannot be kept."""
    found = rows[bad.any(1)].tolist()
    if found:
        first = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise CacheError(f"the teacher's answer to {len(found)} of {len(rows)} rows (row {first}) has {what}")
