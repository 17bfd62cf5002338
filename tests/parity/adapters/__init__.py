"""How each method's golden vectors map to kdscale's losses: one declarative entry a method.

An entry depends on the method and its hyper-parameters only, never on a file or case. `outs` says for each expected
output what computes it: a weighted sum of losses (`terms`), each with the options that `options` derives from the
hyper-parameters, or any function of the case.
"""

from __future__ import annotations

from tests.parity.adapters import learned, logits, maps, relations
from tests.parity.cases import Adapter

__all__ = ["ADAPTERS"]

ADAPTERS: dict[str, Adapter] = logits.ADAPTERS | maps.ADAPTERS | relations.ADAPTERS | learned.ADAPTERS
