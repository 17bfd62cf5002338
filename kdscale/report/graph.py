"""The stage graph laid out: one column a depth, edges from left to right; many alike stages become one node."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from kdscale.report.failures import by_progress
from kdscale.report.records import Parent, StageRecord, SweepRecord, axis_value
from kdscale.report.statistics import interval
from kdscale.report.wording import count, percent

__all__ = ["Drawing", "Edge", "Node", "draw"]

MOST_NODES, TALLEST = 24, 8
"""Boxes that can be read: in all, and in one column."""
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, ARCH, HEADROOM = 196.0, 68.0, 76.0, 18.0, 2.0, 26.0, 12.0
LOW = 48.0
"""Height of a cache's box, which has no figures."""
CLEAR = 6.0
"""Least distance of an arch from the boxes that it passes."""
_PART = re.compile(r"-\d+of\d+$")


@dataclass
class Node:
    """A box: one stage, or several that differ only in axes."""

    stages: list[StageRecord]
    title: str
    x: float = 0.0
    y: float = 0.0
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def depth(self) -> int:
        """The column."""
        return self.stages[0].depth

    @property
    def model(self) -> str:
        """The network, or how many there are."""
        models = list(dict.fromkeys(s.model for s in self.stages))
        return models[0] if len(models) == 1 else f"{len(models)} networks"

    @property
    def figure(self) -> str:
        """Accuracy and size, or in its place the accuracy of the ensemble that it hears; what is there of it."""
        known = [s.rating for s in self.stages if s.rating is not None]
        found = interval(known)
        if found is None:
            return ""
        if len({s.model for s in self.stages}) > 1:
            return f"{percent(min(known))} to {percent(max(known))} %"
        heard = [s.ensemble_top1 for s in self.stages if s.ensemble_top1 is not None]
        if heard:
            return f"{percent(found.mean)} % · hears {percent(fmean(heard))} %"
        return f"{percent(found)} % · {count(self.stages[0].params)}"

    @property
    def status(self) -> str:
        """The state of all; of several different ones the one that asks for attention."""
        return min((s.status for s in self.stages), key=by_progress)

    @property
    def badge(self) -> str:
        """What the corner says: the state, or that nothing had to be trained."""
        if self.status == "done":
            return "reused" if all(s.reused for s in self.stages) else ""
        of = f" {sum(s.done for s in self.stages)}/{len(self.stages)}" if len(self.stages) > 1 else ""
        return f"{self.status}{of}"

    @property
    def is_cache(self) -> bool:
        """Whether it stands for records between a teacher and those who read them: a smaller box."""
        return self.stages[0].kind == "fill"

    def lines(self) -> list[str]:
        """What stands in the box, cut to its width."""
        held = self.model.rpartition(": ")[2].rpartition(", ")[0]  # whose records, the arrow says
        words = held if self.is_cache else self.model
        return [_cut(self.title, 18 if self.badge else 26), _cut(words, 31), self.figure]


@dataclass(frozen=True)
class Edge:
    """A curve from the producer's right side to the consumer's left."""

    path: str
    role: str
    x: float
    y: float


@dataclass
class Drawing:
    """Everything the template needs, in pixels."""

    width: float
    height: float
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)


def draw(sweep: SweepRecord) -> Drawing:
    """Lay out a sweep's stages; seeds, then all axes are folded until the picture can be read."""
    used = {p.digest for t in sweep.trials for d in t.stages.values() for p in sweep.stages[d].parents}
    nodes = _nodes(sweep, [s for s in sweep.stages.values() if s.kind == "train" or s.digest in used])
    width, height = _place(nodes, MARGIN)
    edges = _edges(nodes)
    above = min((edge.y for edge in edges), default=HEADROOM)
    if above < HEADROOM:
        width, height = _place(nodes, MARGIN + HEADROOM - above)
        edges = _edges(nodes)
    return Drawing(width, height, nodes, edges)


def _place(nodes: list[Node], top: float) -> tuple[float, float]:
    """Set the boxes' corners, each column centred; returns the width and height of all."""
    columns = [[n for n in nodes if n.depth == d] for d in sorted({n.depth for n in nodes})]
    tall = max((len(c) for c in columns), default=0) * (HEIGHT + GAP_Y) - GAP_Y
    for number, column in enumerate(columns):
        own = len(column) * (HEIGHT + GAP_Y) - GAP_Y
        for row, node in enumerate(column):
            node.height = LOW if node.is_cache else HEIGHT
            node.x = MARGIN + number * (WIDTH + GAP_X)
            node.y = top + (tall - own) / 2 + row * (HEIGHT + GAP_Y) + (HEIGHT - node.height) / 2
    return len(columns) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN, top + tall + MARGIN


