"""What mkdocs calls: pages written from the code, and from files outside of docs/, are made as the site is built."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.pages import commands, examples, language, methods, performance, pipelines  # noqa: E402
from docs.pages.markdown import relinked  # noqa: E402
from kdscale import plugins  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the list of methods where the navigation says `@KIND`."""
    config.nav = _filled(config.nav)
    return config


def _filled(node: Any) -> Any:
    if isinstance(node, str) and node.startswith("@"):
        kind = node[1:]
        return [{name: f"methods/{kind}/{name}.md"} for name in plugins.available(kind)]
    if isinstance(node, dict):
        return {key: _filled(value) for key, value in node.items()}
    return [_filled(one) for one in node] if isinstance(node, list) else node


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is no file of docs/."""
    for path, text in written():
        files.append(File.generated(config, path, content=text))
    for picture in sorted(performance.RESULTS.glob("*.png")):
        files.append(File.generated(config, f"benchmarks/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Tell readers what commands need, which a comment says; fill in the table of a profile's keys; mend links."""
    markdown = re.sub(r"^( *)<!-- needs: (.*?) -->\n", r"\1*Needs \2:*\n\n", markdown, flags=re.M)
    markdown = relinked(
        markdown, {"../examples/garments/README.md": "tutorial.md", "../examples/first_steps.ipynb": "notebook.md"}
    )
    return markdown.replace("<!-- table: profile -->", language.profile())


def written() -> Iterator[tuple[str, str]]:
    """Path within the site and text of every page that is made here."""
    yield "language.md", language.page()
    yield "commands.md", commands.page()
    yield from methods.pages()
    yield "networks.md", methods.networks()
    yield "pipelines.md", pipelines.page()
    yield "papers.md", pipelines.papers()
    yield "performance.md", performance.page()
    yield from performance.reports()
    yield "slurm.md", relinked((ROOT / "slurm" / "README.md").read_text(), {"../docs/": ""})
    yield "tutorial.md", examples.tutorial()
    yield "notebook.md", examples.notebook()
    yield "changelog.md", (ROOT / "CHANGELOG.md").read_text()
