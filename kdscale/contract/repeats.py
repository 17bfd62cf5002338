"""Whether code draws from a generator that is nobody's: its steps would not come out the same after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from kdscale.contract.checks import Broken, shown
from kdscale.contract.source import bare_draws

__all__ = ["require_no_draws"]

_MEND = "draw by kdscale.draws, a function of rows and step, or pass a generator seeded from it"


def require_no_draws(run: Callable[[], object], file: Path, of_class: str) -> None:
    """Look for draws in a class's file, and whether torch's own generator moves while something runs in eval.

    Raises:
        Broken: with the line, where the file tells it.
    """
    for line, what in bare_draws(file, of_class=of_class):
        raise Broken(f"{what} draws anew each time", _MEND, where=f"{shown(file)}:{line}")
    before = torch.get_rng_state()
    run()
    if not torch.equal(before, torch.get_rng_state()):
        raise Broken("torch's global generator moves", _MEND)
