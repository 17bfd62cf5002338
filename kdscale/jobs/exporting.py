"""`launch/export.py`: a finished stage's network as a folder, each file of it checked against the network."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kdscale.errors import StageError
from kdscale.export import card, formats
from kdscale.export.check import Answer, Comparison, alone, compare, in_batches, latency_ms, tried
from kdscale.export.deployed import Deployed, Part, describe, parts_of
from kdscale.export.modeling import Recipe, modeling, recipe_of, use_me, why_not
from kdscale.jobs.export_source import Finished, command_of, finished_stage, lineage
from kdscale.jobs.named_stages import short_name
from kdscale.pipeline.artifacts import Root
from kdscale.report.citations import bibliography_of

__all__ = ["Export", "Wish", "export"]

_PICTURE = "example.png"
_INT8 = {"top1": ".4f", "latency_ms": ".2f", "kib": ",.0f"}


@dataclass(frozen=True)
class Wish:
    """What is to be exported, and how."""

    name: str
    formats: Sequence[str] = formats.FORMATS
    selector: str = "last"
    out: Path = Path("exports")
    int8: bool = False
    force: bool = False


@dataclass
class Export:
    """A folder in the making."""

    path: Path
    files: dict[str, str]
    """What each is, by name."""
    comparisons: list[Comparison]
    document: dict[str, Any]
    said: list[str]
    needs: tuple[str, ...] = ()
    """Packages beside torch that modeling.py imports."""
    int8: dict[str, Any] | None = None
    """What int8 costs and saves."""


def export(root: Root, wish: Wish, say: Callable[[str], None]) -> Path:
    """Write a folder for a finished stage; returns it. A folder that is there whole stays as it is, unless forced.

    Raises:
        ConfigError: nothing is called so, or a format cannot be had.
        StageError: the stage is not done, or a file's answers are not the network's.
    """
    finished = finished_stage(root, wish.name, wish.selector)
    target = wish.out / short_name(finished.folder)
    if target.exists() and not wish.force:
        raise StageError(f"{target} is there already: --force writes it anew, --out writes elsewhere")
    wish.out.mkdir(parents=True, exist_ok=True)
    side = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=wish.out))
    try:
        made = _written(finished, wish, root, side)
        if target.exists():
            shutil.rmtree(target)
        side.chmod(0o755)
        side.rename(target)
    finally:
        shutil.rmtree(side, ignore_errors=True)
    for line in [*_lines(made, target), *made.said]:
        say(line)
    return target


# ------------------------------------------------------------------------------- the folder


def _written(finished: Finished, wish: Wish, root: Root, folder: Path) -> Export:
    made = Export(folder, {}, [], {}, [])
    network, info, parts = finished.network, finished.info, parts_of(finished.network)
    reason = why_not(finished.spec.student)
    if "safetensors" in wish.formats:
        formats.write_safetensors(network.model, folder / "model.safetensors")
        made.files["model.safetensors"] = "the weights, under the model's own names"
        if reason is None:
            recipe = recipe_of(finished.spec.student, network, info, finished.spec.plugins)
            _write_modeling(made, finished, recipe)
        else:
            made.said.append(f"no modeling.py: {reason}")
    for part in parts:
        _write_part(made, finished, part, wish)
    if "modeling.py" in made.files or "model.pt2" in made.files:
        _write_use_me(made, finished)
    bibliography = bibliography_of(finished.spec)
    (folder / "CITATION.bib").write_text(bibliography)
    made.files["CITATION.bib"] = "what to cite"
    made.document = _document(finished, wish, root, made)
    card.write_json(folder / "model.json", made.document)
    made.files["model.json"] = "all of this for programs"
    (folder / "CARD.md").write_text(card.card(made.document, made.files))
    card.checksums(folder)
    return made


def _write_modeling(made: Export, finished: Finished, recipe: Recipe) -> None:
    (made.path / "modeling.py").write_text(modeling(recipe, finished.network, finished.info))
    made.needs = recipe.needs
    made.files["modeling.py"] = f"the architecture; imports torch{''.join(f' and {one}' for one in recipe.needs)} only"
    _compared(made, finished, "modeling.py", alone(made.path, recipe.needs))


def _write_part(made: Export, finished: Finished, part: Part, wish: Wish) -> None:
    whole = isinstance(part.module, Deployed)
    if "pt2" in wish.formats:
        name = f"{part.name}.pt2"
        formats.write_pt2(part, made.path / name)
        made.files[name] = f"a torch.export program, {part.input} to {part.output}"
        if whole:
            _compared(made, finished, name, in_batches(torch.export.load(made.path / name).module()))
    if "onnx" in wish.formats:
        name = f"{part.name}.onnx"
        formats.write_onnx(part, made.path / name)
        made.files[name] = f"ONNX, opset {formats.OPSET}, any batch, {part.input} to {part.output}"
        if whole:
            _compared(made, finished, name, in_batches(formats.Session(made.path / name)))
            if wish.int8:
                _write_int8(made, finished)
    if part.name == "server":
        _check_split(made, finished, wish)


def _check_split(made: Export, finished: Finished, wish: Wish) -> None:
    """Both sides of a split head, one after the other."""
    loaders: dict[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {
        "pt2": lambda path: torch.export.load(path).module(), "onnx": formats.Session,
    }  # fmt: skip
    for ending in wish.formats:
        if ending in loaders:
            device, server = (loaders[ending](made.path / f"{side}.{ending}") for side in ("device", "server"))
            name = f"device.{ending} + server.{ending}"
            _compared(made, finished, name, in_batches(lambda x, d=device, s=server: s(d(x))))  # type: ignore[misc]


def _write_int8(made: Export, finished: Finished) -> None:
    plain, small = made.path / "model.onnx", made.path / "model.int8.onnx"
    formats.quantise(plain, small, torch.split(finished.training_images, 64))
    made.files[small.name] = f"the same in int8; ranges from {len(finished.training_images)} training images"
    sessions = {path.name: formats.Session(path) for path in (plain, small)}
    found = compare(small.name, in_batches(sessions[small.name]), finished.images, finished.expected, finished.labels)
    made.comparisons.append(found)
    spent = {name: latency_ms(session, finished.images[:1]) for name, session in sessions.items()}
    before = next(one for one in made.comparisons if one.what == plain.name)
    made.int8 = {
        "top1": [before.top1, found.top1], "latency_ms": [spent[plain.name], spent[small.name]],
        "kib": [path.stat().st_size / 1024 for path in (plain, small)],
    }  # fmt: skip
    words = [f"{made.int8[key][0]:{how}} -> {made.int8[key][1]:{how}}" for key, how in _INT8.items()]
    made.said.append("int8     top-1 {}, {} ms an image, {} KiB".format(*words))


def _write_use_me(made: Export, finished: Finished) -> None:
    network, info = finished.network, finished.info
    text = use_me(network, info.class_names, has_modeling="modeling.py" in made.files, per_pixel=network.per_pixel)
    (made.path / "use_me.py").write_text(text)
    made.files["use_me.py"] = "classifies a picture; torch only"
    made.files[_PICTURE] = "a test image"
    pixels = finished.images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels.squeeze()).save(made.path / _PICTURE)
    answer = tried(made.path, made.path / _PICTURE, made.needs).removeprefix(str(made.path / _PICTURE)).strip()
    if not network.per_pixel:
        best = info.class_names[int(finished.expected[0].argmax())]
        if not answer.startswith(best):
            raise StageError(f"use_me.py says {answer!r} of a test image that the network takes for {best}")
    made.said.append(f"tried    python use_me.py {_PICTURE}   {answer}")


def _compared(made: Export, finished: Finished, what: str, answer: Answer) -> None:
    found = compare(what, answer, finished.images, finished.expected, finished.labels)
    if not found.equal:
        raise StageError(
            f"{what} does not answer as the network does: logits differ by {found.largest:.3g} (of {found.scale:.3g}), "
            f"the class in {100 * (1 - found.same_top1):.2f} % of images; nothing was exported"
        )
    made.comparisons.append(found)


# ------------------------------------------------------------------------------- what it says


def _document(finished: Finished, wish: Wish, root: Root, made: Export) -> dict[str, Any]:
    folder, spec, state = finished.folder, finished.spec, finished.folder.state()
    attempt = state["attempts"][-1]
    return {
        "schema": 1, "name": short_name(folder), "stage": folder.digest,
        "model": state["results"]["model"], "parameters": sum(p.numel() for p in finished.network.model.parameters()),
        "input": describe(finished.network), "class_names": list(finished.info.class_names),
        "per_pixel": finished.network.per_pixel,
        "weights": {
            "selector": wish.selector, "ema": spec.train.ema is not None, "hash": state["weights"][wish.selector],
        },
        "metrics": {key: value for key, value in state["results"].items() if isinstance(value, int | float)},
        "metrics_of": "last",  # the weights that are evaluated when a stage ends
        "lineage": [*lineage(finished)],
        "command": command_of(folder, root),
        "trained": {"steps": state["step"], "kdscale": attempt["kdscale"], "torch": attempt["torch"]},
        "int8": made.int8,
        "checked": {
            "images": len(finished.images), "batches": list(made.comparisons[0].batches) if made.comparisons else [],
            "files": [one.document() for one in made.comparisons],
        },
    }  # fmt: skip


def _lines(made: Export, target: Path) -> list[str]:
    lines = [f"{target}/"]
    width = max(map(len, made.files))
    lines += [f"  {name:<{width}}  {what}" for name, what in made.files.items()]
    lines += [f"  {'CARD.md':<{width}}  the same for people", f"  {card.SUMS:<{width}}  of all files"]
    return lines + [
        f"checked  {one.what}: max |dlogit| {one.largest:.2g}, same class {100 * one.same_top1:.2f} %, "
        f"top-1 {one.top1:.4f}"
        for one in made.comparisons
    ]
