"""A stage that a command is about, by its name; and what the folders are called that commands write of it."""

from __future__ import annotations

from kdscale.errors import ConfigError
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.names import resolve

__all__ = ["short_name", "stage_named"]


def stage_named(name: str, root: Root) -> StageFolder:
    """Find a stage; a sweep is none. Raises: ConfigError, with what could be meant."""
    found = resolve(name, root)
    if isinstance(found, SweepFolder):
        stages = ", ".join(sorted({entry["name"] for entry in found.plan()["stages"].values()}))
        raise ConfigError(f"{name} is a sweep; name one of its stages, as {name}:STAGE (it has {stages})")
    return found


def short_name(folder: StageFolder) -> str:
    """Its name and the beginning of its digest, such as student-77ab."""
    return f"{folder.name}-{folder.digest[:4]}"
