"""README's table of pipelines with a graph of each, from the configs: `python docs/pipeline_table.py [--write]`.

A graph shows the trial of most stages and arrows. Arrows lead from who teaches (solid) and from where weights come
(dashed).
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kdscale.config.load import load, resolve_stages  # noqa: E402
from kdscale.config.schema import StageSpec  # noqa: E402
from kdscale.config.stages import parse_reference  # noqa: E402
from kdscale.pipeline.references import in_order  # noqa: E402

BEGIN, END = "<!-- pipelines: written by docs/pipeline_table.py -->", "<!-- end of pipelines -->"
CONFIGS, DRAWINGS = ROOT / "configs" / "pipelines", ROOT / "docs" / "pipelines"
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, ARCH = 128, 44, 44, 14, 2, 14
STYLE = (
    "rect{fill:#f4f6f8;stroke:#5b6b7b}path{fill:none;stroke:#5b6b7b;marker-end:url(#to)}.begins{stroke-dasharray:4 3}"
    "text{font:12px sans-serif;fill:#17212b}.small{font-size:10px;fill:#4a5866}marker path{fill:#5b6b7b;stroke:none}"
)
Arrow = tuple[str, str, bool]
"""Producer, consumer, and whether it gives the weights to begin with."""


def head(path: Path) -> tuple[str, str]:
    """The first sentence of a config's comment, and its source."""
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    said = " ".join(line for line in lines if not line.startswith(("yaml-language-server", "python launch")))
    idea = re.split(r"(?<=[a-z0-9)])\. ", said.strip(), maxsplit=1)[0].rstrip(".")
    found = re.search(r"Sources?: (.*?)(?<![A-Z])(?:\.(?= [A-Z])|;|$)", said)
    return idea, found[1].strip() if found else ""


def stages_of(path: Path) -> dict[str, StageSpec]:
    """Stages of the trial that has most of them, and most arrows between them, in an order in which they can run."""
    most = max(map(resolve_stages, load(path).trials), key=lambda stages: (len(stages), len(arrows_of(stages))))
    return {name: most[name] for name in in_order(most)}


def arrows_of(stages: dict[str, StageSpec]) -> list[Arrow]:
    """Who takes what from whom, each pair once."""
    found: dict[Arrow, None] = {}
    for name, spec in stages.items():
        taught = [ref.from_ for ref in spec.teachers.values() if ref.from_ is not None]
        begun = [str(term.init_from) for term in spec.terms_begun]
        begun += [spec.init_from.from_] if spec.init_from is not None else []
        for texts, begins in ((taught, False), (begun, True)):
            found |= {(parse_reference(text)[0], name, begins): None for text in texts}
    return list(found)


def drawing(stages: dict[str, StageSpec]) -> str:
    """The graph as SVG: one column a depth."""
    arrows, depth = arrows_of(stages), dict.fromkeys(stages, 0)
    for name in stages:
        depth[name] = max((depth[one] + 1 for one, other, _ in arrows if other == name), default=0)
    columns = [[name for name in stages if depth[name] == d] for d in range(max(depth.values()) + 1)]
    tall = max(map(len, columns)) * (HEIGHT + GAP_Y) - GAP_Y
    furthest = max((depth[other] - depth[one] for one, other, _ in arrows), default=1)
    arch = ARCH * (furthest - 1)
    place = {}
    for number, column in enumerate(columns):
        top = MARGIN + arch + (tall - len(column) * (HEIGHT + GAP_Y) + GAP_Y) / 2
        for row, name in enumerate(column):
            place[name] = (MARGIN + number * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y))
    size = (len(columns) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN, arch + tall + 2 * MARGIN)
    parts = [_arrow(place[one], place[other], begins=begins) for one, other, begins in arrows]
    parts += [_box(*place[name], name, _about(spec)) for name, spec in stages.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]:g}"><style>{STYLE}</style>'
        '<defs><marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z"/></marker></defs>\n{chr(10).join(parts)}\n</svg>\n'
    )


def _about(spec: StageSpec) -> str:
    """The network, and what it learns by."""
    depth = getattr(spec.student, "depth", None)
    network = f"{spec.student.model}{f' {depth}' if depth else ''}".replace("resnet_cifar", "resnet")
    terms = list(dict.fromkeys(term.name for term in spec.terms))
    how = [*([spec.strategy] if spec.strategy != "distill" else []), *terms]
    return f"{network} · {' '.join(how) or 'as it is'}"


def _box(x: float, y: float, name: str, about: str) -> str:
    return (
        f'<rect x="{x}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5"/><text x="{x + 8}" y="{y + 18:g}">'
        f'{escape(name)}</text><text class="small" x="{x + 8}" y="{y + 34:g}">{escape(about[:21])}</text>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float], *, begins: bool) -> str:
    kind, columns = ' class="begins"' if begins else "", round((end[0] - start[0]) / (WIDTH + GAP_X))
    if columns > 1:  # over the boxes between them
        x, to_x, top = (
            start[0] + WIDTH * 0.75,
            end[0] + WIDTH * 0.25,
            min(start[1], end[1]) - ARCH * (columns - 1) * 4 / 3,
        )
        return f'<path{kind} d="M{x:g} {start[1]:g}C{x:g} {top:g} {to_x:g} {top:g} {to_x:g} {end[1]:g}"/>'
    (x, y), (to_x, to_y) = (start[0] + WIDTH, start[1] + HEIGHT / 2), (end[0], end[1] + HEIGHT / 2)
    y, to_y = (y + 6, to_y + 6) if begins else (y, to_y)
    bend = GAP_X / 2
    return f'<path{kind} d="M{x} {y:g}C{x + bend} {y:g} {to_x - bend} {to_y:g} {to_x} {to_y:g}"/>'


def drawings() -> dict[str, str]:
    """Every pipeline's graph by name."""
    return {path.stem: drawing(stages_of(path)) for path in sorted(CONFIGS.glob("*.yaml"))}


def table() -> str:
    """A row for each config."""
    lines = ["| pipeline | idea and source | stages |", "| --- | --- | --- |"]
    for path in sorted(CONFIGS.glob("*.yaml")):
        idea, source = head(path)
        link = f"[`{path.stem}`](configs/pipelines/{path.name})"
        lines.append(f"| {link} | {idea}. *{source}* | ![{path.stem}](docs/pipelines/{path.stem}.svg) |")
    return "\n".join(lines)


def written(readme: str) -> str:
    """The README with the table in its place."""
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Print the table, or write it into README.md and the graphs beside it."""
    if "--write" not in sys.argv[1:]:
        print(table())
        return
    DRAWINGS.mkdir(exist_ok=True)
    for name, text in drawings().items():
        (DRAWINGS / f"{name}.svg").write_text(text)
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text()))


if __name__ == "__main__":
    main()