def _nodes(sweep: SweepRecord, stages: list[StageRecord]) -> list[Node]:
    axes_of = {d: t.axes for t in reversed(sweep.trials) for d in t.stages.values()}

    def by(*axes: str) -> Callable[[StageRecord], Hashable]:
        return lambda s: (s.name, s.depth, *((a, v) for a, v in axes_of.get(s.digest, {}).items() if a in axes))

    free = [a for a in sweep.axes if a != "seed"]
    first = "method" if "method" in free else next(iter(free), "")
    ways: list[Callable[[StageRecord], Hashable]] = [lambda s: s.digest, by(*free), by(first), by()]
    for way in ways:
        found: dict[Hashable, list[StageRecord]] = {}
        for stage in stages:
            found.setdefault(_cache_key(sweep, stage, way) or way(stage), []).append(stage)
        depths = [group[0].depth for group in found.values()]
        if len(found) <= MOST_NODES and max(depths.count(d) for d in set(depths)) <= TALLEST:
            break
    return [Node(group, _title(sweep, group)) for group in found.values()]


def _cache_key(sweep: SweepRecord, stage: StageRecord, way: Callable[[StageRecord], Hashable]) -> Hashable:
    """Parts of a cache are one box, and so are caches of one box of teachers that hold the same; None for others."""
    if stage.kind != "fill":
        return None
    teacher = next((sweep.stages[p.digest] for p in stage.parents if p.role == "teacher"), stage)
    return (_PART.sub("", stage.name), stage.depth, stage.model, way(teacher))


def _title(sweep: SweepRecord, group: list[StageRecord]) -> str:
    """Stage name with the axis values that all of the box share, where they tell it from others."""
    name = group[0].name
    if group[0].kind == "fill":
        caches = sum(stage.name == name for stage in group)  # its other parts have other names
        return _PART.sub("", name) + (f" ×{caches}" if caches > 1 else "")
    number = f" ×{len(group)}" if len(group) > 1 else ""
    digests = {s.digest for s in group}
    users = [t.axes for t in sweep.trials if t.stages.get(name) in digests]
    if not users or {t.stages[name] for t in sweep.trials if name in t.stages} <= digests:
        return name + number
    values = ",".join(axis_value(a, v) for a, v in users[0].items() if len({u[a] for u in users}) == 1)
    return f"{name}[{values}]{number}" if values else name + number


def _edges(nodes: list[Node]) -> list[Edge]:
    """Each pair of boxes once, with all that is taken; data, which all read, only where nothing else is."""
    home = {s.digest: n for n in nodes for s in n.stages}
    found: dict[tuple[int, int], tuple[Node, Node, dict[str, None]]] = {}
    for node in nodes:
        for stage in node.stages:
            for parent in _drawn(stage):
                source = home.get(parent.digest)
                if source is not None:
                    said = found.setdefault((id(source), id(node)), (source, node, {}))[2]
                    said[_label(stage, parent, source)] = None
    return [_edge(source, to, ", ".join(filter(None, said)), nodes) for source, to, said in found.values()]


def _drawn(stage: StageRecord) -> list[Parent]:
    """The parents that get an edge: a teacher whose records another stage fills is asked through those."""
    through = {role for role, cache in stage.caches.items() if cache["filled_by"]}
    return [p for p in stage.parents if p.role != "data" and p.role not in through] or stage.parents


def _label(stage: StageRecord, parent: Parent, source: Node) -> str:
    """What an edge says: as what it is taken, where the boxes do not tell, and which snapshot."""
    if parent.role.startswith("cache:"):
        return ""
    if parent.role in stage.caches:
        return "cached"
    selector, _, term = parent.selector.partition("#")
    plain = parent.role in (source.stages[0].name, "data") or stage.kind == "fill"
    role = f"{term}'s parts" if term else "" if plain else "init" if parent.role == "init_from" else parent.role
    return role if selector in ("last", "store") else f"{role}@{selector}"


def _edge(source: Node, target: Node, label: str, nodes: Sequence[Node]) -> Edge:
    if target.x - source.x > WIDTH + GAP_X + 1:
        return _arch(source, target, label, [node for node in nodes if source.x < node.x < target.x])
    x0, y0 = source.x + source.width, source.y + source.height / 2
    x1, y1 = target.x, target.y + target.height / 2
    bend = max(28.0, (x1 - x0) / 2)
    path = f"M{x0:.1f} {y0:.1f}C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1 - 5:.1f} {y1:.1f}"
    return Edge(path, _cut(label, 13), (x0 + x1) / 2, (y0 + y1) / 2 - 5)


def _arch(source: Node, target: Node, label: str, between: Sequence[Node]) -> Edge:
    """An edge past other columns goes over their boxes, not through them."""
    x0, y0, x1, y1 = source.x + source.width / 2, source.y, target.x + target.width / 2, target.y
    rise = ARCH * (x1 - x0) / (WIDTH + GAP_X) / 2
    top = min(y0, y1) - rise / 0.75
    for corner, y in ((x, node.y) for node in between for x in (node.x, node.x + node.width)):
        t = 0.5 - math.sin(math.asin(1 - 2 * (corner - x0) / (x1 - x0)) / 3)  # where the curve is above the corner
        top = min(top, (y - CLEAR - (1 - t) ** 3 * y0 - t**3 * y1) / (3 * t * (1 - t)))
    path = f"M{x0:.1f} {y0:.1f}C{x0:.1f} {top:.1f} {x1:.1f} {top:.1f} {x1:.1f} {y1 - 5:.1f}"
    return Edge(path, _cut(label, 24), (x0 + x1) / 2, (y0 + y1) / 8 + 0.75 * top - 5)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
