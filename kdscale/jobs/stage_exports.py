"""The folders that stages ask for by `export`, written once their sweep has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.config.schema import ExportConfig
from kdscale.jobs.named_stages import short_name
from kdscale.pipeline.artifacts import Root, StageFolder

__all__ = ["write_exports"]


def write_exports(root: Path, sweep: Path, say: Callable[[str], None]) -> bool:
    """Export each done stage of a sweep that asks for it to ROOT/exports, once: a folder that is there stays.

    Args:
        root: of the runs.
        sweep: its folder.
        say: told each folder that is written, and each that could not be.

    Returns:
        Whether all that were to be written are there.
    """
    return all([_exported(folder, wish, Root.find(root), say) for folder, wish in _wished(root, sweep)])


def _wished(root: Path, sweep: Path) -> Iterator[tuple[StageFolder, ExportConfig]]:
    """Done stages with what is to be exported of them, by the newest plan: what is done keeps its old definition."""
    plan: Mapping[str, Any] = atomic.read_json(sweep / "plan.json") or {"stages": {}}
    asked = {digest: entry["export"] for digest, entry in plan["stages"].items() if "export" in entry}
    for digest, folder in Root.find(root).stages_of(asked).items() if asked else ():
        if folder.state().get("state") == "done":
            yield folder, ExportConfig.model_validate(asked[digest])


def _exported(folder: StageFolder, wish: ExportConfig, root: Root, say: Callable[[str], None]) -> bool:
    target = root.path / "exports" / short_name(folder)
    if target.is_dir():
        return True
    from kdscale.jobs.exporting import Wish, export

    asked = Wish(folder.digest, wish.formats, selector=wish.weights, out=target.parent, int8=wish.int8)
    try:
        written = export(root, asked, lambda _: None)
    except Exception as error:  # noqa: BLE001 - exporters fail in many ways, and results must not suffer from any
        words = str(error).partition("\n")[0] or type(error).__name__
        again = f'python launch/export.py {folder.digest[:12]} --runs "{root.path}" tells all'
        say(f"export    FAILED {folder.path.name}: {words}; {again}")
        return False
    say(f"export    {written}")
    return True
