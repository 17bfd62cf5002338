"""Each exported file against the network that was trained, on test images."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.errors import StageError

__all__ = ["BATCHES", "Answer", "Comparison", "alone", "compare", "in_batches", "latency_ms", "tried"]

BATCHES = (1, 7, 64)
TOLERANCE = 2e-3
"""Largest difference of a logit, of the largest logit: other kernels add in another order."""
Answer = Callable[[Tensor, int], Tensor]
"""From images (N, K, H, W), answered so many at a time, to logits (N, C, ...)."""


@dataclass(frozen=True)
class Comparison:
    """How far a file's answers are from the network's own."""

    what: str
    largest: float
    """Difference of any logit."""
    scale: float
    """The largest logit."""
    same_top1: float
    """Share of images with the same class."""
    top1: float
    """Accuracy of the file's answers."""
    batches: tuple[int, ...]
    """Sizes that were tried."""

    @property
    def equal(self) -> bool:
        """Whether it may be called the same network: only ties may fall differently."""
        return self.largest <= TOLERANCE * max(1.0, self.scale) and self.same_top1 >= 0.998

    def document(self) -> dict[str, Any]:
        """As model.json holds it."""
        return asdict(self)


def compare(what: str, answer: Answer, images: Tensor, expected: Tensor, labels: Tensor) -> Comparison:
    """Answer all images in batches of every size and compare.

    Args:
        what: the file.
        answer: what reads it.
        images: (N, K, H, W), uint8.
        expected: the network's own logits.
        labels: (N, ...); those of ignored pixels count for no accuracy.
    """
    found = answer(images, max(BATCHES))
    for size in BATCHES[:-1]:
        few = answer(images[: 3 * size], size)
        torch.testing.assert_close(few, found[: len(few)], rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max()))
    picked, ours = expected.argmax(1), found.argmax(1)
    counted = labels < expected.shape[1]
    return Comparison(
        what=what,
        largest=float((found - expected).abs().max()),
        scale=float(expected.abs().max()),
        same_top1=float((picked == ours).float().mean()),
        top1=float((ours == labels)[counted].float().mean()),
        batches=BATCHES,
    )


def in_batches(call: Callable[[Tensor], Tensor]) -> Answer:
    """What answers a batch as what answers any number of images."""

    def answer(images: Tensor, size: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([call(part).float() for part in torch.split(images, size)])

    return answer


def latency_ms(call: Callable[[Tensor], Tensor], image: Tensor, *, calls: int = 50) -> float:
    """Median milliseconds of one image."""
    spent = []
    for _ in range(calls + 5):
        begun = time.perf_counter()
        call(image)
        spent.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(spent[5:])


HIDDEN = ("kdscale", "numpy", "PIL", "safetensors", "onnx", "onnxruntime", "pydantic", "yaml", "torchvision", "timm")
"""What a process that tries a folder finds as little as if it were not installed."""
_HIDE = "import sys\nfor name in sys.argv[1].split(','): sys.modules[name] = None\nsys.path.insert(0, sys.argv[2])\n"
_WITH_TORCHVISION = (
    "import sys\nsys.path.insert(0, sys.argv[2])\n"
    "from kdscale.nn.foreign import let_torchvision_load\nlet_torchvision_load()\n"  # beside a torch without CUDA
)
_ANSWER = """
import torch
from modeling import load
given, answered, size, threads = sys.argv[3:]
torch.set_num_threads(int(threads))
model, images = load(), torch.load(given, weights_only=True)
with torch.no_grad():
    torch.save(torch.cat([model(part) for part in images.split(int(size))]), answered)
"""
_USE = "import runpy\nsys.argv = sys.argv[3:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"


def alone(folder: Path, needs: Sequence[str]) -> Answer:
    """modeling.py in a process of its own, which finds torch and nothing of kdscale's.

    Args:
        folder: where modeling.py and model.safetensors lie.
        needs: packages that it imports beside torch; where there are any, nothing is hidden.
    """

    def answer(images: Tensor, size: int) -> Tensor:
        with tempfile.TemporaryDirectory() as name:
            given, answered = Path(name) / "images.pt", Path(name) / "logits.pt"
            torch.save(images, given)
            _by_itself(folder, _ANSWER, needs, str(given), str(answered), str(size), str(torch.get_num_threads()))
            logits: Tensor = torch.load(answered, weights_only=True)
            return logits

    return answer


def tried(folder: Path, picture: Path, needs: Sequence[str]) -> str:
    """What use_me.py says of a picture, in such a process."""
    return _by_itself(folder, _USE, needs, str(folder / "use_me.py"), str(picture))


def _by_itself(folder: Path, code: str, needs: Sequence[str], *arguments: str) -> str:
    before = _WITH_TORCHVISION if needs else _HIDE  # timm imports torchvision too
    command = [
        sys.executable,
        "-I",
        "-B",
        "-c",
        before + code,
        ",".join(("kdscale",) if needs else HIDDEN),
        str(folder),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(f"{folder.name} cannot be used by itself:\n{done.stderr.strip()[-2000:]}")
    return done.stdout.strip()
