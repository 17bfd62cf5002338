"""A distillation the usual way to its end: the plain loop of benchmarks/usual.py under a schedule, then its accuracy.

    python -m benchmarks.usual_whole FOLDER DEPTH EPOCHS TEACHER        TEACHER: a network's safetensors

Prints one JSON line: the student's top-1 on test.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.bare import LR, MOMENTUM, WEIGHT_DECAY, soft_target_loss
from benchmarks.usual import BATCH, CE_WEIGHT, KD_WEIGHT, LOADER_WORKERS, Pictures, networks

PEAK_LR = LR * BATCH / 128
"""Of kdscale's, whose batches are twice as large."""


def train(pictures: Pictures, teacher: nn.Module, student: nn.Module, epochs: int) -> None:
    """As a tutorial does it: a live teacher, fp32, the loss looked at in every step."""
    loader = DataLoader(pictures, batch_size=BATCH, shuffle=True, num_workers=LOADER_WORKERS, drop_last=True)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=PEAK_LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    rise, total = len(loader), epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / rise if step < rise else (total - step) / max(1, total - rise)
    )
    running = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            with torch.no_grad():
                answer = teacher(images)
            logits = student(images)
            loss = CE_WEIGHT * F.cross_entropy(logits, labels) + KD_WEIGHT * soft_target_loss(logits, answer)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            running = 0.9 * running + 0.1 * loss.item()


@torch.no_grad()
def top1(student: nn.Module, folder: Path) -> float:
    """The share of test pictures that are told right."""
    images, labels = np.load(folder / "test.npy"), torch.from_numpy(np.load(folder / "test_labels.npy"))
    mean, std = np.load(folder / "pixels.npy").tolist()
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    pixels = torch.from_numpy((padded[:, None] / 255 - mean) / std).float()
    found = torch.cat([student(pixels[at : at + 500]).argmax(1) for at in range(0, len(pixels), 500)])
    return float((found == labels).float().mean())


def main(place: str, depth: str, epochs: str, weights: str) -> None:
    """Train and say what it came to."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder = Path(place)
    teacher, student = networks(int(depth))
    teacher.load_state_dict(load_file(weights))
    teacher.eval()
    train(Pictures(folder), teacher, student, int(epochs))
    student.eval()
    print(json.dumps({"top1": top1(student, folder)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
