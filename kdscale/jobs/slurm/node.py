"""What a node of the cluster sees: the job of a probe, which looks at files, networks and Python and writes it down.

    runs/jobs/probe/<hash12>.asked.json     what to look for, by whoever submits the probe
    runs/jobs/probe/<hash12>.json           what was found, in part until `complete`

It downloads nothing and leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.doctor.findings import Finding

__all__ = ["SHARED", "look_around"]

SHARED = "it must lie on a file system that the nodes share"
_MENDS = {
    "data": f"{SHARED}: KDSCALE_DATA=/shared/folder, then --prepare again",
    "weights": f"{SHARED}: move the file, or its run root, there",
}


def look_around(asked: str) -> None:
    """Look for what a file asks for, and write down what was found beside it."""
    wanted: dict[str, Any] = atomic.read_json(Path(asked))
    findings: list[Finding] = []
    for finding in _all(wanted):
        findings.append(replace(finding, section="node"))
        _answer(Path(asked), findings, complete=False)
    _answer(Path(asked), findings, complete=True)


def _answer(asked: Path, findings: Sequence[Finding], *, complete: bool) -> None:
    document = {
        "schema": 1, "node": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID", ""), "when": time.time(),
        "complete": complete, "findings": [asdict(finding) for finding in findings],
    }  # fmt: skip
    atomic.write_json(asked.with_name(asked.name.replace(".asked.", ".")), document)


def _all(wanted: Mapping[str, Any]) -> Iterator[Finding]:
    """What is quick first: a minute may be too short for what is slow."""
    yield from _files(wanted["files"])
    yield from _own_disk(wanted["stage_to"], int(wanted["bytes"]))
    yield _internet(wanted["internet"])
    if wanted["tracking"]:
        yield _tracking(wanted["tracking"], wanted["ship"])
    yield from _runs(Path(wanted["root"]))
    yield from _software()


def _files(wanted: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for kind in dict.fromkeys(entry["kind"] for entry in wanted):
        entries = [entry for entry in wanted if entry["kind"] == kind]
        lost = [problem for entry in entries if (problem := _problem(entry))]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            yield Finding("node", kind, "missing", f"{lost[0]}{more}", _MENDS[kind], needed=True)
        else:
            yield Finding("node", kind, "ok", f"sees {kind} ({len(entries)} found)", needed=True)


def _problem(entry: Mapping[str, Any]) -> str:
    """What is wrong with one path, as seen from here."""
    path = Path(entry["path"])
    try:
        found = path.stat()
        readable = os.access(path, os.R_OK)
    except OSError as error:
        return f"{entry['name']}: {path}: {(error.strerror or str(error)).lower()}"
    if path.is_file() and entry["bytes"] is not None and found.st_size != entry["bytes"]:
        return f"{entry['name']}: {path} has {found.st_size} bytes here, {entry['bytes']} on the login node"
    return "" if readable else f"{entry['name']}: {path} may not be read"


def _own_disk(wanted: Sequence[str], size: int) -> Iterator[Finding]:
    from kdscale.data.staging import folder_on_node
    from kdscale.errors import DataError

    for stage_to in wanted:
        try:
            folder = folder_on_node(stage_to)
            assert folder is not None
            there = next(path for path in (folder, *folder.parents) if path.is_dir())
        except DataError as error:
            yield Finding("node", "stage_to", "broken", str(error), needed=True)
            continue
        free, mend = shutil.disk_usage(there).free, "data will be read where it lies"
        text = f"data.stage_to: {folder} has {free / 1e9:.1f} GB free"
        if not os.access(there, os.W_OK):
            yield Finding("node", "stage_to", "note", f"data.stage_to: {there} cannot be written", mend)
        elif free < size:
            yield Finding("node", "stage_to", "note", f"{text}, {size / 1e9:.1f} GB are needed", mend)
        else:
            yield Finding("node", "stage_to", "ok", text)


def _internet(address: str) -> Finding:
    from kdscale.trackers.reach import why_no_answer

    why = why_no_answer(address)
    text = "internet" if why is None else f"no internet ({why}), and none is needed"
    return Finding("node", "internet", "ok", text, details={"internet": why is None})


def _tracking(uri: str, ship: str) -> Finding:
    from kdscale.trackers.reach import why_no_answer

    why = why_no_answer(f"{uri}/health")
    details = {"reachable": why is None}
    if why is None:
        return Finding("node", "tracking", "ok", f"tracking server {uri} answers", details=details)
    text = f"no tracking server: {uri} does not answer ({why})"
    if ship == "job":
        return Finding("node", "tracking", "broken", text, "tracking.ship: login ships from here", details=details)
    return Finding("node", "tracking", "ok", text, details=details)


def _runs(root: Path) -> Iterator[Finding]:
    """Only what does not work is told apart."""
    from kdscale.doctor.folder import examine_folder

    findings = list(examine_folder(root))
    bad = [finding for finding in findings if finding.state != "ok"]
    yield Finding("node", "runs", "ok", f"sees {root}", needed=True) if not bad else bad[0]
    yield from bad[1:]


def _software() -> Iterator[Finding]:
    import platform

    import kdscale

    where = {"executable": sys.executable, "kdscale": str(Path(kdscale.__file__).parent)}
    try:
        import torch
    except (ImportError, OSError) as error:
        mend = "install what the login node has where the nodes see it, or load it in the profile's `setup`"
        yield Finding("node", "torch", "broken", f"cannot be imported: {error}", mend, needed=True, details=where)
        return
    gpus = torch.cuda.device_count()
    name = f"{gpus} x {torch.cuda.get_device_name(0)}" if gpus else "no GPU"
    cores = f"{len(os.sched_getaffinity(0))} cores"
    text = f"Python {platform.python_version()} · torch {torch.__version__} · {name} · {cores}"
    yield Finding("node", "torch", "ok", text, needed=True, details=where | {"gpus": gpus})
