"""A contact sheet of training views: what a config's augmentation does, seen before anything trains.

The views are made by the kernels that the loaders call, from the samples themselves: nothing needs to be
converted first, and what is drawn is to the pixel what a network gets (before its own normalisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdscale.api import Dataset, DatasetInfo, Source
from kdscale.config.schema import DataConfig
from kdscale.data.convert import squared, stored_side
from kdscale.data.split import carve
from kdscale.data.views import ViewScheme, eval_views, make_views, mix, partner_rows
from kdscale.report.masks import tinted

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

__all__ = ["describe_views", "view_sheet"]

_SMALLEST, _LARGEST = 84, 168  # pixels a side of a cell: tiny images are enlarged, large ones shrunk
_GAP, _LEFT, _TOP, _CAPTION = 6, 170, 58, 14
_INK, _FAINT, _PAPER = (25, 25, 30), (110, 110, 120), (250, 250, 248)
_FONT_PX, _SMALL_PX = 14, 11

Bytes = NDArray[np.uint8]
Rows = NDArray[np.int64]


def view_sheet(dataset: Dataset, data: DataConfig, *, samples: int, views: Sequence[int]) -> Image.Image:
    """Draw one line a sample (classes take turns): as evaluated, then its training views.

    Args:
        dataset: whose training rows are drawn.
        data: size, augmentation and split.
        samples: lines to draw.
        views: numbers of the views; without a teacher cache a view's number is its epoch.

    Raises:
        DataError: the data is missing or damaged.
    """
    train = _TrainSet.of(dataset, data)
    rows = _one_of_each(train.labels, train.pool, samples)
    plain = eval_views(train.stored(rows), train.scheme.size, per_pixel=train.info.per_pixel)
    columns = [("as evaluated", plain, [""] * len(rows))]
    columns += [(f"view {view}", *train.views(rows, view)) for view in views]
    names = [(train.class_name(row), f"row {row}") for row in rows.tolist()]
    shown = [(head, _visible(images, dataset.info), texts) for head, images, texts in columns]
    return _draw(f"{data.name} · {describe_views(data, dataset.info)}", names, shown)


def describe_views(data: DataConfig, info: DatasetInfo) -> str:
    """Say in a line what a training view is."""
    augment = data.augment.model_dump(exclude_defaults=True)
    parts = [f"{data.size or info.size} px"]
    for name, value in augment.items():
        inner = " ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
        parts.append(name if value is True else f"{name} {inner}".strip())
    return " · ".join([*parts, *([] if augment else ["no augmentation"]), f"view_seed {data.view_seed}"])


def labels_of(source: Source) -> Rows:
    """Return all labels (N,), without decoding images where the source knows them."""
    known = getattr(source, "labels", None)
    return np.asarray(known) if known is not None else np.array([source[row][1] for row in range(len(source))])


def _one_of_each(labels: Rows, pool: Rows, samples: int) -> Rows:
    """Take rows so that classes take turns, evenly spread when there are more classes than samples."""
    by_class = [pool[labels[pool] == label] for label in np.unique(labels[pool])]
    chosen = [by_class[i * len(by_class) // samples] for i in range(min(samples, len(by_class)))]
    if samples > len(by_class):
        chosen = [by_class[i % len(by_class)][i // len(by_class) :] for i in range(samples)]
    return np.array([rows[0] for rows in chosen if len(rows)], np.int64)


@dataclass(frozen=True)
class _TrainSet:
    """The training rows and how their views are made."""

    source: Source
    info: DatasetInfo
    side: int
    """Pixels a side as stored."""
    scheme: ViewScheme
    labels: Rows
    pool: Rows
    """The rows that train, from which partners are drawn."""

    @classmethod
    def of(cls, dataset: Dataset, data: DataConfig) -> _TrainSet:
        info, source = dataset.info, dataset.open("train")
        labels = labels_of(source)
        scheme = ViewScheme.of(data, info)
        return cls(source, info, stored_side(info, data), scheme, labels, carve(labels, data).train)

    def class_name(self, row: int) -> str:
        return self.info.class_names[int(self.labels[row])]

    def stored(self, rows: Rows) -> Bytes:
        return np.stack(
            [squared(self.source[row][0], self.side, per_pixel=self.info.per_pixel) for row in rows.tolist()]
        )

    def views(self, rows: Rows, view: int) -> tuple[Bytes, list[str]]:
        """One view of each row; with mixing also what it was mixed with."""
        images = make_views(self.stored(rows), rows, view, self.scheme)
        if not self.scheme.augment.mixes:
            return images, [""] * len(rows)
        partners = partner_rows(rows, view, self.scheme, self.pool)
        others = make_views(self.stored(partners), partners, view, self.scheme)
        shares = mix(images, others, rows, view, self.scheme)
        pairs = zip(shares.tolist(), partners.tolist(), strict=True)
        return images, [f"{1 - share:.2f} {self.class_name(partner)}" for share, partner in pairs]


def _visible(images: Bytes, info: DatasetInfo) -> Bytes:
    """Images (N, H, W, planes) as they are shown: where pixels have classes, these laid over them."""
    pixels = images[..., : info.channels]
    return tinted(pixels, images[..., info.channels]) if info.per_pixel else pixels


# --------------------------------------------------------------------------- drawing


def _draw(title: str, names: list[tuple[str, str]], columns: list[tuple[str, Bytes, list[str]]]) -> Image.Image:
    cell = _cell_side(columns[0][1].shape[1])
    captions = any(any(texts) for _, _, texts in columns)
    step_x, step_y = cell + _GAP, cell + _GAP + (_CAPTION if captions else 0)
    sheet = Image.new("RGB", (_LEFT + step_x * len(columns) + _GAP, _TOP + step_y * len(names) + _GAP), _PAPER)
    pen, font, small = ImageDraw.Draw(sheet), _font(_FONT_PX), _font(_SMALL_PX)
    pen.text((_GAP * 2, 10), _fitting(title, font, sheet.width - 4 * _GAP), _INK, font)
    for line, (name, row) in enumerate(names):
        y = _TOP + line * step_y
        pen.text((_GAP * 2, y + 2), _fitting(name, font, _LEFT - 4 * _GAP), _INK, font)
        pen.text((_GAP * 2, y + 22), row, _FAINT, small)
    for column, (head, images, texts) in enumerate(columns):
        x = _LEFT + column * step_x + (_GAP if column else 0)  # the plain view stands a little apart
        pen.text((x, _TOP - 18), head, _FAINT, small)
        for line, (image, text) in enumerate(zip(images, texts, strict=True)):
            y = _TOP + line * step_y
            sheet.paste(_enlarged(image, cell), (x, y))
            pen.text((x, y + cell), _fitting(text, small, cell), _FAINT, small)
    return sheet


def _cell_side(pixels: int) -> int:
    """Take a whole multiple of small images' size, so that every pixel is a square."""
    return min(pixels * math.ceil(_SMALLEST / pixels), _LARGEST)


def _enlarged(image: Bytes, cell: int) -> Image.Image:
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).convert("RGB")
    how = Image.Resampling.NEAREST if cell >= image.shape[0] else Image.Resampling.LANCZOS
    return picture.resize((cell, cell), how)


def _font(size: int) -> FreeTypeFont | BitmapFont:
    return ImageFont.load_default(size)


def _fitting(text: str, font: FreeTypeFont | BitmapFont, width: int) -> str:
    """Shorten a text until it is at most `width` pixels long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
