"""The bare loop that kdscale is measured against: DistributedDataParallel as one writes it by hand, and nothing else.

    python -m benchmarks.bare FOLDER CASE PRECISION STEPS [BATCH]      with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT

It has the whole train set in memory, shuffled and augmented beforehand, so that a batch is a slice; it logs nothing,
saves nothing and checks nothing. Model, precision, optimizer, schedule and batch are those of configs/quickstart.yaml:
`ce` is its teacher, `kd` its assistant, whose teacher answers folded and channels-last. `resnet8` and `resnet20` are
the students of benchmarks/train.yaml, without a teacher. Of kdscale it has the model alone, whose file knows torch.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # torch does so by itself when the first optimizer is made; on both sides it counts as an import
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.turns import Turns, forget_peak
from kdscale.models.resnet_cifar import ResNetCifar

BATCH = 128
LR, MOMENTUM, WEIGHT_DECAY = 0.2, 0.9, 5e-4
EPOCHS = 100
TEMPERATURE, WEIGHT = 4.0, 0.5
STUDENT_DEPTH = {"ce": 20, "kd": 14, "resnet8": 8, "resnet20": 20}
TEACHER_DEPTH = 20
DTYPE = {"bf16": torch.bfloat16, "fp32": None}


class Folded(nn.Module):
    """A finished network with its BatchNorms folded into the convolutions before them."""

    def __init__(self, network: ResNetCifar) -> None:
        super().__init__()
        network.eval()
        network.stem[0], network.stem[1] = fuse_conv_bn_eval(network.stem[0], network.stem[1]), nn.Identity()
        for block in (*network.stage1, *network.stage2, *network.stage3):
            block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
            block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
            if isinstance(block.downsample, nn.Sequential):
                block.downsample = fuse_conv_bn_eval(block.downsample[0], block.downsample[1])
        self.network = network.requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.network(images)


def soft_target_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the softened classes, times temperature squared."""
    log_p = (student / TEMPERATURE).log_softmax(dim=1)
    log_q = (teacher / TEMPERATURE).log_softmax(dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * TEMPERATURE**2


def normaliser(folder: Path) -> tuple[float, float]:
    """What uint8 pixels are multiplied by, and what is added then."""
    mean, std = np.load(folder / "pixels.npy").tolist()
    return 1 / (255 * std), -mean / std


def train(folder: Path, case: str, precision: str, turns: Turns, global_batch: int = BATCH) -> None:
    """Train until the turns are over."""
    rank, world = dist.get_rank(), dist.get_world_size()
    images = torch.from_numpy(np.load(folder / "images.npy"))
    labels = torch.from_numpy(np.load(folder / "labels.npy"))
    scale, shift = normaliser(folder)
    torch.manual_seed(0)
    student = ResNetCifar(classes=10, channels=1, depth=STUDENT_DEPTH[case]).to(memory_format=torch.channels_last)
    teacher = Folded(ResNetCifar(classes=10, channels=1, depth=TEACHER_DEPTH)) if case == "kd" else None
    model = DistributedDataParallel(student, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, foreach=True
    )
    autocast: dict[str, Any] = {"device_type": "cpu", "dtype": DTYPE[precision], "enabled": precision != "fp32"}
    mine, steps = global_batch // world, len(images) // global_batch
    total = EPOCHS * steps
    for step in turns.over(total):
        for group in optimizer.param_groups:
            group["lr"] = LR * (step + 1) / steps if step < steps else LR * (total - step) / (total - steps)
        begin = step % steps * global_batch + rank * mine
        batch = images[begin : begin + mine].to(torch.float32, memory_format=torch.channels_last)
        batch, target = batch.mul_(scale).add_(shift), labels[begin : begin + mine]
        if teacher is not None:
            with torch.no_grad(), torch.autocast(**autocast):
                answer = teacher(batch)
        with torch.autocast(**autocast):
            logits = model(batch)
        loss = F.cross_entropy(logits.float(), target)
        if teacher is not None:
            loss = WEIGHT * loss + WEIGHT * soft_target_loss(logits.float(), answer.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert math.isfinite(loss.item())


def main(folder: str, case: str, precision: str, steps: str, batch: str = str(BATCH)) -> None:
    """Take turns until standard input ends."""
    torch.set_num_threads(1)
    turns = Turns(int(steps), forget_peak())
    dist.init_process_group("gloo")
    train(Path(folder), case, precision, turns, int(batch))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # past gloo's threads, which sometimes abort a process that has done its work
