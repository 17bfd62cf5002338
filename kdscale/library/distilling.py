"""Distilling live modules in this process: for a first look from a notebook, with nothing to write beforehand."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import nn

from kdscale.errors import ConfigError, KDScaleError, StageError
from kdscale.library.experiment import Experiment
from kdscale.library.live import at_hand
from kdscale.library.trained import TrainedStage
from kdscale.pipeline.artifacts import Root

__all__ = ["Distilled", "distill"]

LIVE = "kdscale.library.live:Live"
Term = str | tuple[str, float] | Mapping[str, Any]


class Distilled:
    """What came of it.

    Attributes:
        student: the very module that was given, with its trained weights, in eval mode.
        figures: by name, as `TrainedStage.figures`: `top1` on test, `val/top1`, `agreement`, ...
        teachers: test figures of each teacher, by name.
        curves: every metric over training: epochs (N,) and values (N,).
    """

    def __init__(self, student: nn.Module, stage: TrainedStage, teachers: Mapping[str, TrainedStage]) -> None:
        self.student = student
        self.figures, self.curves = stage.figures, stage.curves
        self.teachers = {name: one.figures for name, one in teachers.items()}

    def __repr__(self) -> str:
        theirs = "".join(f", {name} {found['rating']:.4f}" for name, found in self.teachers.items())
        return f"Distilled({type(self.student).__name__}: {self.figures['rating']:.4f} on test{theirs})"


def distill(  # noqa: PLR0913
    student: nn.Module,
    teacher: nn.Module | Mapping[str, nn.Module],
    data: str | Mapping[str, Any],
    losses: Sequence[Term] = ("ce", ("kd", 0.9)),
    epochs: int = 10,
    *,
    train: Mapping[str, Any] | None = None,
    input: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    runs: str | Path | None = None,
) -> Distilled:
    """Teach a module what others know, here and now.

    It runs in this process, quietly, and nothing of it is kept or reused: who wants caches, sweeps, several processes
    and resumption writes a config. Data that was converted in a run folder is read from there.

    Args:
        student: images (B, K, H, W), normalised, to logits (B, C). It gets the trained weights; a run that fails or is
            interrupted leaves it as it was.
        teacher: likewise, as it is; several by name.
        data: a data set by name (`launch/sweep.py --list datasets`), or a config's `data:` section.
        losses: terms by name, as (name, weight), or as a config's: {"name": "fitnet", "taps": {...}}, module paths
            being taps.
        epochs: over the training rows.
        train: more of a config's `train:` section: batch_size, lr, schedule, ...
        input: by "student" or a teacher's name ("teacher"), where a network wants another input than the data's:
            {"teacher": {"size": 224, "mean": [...], "std": [...]}}.
        seed: of order and draws.
        runs: a run folder whose converted data is read; default $KDSCALE_RUNS, else ./runs.

    Raises:
        ConfigError: what is given does not fit; names the key of the config that it became.
        StageError: training failed; says why.
    """
    teachers = dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
    _refuse(student, teachers)
    config = _config(teachers, data, losses, {**(train or {}), "epochs": epochs}, input or {}, seed)
    with at_hand([student, *teachers.values()]), tempfile.TemporaryDirectory(prefix="kdscale-distill-") as folder:
        file = Path(folder) / "distill.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        with _converted_data_of(runs), _in_its_own_words(file), redirect_stdout(io.StringIO()):
            run = Experiment(str(file), runs=Path(folder) / "runs").run(cluster="inline", yes=True)
        stage = run.stage("student")
        if stage.state != "done" or stage.path is None:
            raise StageError(_why(run.stages()))
        found = Distilled(student, stage, {name: run.stage(name) for name in teachers})
        student.load_state_dict(load_file(stage.path / "student.safetensors"))
    student.eval()
    return found


def _refuse(student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
    for name, module in {"student": student, **teachers}.items():
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{name} must be a torch.nn.Module, not {type(module).__name__}")
    if "student" in teachers:
        raise ConfigError("a teacher may not be called student")


def _config(
    teachers: Mapping[str, nn.Module], data: str | Mapping[str, Any], losses: Sequence[Term], train: Mapping[str, Any],
    input: Mapping[str, Mapping[str, Any]], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The config that it stands for: teachers as they are, each evaluated and never trained, and the student."""
    stages: dict[str, Any] = {
        name: {"student": _network(number, input.get(name)), "losses": [{"name": "ce"}], "train": {"epochs": 0}}
        for number, name in enumerate(teachers, 1)
    }
    stages["student"] = {
        "student": _network(0, input.get("student")),
        "teachers": {name: {"from": name} for name in teachers},
        "losses": [_term(term) for term in losses],
    }
    return {
        "name": "distill", "seed": seed, "data": {"name": data} if isinstance(data, str) else dict(data),
        "train": dict(train), "tracking": {"uri": "off"}, "engine": {"processes": 1},
        "plugins": {"allow": ["kdscale"]}, "stages": stages,
    }  # fmt: skip


def _network(number: int, input: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"model": LIVE, "number": number, **({"input": dict(input)} if input else {})}


def _term(term: Term) -> dict[str, Any]:
    if isinstance(term, str):
        return {"name": term}
    if isinstance(term, Mapping):
        return dict(term)
    name, weight = term
    return {"name": name, "weight": weight}


@contextmanager
def _in_its_own_words(file: Path) -> Iterator[None]:
    """Errors that name the key, and no line of a file that nobody wrote."""
    try:
        yield
    except KDScaleError as error:
        raise type(error)(re.sub(rf"{re.escape(str(file))}(:\d+)?", "distill", str(error))) from None


def _why(stages: Sequence[TrainedStage]) -> str:
    for stage in stages:
        if stage.state not in ("done", "blocked", "waiting"):
            return f"{stage.name} is {stage.state}: {stage.reason}"
    return "nothing was trained"


@contextmanager
def _converted_data_of(runs: str | Path | None) -> Iterator[None]:
    """Search a run folder's stages as well: of these only converted data can be equal."""
    root = Root.find(None if runs is None else Path(runs).expanduser())
    known = os.environ.get("KDSCALE_REUSE")
    os.environ["KDSCALE_REUSE"] = os.pathsep.join(map(str, [root.path, *root.reuse]))
    try:
        yield
    finally:
        if known is None:
            del os.environ["KDSCALE_REUSE"]
        else:
            os.environ["KDSCALE_REUSE"] = known
