"""`launch/data.py` behind its command line: convert, check and look at the data of a config, or of a data set."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from kdscale import plugins
from kdscale.errors import ConfigError, DataError, KDScaleError

if TYPE_CHECKING:
    from rich.console import Console

    from kdscale.api import Dataset
    from kdscale.config.load import Sweep
    from kdscale.config.schema import DataConfig
    from kdscale.pipeline.artifacts import Root
    from kdscale.pipeline.planned import PlannedStage

__all__ = ["check", "pick", "show", "write"]

_PROBE = "probe"
_PROBE_STAGE = f"{_PROBE}: {{student: {{model: resnet_cifar, depth: 8}}, losses: [{{name: ce}}], train: {{epochs: 0}}}}"


def write(target: str, overrides: Sequence[str], runs: Path | None, console: Console) -> int:
    """Fetch and convert what the sweep of a config reads (or a data set by name), where the sweep will look for it.

    Raises:
        DataError: the data cannot be found, fetched or converted.
        KDScaleError: as planning raises it.
    """
    from kdscale.jobs.prepare import prepare_folders
    from kdscale.pipeline.artifacts import Root
    from kdscale.pipeline.plan import make_plan

    sweep = load_sweep(target, overrides)
    for _, data in sections(sweep):
        open_dataset(data).fingerprint()  # downloads where it must, before anything is written under runs
    root = Root.find(runs)
    plan = make_plan(sweep, root)
    wanted = {digest: stage for digest, stage in plan.stages.items() if stage.kind == "convert"}
    prepare_folders(root, replace(plan, stages=wanted), retry_failed=True)
    for stage in wanted.values():
        _convert(stage, root, console)
    return 0


def check(target: str, overrides: Sequence[str], runs: Path | None, console: Console) -> int:
    """Look for the data, hash it anew, read its labels, and list its conversions; 1 when something is wrong."""
    from kdscale.pipeline.artifacts import Root

    wrong = 0
    for stages, data in sections(load_sweep(target, overrides)):
        try:
            _check(stages, data, Root.find(runs), console)
        except DataError as error:
            wrong = 1
            _line(console, f"WRONG  {error}")
    return wrong


def pick(target: str, overrides: Sequence[str], stage: str | None) -> tuple[list[str], DataConfig]:
    """Return the data section of a stage (default: the first), with the names of all stages that have it.

    Raises:
        ConfigError: the config has no such stage.
    """
    found = sections(load_sweep(target, overrides))
    if stage is None:
        return found[0]
    for stages, data in found:
        if stage in stages:
            return stages, data
    known = sorted({name for stages, _ in found for name in stages})
    raise ConfigError(f"--stage {stage}: no such stage; there are: {', '.join(known)}")


def show(
    picked: tuple[list[str], DataConfig], out: Path | None, samples: int, views: range, console: Console
) -> int:  # fmt: skip
    """Draw training views into a PNG.

    Raises:
        DataError: the data is missing or damaged.
    """
    from kdscale import atomic
    from kdscale.report.view_sheet import view_sheet

    stages, data = picked
    sheet = view_sheet(open_dataset(data), data, samples=samples, views=views)
    out = out or Path(f"views-{data.name}.png")
    with atomic.aside(out) as side:
        sheet.save(side, format="PNG")
    eyes = "" if stages == [_PROBE] else f", as {' and '.join(stages)} will see them"
    _line(console, f"{out}: {samples} samples, views {views.start} to {views.stop - 1}{eyes}")
    return 0


def load_sweep(target: str, overrides: Sequence[str]) -> Sweep:
    """Load a config; a data set's name stands for the shipped base config of that name, or for its bare defaults.

    Raises:
        ConfigError: it is neither.
    """
    from kdscale.config.load import load

    if target.startswith("kdscale:") or target.endswith((".yaml", ".yml")) or Path(target).is_file():
        return load(target, overrides)
    known = plugins.available("datasets")
    if target not in known:
        near = get_close_matches(target, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"data sets: {', '.join(known)}"
        raise ConfigError(f"{target}: neither a config file nor a data set; {hint}")
    base = Path(plugins.__file__).parent / "configs" / "base" / f"{target}.yaml"
    extends = f"extends: kdscale:base/{target}.yaml\n" if base.is_file() else ""
    with tempfile.TemporaryDirectory(prefix="kdscale-") as folder:
        file = Path(folder) / f"{target}.yaml"
        file.write_text(f"{extends}name: {target}\ndata: {{name: {target}}}\nstages: {{{_PROBE_STAGE}}}\n")
        return load(file, overrides)


def sections(sweep: Sweep) -> list[tuple[list[str], DataConfig]]:
    """List the distinct data sections of a sweep, each with the names of the stages that have it."""
    from kdscale.config.load import resolve_stages

    found: dict[str, tuple[list[str], DataConfig]] = {}
    for trial in sweep.trials:
        for name, spec in resolve_stages(trial).items():
            stages, _ = found.setdefault(spec.data.model_dump_json(), ([], spec.data))
            if name not in stages:
                stages.append(name)
    return list(found.values())


def open_dataset(data: DataConfig, *, download: bool = True) -> Dataset:
    """Make the plug-in that a data section names."""
    dataset: Dataset = plugins.load("datasets", data.name)(data, download=download)
    return dataset


def _convert(stage: PlannedStage, root: Root, console: Console) -> None:
    from kdscale.jobs.inline import run_one
    from kdscale.train.stop import Stop

    name = stage.definition["name"]
    folder = root.stage(stage.digest)
    assert folder is not None, "its folder was prepared"
    if not stage.reuse.done:
        _line(console, f"converting {name} for the {stage.definition['store_kind']} loader")
        if run_one(root, stage, Stop()) != "done":
            raise DataError(str(folder.state()["reason"]))
    _line(console, f"{name}: {_stored(folder.path / 'store')}")


def _check(stages: list[str], data: DataConfig, root: Root, console: Console) -> None:
    from kdscale.report.view_sheet import labels_of

    dataset = open_dataset(data, download=False)
    info = dataset.info
    shape = f"{info.size} x {info.size} x {info.channels}"
    _line(console, f"{data.name}  {info.train_rows:,} + {info.test_rows:,} images, {shape}, {info.classes} classes")
    if stages != [_PROBE]:
        _line(console, f"  stages       {', '.join(stages)}")
    for text in _about_files(dataset):
        _line(console, f"  files        {text}")
    for split in ("train", "test"):
        _line(console, f"  {split:<12} {_balance(labels_of(dataset.open(split)), info.classes)}")
    _line(console, f"  fingerprint  {dataset.fingerprint()[:12]}")
    for text in _conversions(data.name, dataset.fingerprint(), root) or [
        "none yet; a sweep makes it, or data.py write"
    ]:
        _line(console, f"  converted    {text}")


def _about_files(dataset: Dataset) -> list[str]:
    from kdscale.data.sources import PublishedFiles

    files = getattr(dataset, "files", None)
    if not isinstance(files, PublishedFiles):
        return []
    files.checksums(again=True)
    folders = sorted({str(path.parent) for path in files.locate().values()})
    verdict = "every byte as published" if files.is_published() else "NOT the published bytes: a data set of its own"
    return [f"{', '.join(folders)}: {verdict}"]


def _balance(labels: object, classes: int) -> str:
    import numpy as np

    counts = np.bincount(np.asarray(labels), minlength=classes)
    if counts.min() == counts.max():
        return f"{counts.sum():,} labels, {counts[0]:,} of each class"
    return f"{counts.sum():,} labels, {counts.min():,} to {counts.max():,} of a class"


def _conversions(name: str, fingerprint: str, root: Root) -> list[str]:
    """List the finished conversions of this data, and those of other contents under the same name."""
    found = []
    for folder in root.stages():
        definition = folder.definition() if (folder.path / "stage.yaml").is_file() else {}
        if definition.get("kind") == "convert" and definition.get("name") == name:
            other = "" if definition.get("fingerprint") == fingerprint else " (of other contents)"
            state = folder.state().get("state")
            found.append((_stored(folder.path / "store") if state == "done" else f"{folder.path}: {state}") + other)
    return found


def _stored(path: Path) -> str:
    """Describe a store, after looking whether it is whole."""
    from kdscale.data.store import Store

    try:
        store = Store.open(path)
    except KDScaleError as error:
        return f"DAMAGED {error}"
    size = sum(file.stat().st_size for file in path.iterdir())
    return f"{path}: {store.kind}, {store.encoding}, {store.side} px, {size / 1e6:,.1f} MB"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
