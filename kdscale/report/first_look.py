"""What the networks saw and what the terms weighed before the first step."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdscale.report.masks import colour_of, tinted
from kdscale.report.records import StageRecord, SweepRecord

__all__ = ["Sheet", "TermRow", "View", "sheets", "term_tables"]

MOST_SHEETS, MOST_VIEWS, MOST_TABLES = 4, 24, 8
LARGEST_PX = 112
"""Larger views are shrunk: a page holds dozens of them."""
SMALL_PX = 64
"""Up to here pixels are kept as they are and shown as squares."""
DWARFS = 10.0
"""A term whose gradient is this many times all others' together leaves them no say."""


@dataclass(frozen=True)
class View:
    """One augmented image as a network sees it."""

    source: str
    """data: URI."""
    label: str
    teacher: str = ""
    confidence: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the teacher names the label."""
        return not self.teacher or self.teacher == self.label


@dataclass(frozen=True)
class Sheet:
    """The views of one or several stages that see the same."""

    stages: str
    also: str
    """Stages without a teacher that see the same images."""
    size: str
    views: list[View]
    agreement: float | None
    """Share of all stored views, not only those shown, that the teacher names as labelled."""
    stored: int
    pixelated: bool
    colours: list[tuple[str, str]]
    """Where pixels have classes: each class's name, and the CSS colour that is laid over it."""


@dataclass(frozen=True)
class TermRow:
    """One term before the first step."""

    id: str
    value: float
    weight: float
    weighted: float
    share: float
    remark: str = ""
    warns: bool = False


def sheets(sweep: SweepRecord) -> list[Sheet]:
    """A contact sheet for each way of seeing: the same images under the same teacher's answers are one."""
    found: dict[tuple[bytes, bytes], list[StageRecord]] = {}
    for stage in sweep.trained:
        path = stage.folder / "views.npz" if stage.folder else None
        if path is not None and path.exists():
            found.setdefault(_key(path), []).append(stage)
    answered = {images for images, answers in found if answers}
    alike = {images: _names(stages) for (images, answers), stages in found.items() if not answers}
    shown = [(key, stages) for key, stages in found.items() if key[1] or key[0] not in answered]
    return [
        _sheet(stages, alike.get(images, "") if answers else "") for (images, answers), stages in shown[:MOST_SHEETS]
    ]


def _names(stages: Sequence[StageRecord]) -> str:
    """Stage names, with how many there are of each."""
    names = [s.name for s in stages]
    return ", ".join(f"{n} ({names.count(n)} trials)" if names.count(n) > 1 else n for n in dict.fromkeys(names))


def term_tables(sweep: SweepRecord) -> list[tuple[str, list[TermRow]]]:
    """For each stage name and set of weighted terms the table of the first such stage, under its name."""
    found: dict[tuple[str, tuple[tuple[str, float], ...]], tuple[str, list[TermRow]]] = {}
    for stage in sweep.trained:
        if terms := stage.terms:
            key = (stage.name, tuple((t["id"], t["weight"]) for t in terms))
            if key not in found:
                found[key] = (sweep.local_name(stage), _term_rows(stage, terms))
    return list(found.values())


def _term_rows(stage: StageRecord, terms: Sequence[dict[str, float | str]]) -> list[TermRow]:
    rows = []
    for term in terms:
        value, share = float(term["value"]), float(term.get("gradient_share") or 0.0)
        kept = stage.definition.get("spec", {}).get("train_only") == []
        warning = _warning(value, share, alone=len(terms) == 1, kept=kept)
        by_design = "the student stays as it is: only what terms train learns" if kept else ""
        remark = warning or by_design or _chance(stage, str(term["id"]))
        rows.append(
            TermRow(
                str(term["id"]), value, float(term["weight"]), float(term["weighted"]), share, remark, bool(warning)
            )
        )
    return rows


def _warning(value: float, share: float, *, alone: bool, kept: bool) -> str:
    """What a person should notice: a gradient that dwarfs the rest, or none at all for a student that should learn."""
    if not math.isfinite(value):
        return "not finite before the first step"
    if kept:
        return ""
    if share <= 0.0:
        return "no gradient reaches the student"
    if alone:
        return ""
    if share >= 1.0:
        return "the only gradient: no other term moves the student"
    ratio = share / (1.0 - share)
    return f"its gradient is {ratio:.0f} × all others' together: is the weight meant?" if ratio >= DWARFS else ""


def _chance(stage: StageRecord, term: str) -> str:
    """Cross-entropy of a fresh network lies near ln C; far from it something is wrong, or it starts trained."""
    classes = len(stage.class_names)
    return (
        f"a fresh network starts near ln {classes} = {math.log(classes):.2f}"
        if term in ("ce", "pixel_ce") and classes > 1
        else ""
    )


def _sheet(stages: Sequence[StageRecord], also: str) -> Sheet:
    stage = stages[0]
    assert stage.folder is not None
    with np.load(stage.folder / "views.npz", allow_pickle=False) as arrays:
        images, labels, pixels = arrays["images"], arrays.get("labels"), arrays.get("classes")
        guesses = arrays.get("teacher_top1")
        sure = arrays.get("teacher_confidence")
    classes = stage.class_names

    def word(label: int) -> str:
        return classes[label] if 0 <= label < len(classes) else str(label)

    pictures = images if pixels is None else tinted(images, pixels)
    views = [
        View(
            _data_uri(pictures[i]),
            word(int(labels[i])) if labels is not None else "",
            word(int(guesses[i])) if guesses is not None else "",
            float(sure[i]) if sure is not None else None,
        )
        for i in range(min(MOST_VIEWS, len(images)))
    ]
    agreement = (
        float(np.mean(guesses == labels)) if guesses is not None and labels is not None and len(labels) else None
    )
    height, width, channels = images.shape[1:]
    size = f"{width} × {height} px, {'grey' if channels == 1 else 'colour'}"
    small = max(width, height) <= SMALL_PX
    return Sheet(_names(stages), also, size, views, agreement, len(images), small, _key_of(pixels, classes))


def _key_of(pixels: NDArray[np.uint8] | None, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Name and colour of each class that has a pixel."""
    seen = [] if pixels is None else (np.unique(pixels[pixels > 0]).astype(int) - 1).tolist()
    return [(classes[one] if one < len(classes) else str(one), f"rgb{colour_of(one)}") for one in seen]


def _key(path: Path) -> tuple[bytes, bytes]:
    """What is seen, and what the teacher says of it (empty without one)."""
    with np.load(path, allow_pickle=False) as arrays:
        answers = arrays["teacher_top1"].tobytes() if "teacher_top1" in arrays else b""
        return hashlib.sha256(arrays["images"].tobytes()).digest(), answers


def _data_uri(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image[..., :3])
    small = max(picture.size) <= SMALL_PX
    if max(picture.size) > LARGEST_PX:
        picture.thumbnail((LARGEST_PX, LARGEST_PX))
    content = io.BytesIO()
    picture.save(content, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
