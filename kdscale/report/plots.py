"""The figures: accuracy against cost, means with intervals, learning curves. matplotlib is imported on use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdscale.report.records import Curves
from kdscale.report.svg import INK, MUTED, PAPER, STYLE, inline, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Canvas", "Line", "Point", "chain_figure", "curve_figure", "interval_figure", "metric_line", "new_canvas", "pareto",
    "trade_off_figure",
]  # fmt: skip

MOST_POINTS, FEWEST_POINTS, ALL_POINTS = 240, 40, 6000
"""Points of a drawn line, and of all lines of a panel: more cannot be seen and only make the page heavy."""
LONGEST_NAME = 26
_PX = 1 / 72
_PLACES = ((8, -3, "left"), (-8, -3, "right"), (0, 9, "center"), (0, -15, "center"))
"""Where a label may stand, in points from its mark: right, left, above, below."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@dataclass(frozen=True)
class Point:
    """One network in a plane of cost and accuracy."""

    name: str
    cost: float
    value: float
    half: float | None = None
    """Half-width of the 95 % interval."""
    colour: int = 0
    filled: bool = True
    values: Sequence[float] = ()
    """Single outcomes behind the mean."""
    title: str = ""


@dataclass(frozen=True)
class Line:
    """One stage's course of a metric."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    strong: bool = True


@dataclass
class Canvas:
    """A figure, its axes, and what its marks say when hovered."""

    figure: Figure
    axes: Axes
    titles: dict[str, str] = field(default_factory=dict)

    def name(self, artist: Any, title: str) -> None:
        """Have a mark say `title`."""
        gid = f"m{len(self.titles)}"
        artist.set_gid(gid)
        self.titles[gid] = title


def trade_off_figure(
    points: Sequence[Point], name: str, cost: str, rated_by: str = "top-1", *, front: bool = True
) -> str:
    """Test accuracy against a cost; the dashed line joins the networks that no other beats at their cost.

    Args:
        points: values are shares in [0, 1].
        name: unique on the page.
        rated_by: what the values are.
        cost: label of the horizontal axis, which is logarithmic where the costs span more than three-fold.
        front: whether less cost is better, so that there is such a line.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        canvas = new_canvas(430, 316)
        axes = canvas.axes
        ahead = pareto(points) if front else []
        if len(ahead) > 1:
            axes.plot(
                [p.cost for p in ahead], [100 * p.value for p in ahead], color=MUTED, lw=1.1, ls=(0, (3, 2)), zorder=1
            )
        for p in sorted(points, key=lambda p: p in ahead):
            _spot(canvas, p)
        _scale_of_cost(axes, [p.cost for p in points])
        axes.set_xlabel(cost)
        axes.set_ylabel(f"test {rated_by} %")
        axes.margins(x=0.12, y=0.14)
        _label(canvas, points if len(points) <= 10 else ahead, points)
        return inline(canvas.figure, name, f"test {rated_by} against {cost}", canvas.titles)


def interval_figure(
    points: Sequence[Point], name: str, reference: float | None, reference_name: str, rated_by: str = "top-1"
) -> str:
    """Means with 95 % intervals as a dot plot, best on top, with every seed as a small dot."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        canvas = new_canvas(440, 64 + 20 * len(points))
        axes = canvas.axes
        ordered = sorted(points, key=lambda p: p.value)
        if reference is not None:
            axes.axvline(100 * reference, color=MUTED, lw=1, ls=(0, (3, 2)), zorder=1)
            axes.annotate(reference_name, (100 * reference, len(points) - 0.45), fontsize=10, color=MUTED, ha="center")
        for y, p in enumerate(ordered):
            colour = series(p.colour)
            if p.half is not None:
                axes.plot([100 * (p.value - p.half), 100 * (p.value + p.half)], [y, y], color=colour, lw=2, zorder=2)
            axes.scatter(
                [100 * v for v in p.values], [y - 0.3] * len(p.values), s=7, color=colour, alpha=0.6, lw=0, zorder=3
            )
            canvas.name(axes.scatter([100 * p.value], [y], s=38, color=colour, zorder=4), p.title)
        axes.set_yticks(range(len(ordered)), [_short(p.name) for p in ordered])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-0.7, len(points) - 0.2)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"test {rated_by} %")
        return inline(canvas.figure, name, f"mean test {rated_by} with 95 % intervals", canvas.titles)


def chain_figure(chains: Sequence[Sequence[Point]], ticks: Sequence[str], name: str, rated_by: str = "top-1") -> str:
    """Test accuracy along chains of networks that teach one another.

    Args:
        chains: of each its networks in the order in which they learn; `cost` is the place.
        ticks: what the networks at each place are called.
        name: unique on the page.
        rated_by: what the values are.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        canvas = new_canvas(max(430, 86 * len(ticks)), 316)
        for chain in chains:
            x, y = [p.cost for p in chain], [100 * p.value for p in chain]
            canvas.axes.plot(x, y, color=series(chain[0].colour), lw=1.2, zorder=1)
            for p in chain:
                _spot(canvas, p)
        canvas.axes.set_xticks(range(len(ticks)), ticks)
        canvas.axes.set_ylabel(f"test {rated_by} %")
        canvas.axes.margins(x=0.1, y=0.14)
        return inline(canvas.figure, name, f"test {rated_by} from network to network", canvas.titles)


