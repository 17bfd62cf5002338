"""Distillation the usual way, for comparison: written out plainly, or by torchdistill from the package index.

    python -m benchmarks.usual FOLDER DEPTH plain|torchdistill STEPS

Pictures are PIL images, transformed by torchvision, loaded by two worker processes of a DataLoader; the teacher answers
live; all is fp32, on all cores by threads; the plain loop looks at its loss at every step, as tutorials do. Networks,
hyper-parameters and pictures are those of benchmarks/train.yaml. Of kdscale it has the model, and what lets torchvision
load beside a torch without CUDA.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.bare import LR, MOMENTUM, TEMPERATURE, WEIGHT_DECAY, soft_target_loss
from benchmarks.turns import Turns, forget_peak
from kdscale.models.resnet_cifar import ResNetCifar
from kdscale.nn.foreign import let_torchvision_load

BATCH = 64
LOADER_WORKERS = 2
TEACHER_DEPTH = 56
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9
_ANSWER = {"path": ".", "io": "output"}


class Pictures(Dataset[tuple[Any, int]]):
    """Fashion-MNIST as torchvision's own class gives it: each item a PIL image, transformed, and its label."""

    def __init__(self, folder: Path) -> None:
        self.images, self.labels = np.load(folder / "originals.npy"), np.load(folder / "original_labels.npy")
        mean, std = np.load(folder / "pixels.npy").tolist()
        let_torchvision_load()  # its wheel wants a CUDA build of torch
        from torchvision import transforms

        self.transform = transforms.Compose(
            [
                transforms.Pad(2),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((mean,), (std,)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def networks(depth: int, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Teacher and student; which weights they have decides no time."""
    torch.manual_seed(seed)
    return ResNetCifar(classes=10, channels=1, depth=TEACHER_DEPTH), ResNetCifar(classes=10, channels=1, depth=depth)


def plain(pictures: Pictures, depth: int) -> Iterator[None]:
    """Distil between fresh networks for ever."""
    teacher, student = networks(depth)
    yield from distilled(pictures, teacher, student, sgd(student, LR))


def sgd(student: nn.Module, lr: float) -> torch.optim.SGD:
    """The optimizer, as benchmarks/train.yaml has it."""
    return torch.optim.SGD(student.parameters(), lr=lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)


def distilled(
    pictures: Pictures, teacher: nn.Module, student: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Train for ever; yields before each step, when its batch is there."""
    teacher.eval()
    loader = DataLoader(pictures, batch_size=BATCH, shuffle=True, num_workers=LOADER_WORKERS, drop_last=True)
    running = 0.0
    while True:
        for images, labels in loader:
            yield
            with torch.no_grad():
                answer = teacher(images)
            logits = student(images)
            loss = CE_WEIGHT * F.cross_entropy(logits, labels) + KD_WEIGHT * soft_target_loss(logits, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running = 0.9 * running + 0.1 * loss.item()


def by_torchdistill(pictures: Pictures, depth: int) -> Iterator[None]:
    """The same by torchdistill's own distillation box."""
    from torchdistill.core.distillation import get_distillation_box

    teacher, student = networks(depth)
    box = get_distillation_box(teacher, student, {"train": pictures}, _config(), torch.device("cpu"), None, False, 1.0)
    epoch = 0
    while True:
        box.pre_epoch_process(epoch=epoch)
        for images, labels, further in box.train_data_loader:
            yield
            loss = box.forward_process(images, labels, further)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
        epoch += 1


def _config() -> dict[str, Any]:
    """Of torchdistill: cross-entropy and soft targets are one loss there."""
    answers = {f"{who}_module_{what}": where for who in ("student", "teacher") for what, where in _ANSWER.items()}
    network = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None}
    return {
        "num_epochs": 1_000_000,
        "train_data_loader": {
            "dataset_id": "train", "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": BATCH, "num_workers": LOADER_WORKERS, "drop_last": True},
        },
        "teacher": network | {"requires_grad": False},
        "student": network | {"requires_grad": True},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": LR, "momentum": MOMENTUM, "nesterov": True, "weight_decay": WEIGHT_DECAY},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {**answers, "temperature": TEMPERATURE, "alpha": CE_WEIGHT},
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
    }  # fmt: skip


def main(folder: str, depth: str, way: str, steps: str) -> None:
    """Take turns until standard input ends."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    turns = Turns(int(steps), forget_peak())
    ways = {"plain": plain, "torchdistill": by_torchdistill}
    for _ in turns.between(ways[way](Pictures(Path(folder)), int(depth))):
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
