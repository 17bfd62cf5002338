"""What a folder says of its network: model.json for programs, CARD.md for people, SHA256SUMS for both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["broken_files", "card", "checksums", "write_json"]

SUMS = "SHA256SUMS"
_FIGURES = {"top1": "top-1", "top5": "top-5", "miou": "mean IoU", "ece": "calibration error", "nll": "cross-entropy"}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document for programs."""
    path.write_text(json.dumps(document, indent=1) + "\n")


def card(document: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """CARD.md: what the network is, how good, of what made, and which file is for what.

    Args:
        document: as model.json holds it.
        files: what each file is, by name.
    """
    seen, metrics = document["input"], document["metrics"]
    shown = [f"| {word} | {metrics[name]:.4f} |" for name, word in _FIGURES.items() if metrics.get(name) is not None]
    kinds = {1: "grey", 3: "RGB"}
    weights, trained = document["weights"], document["trained"]
    lines = [
        f"# {document['name']}",
        "",
        f"{document['model']}, {document['parameters']:,} parameters, {len(document['class_names'])} classes.",
        "",
        "## Use",
        "",
        "    python use_me.py picture.png",
        "",
        f"It takes uint8 images (B, {seen['channels']}, {seen['size']}, {seen['size']}), "
        f"{kinds.get(seen['channels'], 'of other kind')}, 0 to 255; what they are scaled and normalised by is inside.",
        "Classes, in the order of the logits: " + ", ".join(document["class_names"]) + ".",
        "",
        "## Figures on the test set"
        + ("" if weights["selector"] == document["metrics_of"] else ", of its last weights"),
        "",
        "| | |",
        "|---|--:|",
        *shown,
        "",
        f"Weights: `{weights['selector']}`{', averaged over steps (EMA)' if weights['ema'] else ''}, "
        f"hash {weights['hash']}.",
        "",
        "## Where it is from",
        "",
        *(_parent(one) for one in document["lineage"]),
        f"- this: stage {document['stage']}, {trained['steps']:,} steps, by kdscale {trained['kdscale']}, "
        f"torch {trained['torch']}",
        *([f"- command: `{document['command']}`"] if document["command"] else []),
        "",
        "## Files",
        "",
        *(f"- `{name}`: {what}" for name, what in files.items()),
        "",
        "## Checked against the trained network",
        "",
        f"On {document['checked']['images']:,} test images, in batches of "
        f"{', '.join(map(str, document['checked']['batches']))}.",
        "",
        "| file | largest difference of a logit | same class | top-1 |",
        "|---|--:|--:|--:|",
        *(_checked(one) for one in document["checked"]["files"]),
    ]
    return "\n".join(lines) + "\n"


def _parent(one: Mapping[str, Any]) -> str:
    cache = f", its answers kept in cache {one['cache']}" if one.get("cache") else ""
    return f"- {one['role']}: stage {one['stage']}, weights {one['weights']} (`{one['selector']}`){cache}"


def _checked(one: Mapping[str, Any]) -> str:
    return f"| {one['what']} | {one['largest']:.2g} | {100 * one['same_top1']:.2f} % | {one['top1']:.4f} |"


def checksums(folder: Path) -> None:
    """Write SHA256SUMS of every file of a folder, as `sha256sum --check` reads it."""
    lines = [f"{digest}  {name}" for name, digest in _sums(folder).items()]
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def broken_files(folder: Path) -> list[str]:
    """Names of files that are not what SHA256SUMS says or are gone; that file's own, where there is none."""
    if not (folder / SUMS).is_file():
        return [SUMS]
    wanted = dict(line.split("  ", 1)[::-1] for line in (folder / SUMS).read_text().splitlines())
    found = _sums(folder)
    return [name for name, digest in wanted.items() if found.get(name) != digest]


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
