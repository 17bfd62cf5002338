"""Whether what a stage takes from is there when its job begins.

SLURM itself starts no job before those it waits for have ended well. A job of several stages ends well where each of
them rests, so that one which failed takes nobody else's children with it: so a child asks for its own parents.
"""

from __future__ import annotations

from kdscale.jobs.prepare import note_state
from kdscale.pipeline.artifacts import Root, StageFolder

__all__ = ["may_begin"]

LOST = frozenset({"failed", "blocked", "cancelled"})
NOT_YET = frozenset({"paused", "waiting", "queued"})
"""A parent with any other state is done, or is read from a file system that lags behind: the stage itself looks."""


def may_begin(root: Root, folder: StageFolder, *, write: bool = True) -> bool:
    """Look at a stage's parents; where one is lost or rests unmade, note what that makes of the stage.

    Args:
        root: of the runs.
        folder: of the stage.
        write: whether to write it down; of several ranks, one does.
    """
    parents = [root.stage(str(parent["digest"])) for parent in folder.definition()["parents"].values()]
    states = {parent.path.name: str(parent.state()["state"]) for parent in parents if parent is not None}
    lost = [name for name, state in states.items() if state in LOST]
    if write and lost:
        note_state(folder, "blocked", f"{', '.join(lost)} did not finish")
    if not lost and not NOT_YET & {*states.values()}:
        return True
    if write and not lost:
        note_state(folder, "waiting", "")
    return False
