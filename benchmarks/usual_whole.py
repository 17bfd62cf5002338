"""A distillation the usual way to its end: the plain loop of benchmarks/usual.py under a schedule, then its accuracy.

    python -m benchmarks.usual_whole FOLDER DEPTH EPOCHS TEACHER SEED       TEACHER: a network's safetensors

Prints one JSON line: the student's top-1 on test.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.bare import LR
from benchmarks.usual import BATCH, Pictures, distilled, networks, sgd

PEAK_LR = LR * BATCH / 128
"""Of kdscale's, whose batches are twice as large."""


def train(pictures: Pictures, teacher: nn.Module, student: nn.Module, epochs: int) -> None:
    """The usual loop under a schedule, for so many epochs."""
    optimizer = sgd(student, PEAK_LR)
    rise = len(pictures) // BATCH
    total = epochs * rise
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / rise if step < rise else (total - step) / max(1, total - rise)
    )
    for step, _ in enumerate(distilled(pictures, teacher, student, optimizer)):
        if step == total:
            break
        if step:
            schedule.step()


@torch.no_grad()
def top1(student: nn.Module, folder: Path) -> float:
    """The share of test pictures that are told right."""
    images, labels = np.load(folder / "test.npy"), torch.from_numpy(np.load(folder / "test_labels.npy"))
    mean, std = np.load(folder / "pixels.npy").tolist()
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    pixels = torch.from_numpy((padded[:, None] / 255 - mean) / std).float()
    found = torch.cat([student(pixels[at : at + 500]).argmax(1) for at in range(0, len(pixels), 500)])
    return float((found == labels).float().mean())


def main(place: str, depth: str, epochs: str, weights: str, seed: str) -> None:
    """Train and say what it came to."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder = Path(place)
    teacher, student = networks(int(depth), int(seed))
    teacher.load_state_dict(load_file(weights))
    train(Pictures(folder), teacher, student, int(epochs))
    student.eval()
    print(json.dumps({"top1": top1(student, folder)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
