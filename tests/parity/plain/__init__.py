"""The formulas of METHODS-losses.md in plain torch, as literally as they stand there; nothing here knows kdscale.

Each function takes a case of the golden format (inputs and weights by the file's names, hyper-parameters) and gives
its outputs by the file's names.
"""

from __future__ import annotations

from tests.parity.plain import learned, logits, maps, relations
from tests.parity.plain.logits import Plain

__all__ = ["PLAIN"]

PLAIN: dict[str, Plain] = logits.PLAIN | maps.PLAIN | relations.PLAIN | learned.PLAIN
