"""`launch/replay.py`: a step of a stage once more, in this process; what was not finite first, and its batch."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kdscale import atomic
from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError
from kdscale.jobs.named_stages import short_name, stage_named
from kdscale.jobs.replay_debugger import stop_in
from kdscale.jobs.replay_screen import Seen, lines_of, picture_name, picture_of
from kdscale.jobs.wording import duration
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.failures import failures_of
from kdscale.train.device import device_of_rank
from kdscale.train.replay import Replayed, Wanted, replay
from kdscale.train.replay_start import Start, start_before

__all__ = ["Wish", "failed_step", "replay_stage"]

TRIES = 3
"""Checkpoints that may go away while they are read: a stage that runs keeps only the newest."""
TOLD_EVERY_S = 10.0


@dataclass(frozen=True)
class Wish:
    """What is to be replayed, and what is asked of it."""

    name: str
    step: int | None = None
    out: Path = Path("replay")
    precision: str | None = None
    anomaly: bool = False
    tensors: bool = False
    """Keep weights and gradients too."""
    pdb: bool = False
    """Open a debugger where the first non-finite value shows."""


def replay_stage(root: Root, wish: Wish, say: Callable[[str], None]) -> Path:
    """Replay a step of a stage, say what was seen and keep it in a folder, which is returned.

    Raises:
        ConfigError: nothing is called so, it has no such step, or does not say at which it failed.
        KDScaleError: what the stage reads is not there.
    """
    folder = stage_named(wish.name, root)
    definition = folder.definition()
    if definition["kind"] != "train":
        raise ConfigError(f"{wish.name} is a {definition['kind']} stage: only what trains has steps to replay")
    spec = StageSpec.model_validate(definition["spec"])
    step = _step(folder, definition, wish)
    target = wish.out / f"{short_name(folder)}-step{step}"
    _demand_free(target)
    device = device_of_rank()
    _settle(folder, say, device)
    stop = stop_in if wish.pdb else None
    wanted = Wanted(definition, step, wish.precision, anomaly=wish.anomaly, gradients=wish.tensors, stop=stop)
    start, found = _replayed(root, folder, wanted, device, say)
    info, recorded = DatasetInfo.of(definition["data"]["info"]), failures_of(folder.logs, step)
    seen = Seen(folder, spec, info, step, start, found, recorded)
    _write(target, seen, tensors=wish.tensors)
    for line in lines_of(seen, target, wish.precision):
        say(line)
    return target


def failed_step(folder: StageFolder) -> int | None:
    """The step at which a stage failed, by its state, or at which a loss was last not finite, by its ranks' records."""
    state = folder.state()
    named = re.search(r"\bstep (\d+)", str(state.get("reason", ""))) if state["state"] == "failed" else None
    if named is not None:
        return int(named[1])
    recorded = failures_of(folder.logs)
    return int(recorded[0]["step"]) if recorded else None


def _step(folder: StageFolder, definition: Mapping[str, Any], wish: Wish) -> int:
    steps = int(definition["cost"]["steps"])
    if not steps:
        raise ConfigError(f"{wish.name} trains no steps: there is nothing to replay")
    step = failed_step(folder) if wish.step is None else wish.step
    if step is None:
        raise ConfigError(
            f"{wish.name} is {folder.state()['state']} and has no step at which it failed: "
            f"give --step N, from 0 to {steps - 1}"
        )
    if not 0 <= step < steps:
        raise ConfigError(f"--step {step}: {wish.name} has steps 0 to {steps - 1}")
    return step


def _demand_free(target: Path) -> None:
    """Before anything long: where it will be written must be nothing, or an earlier replay."""
    if target.parent.exists() and not target.parent.is_dir():
        raise ConfigError(f"--out {target.parent}: is a file; name a folder")
    if target.exists() and not (target / "replay.json").is_file():
        raise ConfigError(f"{target} is there and holds no replay: --out names another place")


def _settle(folder: StageFolder, say: Callable[[str], None], device: torch.device) -> None:
    """Compute with as many threads as the stage did, and say what is different here."""
    attempts = [attempt for attempt in folder.state()["attempts"] if "threads" in attempt]
    if not attempts:
        return
    last = attempts[-1]
    torch.set_num_threads(int(last["threads"]))
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    differs = [
        f"{what} {there}, here {own}"
        for what, there, own in (("torch", last["torch"], torch.__version__), ("device", last["device"], here))
        if not str(there).startswith(own)
    ]
    if differs:
        say(f"the stage ran on {'; '.join(differs)}: the same batches, but sums may be rounded in another way")


def _replayed(
    root: Root, folder: StageFolder, wanted: Wanted, device: torch.device, say: Callable[[str], None]
) -> tuple[Start, Replayed]:
    spec = StageSpec.model_validate(wanted.definition["spec"])
    for attempt in range(TRIES):
        start = start_before(folder, spec, wanted.step)
        for note in start.notes:
            say(note)
        say(f"{start} -> {_how_many(start, spec, wanted.step)}")
        progress = _Progress(start, wanted.step, say)
        try:
            return start, replay(root, wanted, start, device, progress)
        except OSError:
            if start.checkpoint is None or start.checkpoint.exists() or attempt + 1 == TRIES:
                raise
            say(f"{start.checkpoint.name} was replaced by a newer one meanwhile")
    raise AssertionError("the last try returns or raises")


def _how_many(start: Start, spec: StageSpec, step: int) -> str:
    share = spec.train.batch_size // start.world
    ranks = f"{start.world} ranks x {share}, which take turns here" if start.world > 1 else f"1 rank x {share}"
    before = step - start.step
    parts = f", {spec.train.accumulation} parts each" if spec.train.accumulation > 1 else ""
    return f"replaying {before:,} step{'s' * (before != 1)} of {ranks}{parts}, then step {step:,}"


class _Progress:
    """Says now and then how far a long replay is."""

    def __init__(self, start: Start, last: int, say: Callable[[str], None]) -> None:
        self._first, self._last, self._say = start.step, last, say
        self._begun = self._said = 0.0

    def __call__(self, step: int) -> None:
        now = time.monotonic()
        if step == self._first:  # building is over
            self._begun = self._said = now
        if now - self._said < TOLD_EVERY_S:
            return
        self._said = now
        left = (now - self._begun) / (step - self._first) * (self._last - step)
        self._say(f"  step {step:,}, about {duration(left)} left")


def _write(target: Path, seen: Seen, *, tensors: bool) -> None:
    """Write the folder whole, in place of an earlier replay of the step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    side = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        save_file(seen.batch(), side / "batch.safetensors")
        if tensors:
            save_file(seen.found.tensors, side / "weights.safetensors")
            save_file(seen.found.looks[0].watch.gradients, side / "gradients.safetensors")
        picture = picture_of(seen)
        if picture is not None:
            picture.save(side / picture_name(seen))
        (side / "replay.json").write_text(atomic.as_json(seen.document()))
        shutil.rmtree(target, ignore_errors=True)
        side.chmod(0o755)
        side.rename(target)
    finally:
        shutil.rmtree(side, ignore_errors=True)
