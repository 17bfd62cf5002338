"""The page of pipelines: a graph, what its config's head says, the command and the config."""

from __future__ import annotations

from pathlib import Path

from docs.pages.markdown import fence, folded, prose, table
from docs.pipeline_table import CONFIGS, head

__all__ = ["page", "papers"]

ROOT = Path(__file__).resolve().parents[2]
HEAD = """\
# Pipelines

A pipeline is a config of several stages. Each runs as it is, on Fashion-MNIST, and its head says what to expect and
how long it takes. In the graphs arrows lead from teachers, dashed ones from where a stage's weights come; of a
sweep the trial of most stages is drawn. To run one on your own data, extend it: `extends:
kdscale:pipelines/takd.yaml`, then `data: {...}`.
"""
PAPERS = """\
# Papers

Rows of published tables with every setting of their sources. `expect` at the top of a file holds the published figures
with source and tolerance; the report prints them against what came out, and nothing fails or is chosen by them.
"""


def page() -> str:
    """Every pipeline that is shipped."""
    paths = sorted(CONFIGS.glob("*.yaml"))
    rows = [[f"[`{path.stem}`](#{path.stem})", prose(head(path)[0])] for path in paths]
    return "\n\n".join([HEAD, table(["pipeline", "idea"], rows), *map(_section, paths)]) + "\n"


def papers() -> str:
    """Configs of published tables."""
    paths = sorted((ROOT / "configs" / "papers").glob("*.yaml"))
    return "\n\n".join([PAPERS, *map(_section, paths)]) + "\n"


def _section(path: Path) -> str:
    command, comment = _comment(path)
    place = path.relative_to(ROOT).as_posix()
    drawn = ROOT / "docs" / "pipelines" / f"{path.stem}.svg"
    parts = [f"## {path.stem} {{ #{path.stem} }}"]
    parts += [f"![{path.stem}: which stage learns from which](pipelines/{path.stem}.svg)"] if drawn.exists() else []
    return "\n\n".join([*parts, prose(comment), fence(command), folded(place, fence(path.read_text(), "yaml"))])


def _comment(path: Path) -> tuple[str, str]:
    """The command in a config's head, and what it says."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    lines = [line for line in lines if not line.startswith("yaml-language-server")]
    command = next((line for line in lines if line.startswith("python launch")), "")
    command = command or f"python launch/sweep.py {path.relative_to(ROOT).as_posix()}"
    said = [line for line in lines if not line.startswith("python launch")]
    return command, "\n".join(said).strip()
