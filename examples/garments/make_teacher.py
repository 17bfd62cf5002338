"""Train a small vision transformer of timm's on the pictures: it stands for a checkpoint that somebody gave you.

Nothing of kdscale's training is in it. Its classes are the folders in order; it wants pixels in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kdscale.nn.foreign import origin_of  # timm.create_model, on a CPU build of torch too

EPOCHS, BATCH = 12, 50


def pictures(split: str) -> tuple[Tensor, Tensor]:
    """All of a split: (N, 3, 28, 28) in [-1, 1], and labels (N,)."""
    folders = sorted(Path("pictures", split).iterdir())
    files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file, _ in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([label for _, label in files])


def main() -> None:
    """Train, and save as people do."""
    torch.manual_seed(0)
    images, labels = pictures("train")
    vit = origin_of("timm:vit_tiny_patch16_224").make(
        num_classes=10, img_size=28, patch_size=7, embed_dim=48, depth=3, num_heads=3
    )  # fmt: skip
    optimizer = torch.optim.AdamW(vit.parameters(), lr=2e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=EPOCHS * (len(images) // BATCH))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = F.cross_entropy(vit(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    vit.eval()
    with torch.no_grad():
        images, labels = pictures("test")
        right = (vit(images).argmax(1) == labels).float().mean().item()
    torch.save({"model": vit.state_dict(), "epoch": EPOCHS}, "vit.pth")
    print(f"vit.pth: {right:.3f} of the test pictures are right")


if __name__ == "__main__":
    main()
