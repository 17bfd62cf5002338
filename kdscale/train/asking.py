"""Asking a stage's teachers about a batch: each network once, ensembles from its answer."""

from __future__ import annotations

from collections.abc import Sequence

from kdscale.api import Batch, Outputs, Teacher
from kdscale.teachers.ensemble import Ensemble

__all__ = ["ask"]


def ask(teachers: Sequence[Teacher | Ensemble], batch: Batch) -> dict[str, Outputs]:
    """Every teacher's answer, by name, in the order given.

    Args:
        teachers: in any order; the members of an ensemble are among them.
        batch: on their device.
    """
    answers = {teacher.name: teacher(batch) for teacher in teachers if not isinstance(teacher, Ensemble)}
    return {t.name: t(answers) if isinstance(t, Ensemble) else answers[t.name] for t in teachers}