def curve_figure(lines: Sequence[Line], name: str, what: str, *, share: bool = False) -> str:
    """One metric over the epochs, a line a stage.

    Args:
        lines: faint ones first are drawn below.
        name: unique on the page.
        what: title of the panel.
        share: whether the values are shares, shown in percent.
    """
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(STYLE):
        canvas = new_canvas(330, 212)
        axes, unit = canvas.axes, 100 if share else 1
        for line in sorted(lines, key=lambda line: line.strong):
            thin = _thinned(line.points, len(lines))
            x, y = [p[0] for p in thin], [p[1] * unit for p in thin]
            lone: dict[str, Any] = {"marker": "o", "ms": 4} if len(thin) == 1 else {}
            drawn = axes.plot(
                x, y, color=series(line.colour), alpha=1 if line.strong else 0.4, lw=1.6 if line.strong else 1, **lone
            )
            canvas.name(drawn[0], f"{line.name}: {y[-1]:.4g} at epoch {x[-1]:.3g}")
        axes.set_title(what, loc="left", fontsize=11, color=INK)
        axes.set_xlabel("epoch")
        axes.margins(x=0.02)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if share:
            _focus(axes, [[v * 100 for _, v in line.points] for line in lines])
        return inline(canvas.figure, name, f"{what} over the epochs", canvas.titles)


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats at the same or a lower cost, by rising cost."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.cost, -p.value)):
        if not front or p.value > front[-1].value:
            front.append(p)
    return front


def metric_line(curves: Curves, metric: str) -> list[tuple[float, float]]:
    """The finite values of a metric over the epochs."""
    return [(epoch, value) for epoch, value in curves.get(metric, []) if math.isfinite(value)]


def new_canvas(width: int, height: int) -> Canvas:
    """An empty figure with its axes, drawn under STYLE; sizes in pixels of a page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * _PX, height * _PX), dpi=72, layout="constrained")
    return Canvas(figure, figure.add_subplot())


def _spot(canvas: Canvas, p: Point) -> None:
    axes, colour = canvas.axes, series(p.colour)
    if p.half is not None:
        ends = [100 * (p.value - p.half), 100 * (p.value + p.half)]
        axes.plot([p.cost, p.cost], ends, color=colour, lw=1.4, alpha=0.6, zorder=2)
    face = colour if p.filled else PAPER
    canvas.name(
        axes.scatter([p.cost], [100 * p.value], s=44, facecolor=face, edgecolor=colour, lw=1.6, zorder=3), p.title
    )


def _scale_of_cost(axes: Axes, costs: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(costs), max(costs)
    if low > 0 and high / low > 3:
        axes.set_xscale("log")
        subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high / low < 10 else (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(canvas: Canvas, wanted: Sequence[Point], points: Sequence[Point]) -> None:
    """Write names beside their points where there is room; what has none still says its name when hovered."""
    canvas.figure.draw_without_rendering()
    axes = canvas.axes
    frame = axes.get_window_extent()
    room: Box = (float(frame.x0), float(frame.y0), float(frame.x1) + 4, float(frame.y1) + 8)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in (_pixels(axes, p) for p in points)]
    for p in sorted(wanted, key=lambda p: -p.value):
        x, y = _pixels(axes, p)
        for dx, dy, side in _PLACES:
            box = _box_of(_short(p.name), x + dx, y + dy, side)
            inside = room[0] < box[0] and room[1] < box[1] and box[2] < room[2] and box[3] < room[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                beside: dict[str, Any] = {
                    "xytext": (dx, dy),
                    "textcoords": "offset points",
                    "ha": side,
                    "fontsize": 11,
                    "color": INK,
                }
                axes.annotate(_short(p.name), (p.cost, 100 * p.value), **beside)
                break


def _short(name: str) -> str:
    """Long names would leave the axes no room; hovering shows them whole."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _pixels(axes: Axes, p: Point) -> tuple[float, float]:
    x, y = axes.transData.transform((p.cost, 100 * p.value)).tolist()
    return x, y


def _box_of(name: str, x: float, y: float, side: str) -> Box:
    """Where a label anchored at (x, y) will stand, by the width of a common letter."""
    width = 6.8 * len(name)
    left = x - {"left": 0.0, "right": width, "center": width / 2}[side]
    return left, y - 1, left + width, y + 12


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _focus(axes: Axes, lines: Sequence[Sequence[float]]) -> None:
    """Start the axis where the curves have left their first steep rise, so that the end can be told apart."""
    tails = [value for line in lines for value in line[len(line) // 5 :]]
    if tails:
        low, high = min(tails), max(max(line) for line in lines if line)
        room = max(0.08 * (high - low), 0.5)
        axes.set_ylim(max(0.0, low - room), min(100.5, high + room))


def _thinned(points: Sequence[tuple[float, float]], lines: int) -> list[tuple[float, float]]:
    most = min(MOST_POINTS, max(FEWEST_POINTS, ALL_POINTS // lines))
    if len(points) <= most:
        return list(points)
    return [*points[: -1 : math.ceil(len(points) / most)], points[-1]]
