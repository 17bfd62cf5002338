"""A network out of a folder of launch/export.py."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from kdscale.errors import CheckpointError
from kdscale.export.card import broken_files
from kdscale.library.pictures import Preprocess, knowing
from kdscale.nn.input import NetworkInput

__all__ = ["exported_network"]


def exported_network(folder: Path) -> nn.Module:
    """Its `model.pt2`: uint8 images (B, K, H, W) to logits; `.preprocess` makes these of pictures, `.classes` names.

    Raises:
        CheckpointError: a file of the folder is not what was written, or it has no model.pt2.
    """
    program, document = folder / "model.pt2", json.loads((folder / "model.json").read_text())
    if not program.is_file():
        raise CheckpointError(f"{folder} has no model.pt2: export it with --format safetensors,pt2,onnx")
    if broken := broken_files(folder):
        raise CheckpointError(f"{folder / broken[0]} is not what was exported: its checksum differs")
    model: nn.Module = torch.export.load(program).module()
    seen = document["input"]
    inside = NetworkInput(
        given=seen["channels"], given_size=seen["size"], channels=seen["inside"]["channels"],
        size=seen["inside"]["size"], mean=seen["inside"]["mean"], std=seen["inside"]["std"],
    )  # fmt: skip
    return knowing(model, Preprocess(inside).stored, document["class_names"])
