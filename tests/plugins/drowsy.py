"""Networks that take their time, so that stages can be hit in the middle however fast a machine is.

Only the clock knows the difference: values, parameters and their names are those of `resnet_cifar`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdscale.models.resnet_cifar import ResNetCifar

PAUSE_S = 0.02
"""Ten batches last twice as long as a disturber waits between looks."""

_OWN = (f"plugins.path=[{Path(__file__).parent}]", "plugins.allow=[drowsy]")
SLOW_STUDENT = (*_OWN, "stages.student.student.model=drowsy:Trained")
SLOW_PAIR = (*SLOW_STUDENT, "stages.teacher.student.model=drowsy:Trained")
"""Where teacher and student have to be of one class."""
SLOW_TEACHER = (*_OWN, "stages.teacher.student.model=drowsy:Asked")
SLOWLY_TAUGHT = (*_OWN, "stages.teacher.student.model=drowsy:Trained")
"""Where it is the teacher's own training that is hit."""


class _Pause(nn.ReLU):
    def __init__(self, *, training: bool) -> None:
        super().__init__(inplace=True)
        self.when = training

    def forward(self, input: Tensor) -> Tensor:  # as the parent names it
        if self.training is self.when and len(input):  # a length, or who traces it would take the pause out
            time.sleep(PAUSE_S)
        return super().forward(input)


class Trained(ResNetCifar):
    """Pauses in each batch that it is trained on, in its stem, which whoever takes it apart runs through as well."""

    def __init__(self, *, classes: int, channels: int, **options: Any) -> None:
        super().__init__(classes=classes, channels=channels, **options)
        self.stem[2] = _Pause(training=True)


class Asked(ResNetCifar):
    """Pauses where it is only asked: as a teacher, and where it is evaluated."""

    def __init__(self, *, classes: int, channels: int, **options: Any) -> None:
        super().__init__(classes=classes, channels=channels, **options)
        self.stem[2] = _Pause(training=False)
