"""What a key may be set to: the space of random draws and of a search.

{uniform: [A, B]}  {loguniform: [A, B]}  {integer: [A, B]}  {choice: [...]}     a list alone is a choice
{uniform: [A, B], step: S}  {integer: [A, B], step: S}                          A, A + S, ... up to B
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from kdscale.errors import ConfigError

__all__ = ["Dimension", "dimension"]

KINDS = ("uniform", "loguniform", "integer", "choice")
_SAY = "say uniform: [a, b], loguniform: [a, b], integer: [a, b], with a < b, or choice: [...]"
STEPS = "step is for uniform and integer, a number above 0 and no wider than b - a"


@dataclass(frozen=True)
class Dimension:
    """The values of one key."""

    kind: str
    low: float | int = 0
    high: float | int = 0
    step: float | int | None = None
    choices: tuple[Any, ...] = ()

    def at(self, u: float) -> Any:
        """The value at a share `u` in [0, 1) of the way, each as probable as the next."""
        if self.kind == "choice":
            return self.choices[int(u * len(self.choices))]
        if self.step is not None:
            number = int(u * (self._steps + 1))
            return self.low + number * self.step if self.kind == "integer" else _rounded(self.low + number * self.step)
        if self.kind == "integer":
            return int(self.low) + int(u * (int(self.high) - int(self.low) + 1))
        if self.kind == "uniform":
            return _rounded(self.low + u * (self.high - self.low))
        return _rounded(math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low))))

    def corner(self, number: int) -> Any:
        """Its lowest value at 0 and its highest at 1; of choices the one of that number, the last ones again."""
        if self.kind == "choice":
            return self.choices[min(number, len(self.choices) - 1)]
        if number == 0 or self.step is None:
            return self.high if number else self.low
        top = self.low + self._steps * self.step
        return top if self.kind == "integer" else _rounded(top)

    @property
    def corners(self) -> int:
        """How many corners show all that may be wrong with it: each choice, both ends of a range."""
        return len(self.choices) if self.kind == "choice" else 2

    @property
    def _steps(self) -> int:
        assert self.step is not None
        return int((self.high - self.low) / self.step + 1e-9)

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"one of {', '.join(map(str, self.choices))}"
        what = {"uniform": "", "loguniform": ", by its logarithm", "integer": ", whole"}[self.kind]
        return f"{self.low:g} to {self.high:g}{f' in steps of {self.step:g}' if self.step else ''}{what}"


def dimension(how: Any, where: str) -> Dimension:
    """Read what a config says of one key.

    Raises:
        ConfigError: with `where` in front, and what may be said.
    """
    if isinstance(how, list) and how:
        return Dimension("choice", choices=tuple(how))
    said = {key: value for key, value in how.items() if key != "step"} if isinstance(how, Mapping) else {}
    if len(said) != 1:
        raise ConfigError(f"{where}: {how!r}: {_SAY}")
    [(kind, bounds)] = said.items()
    if kind == "choice" and isinstance(bounds, list) and bounds and "step" not in how:
        return Dimension("choice", choices=tuple(bounds))
    if kind not in KINDS or not _is_interval(bounds) or (kind == "loguniform" and bounds[0] <= 0):
        near = get_close_matches(str(kind), KINDS, 1) if kind not in KINDS else []
        raise ConfigError(f"{where}: {how!r}: {_SAY}{f'; did you mean {near[0]}?' if near else ''}")
    if kind == "integer" and not all(float(bound).is_integer() for bound in bounds):
        raise ConfigError(f"{where}: {how!r}: integer goes from one whole number to another")
    low, high = map(int if kind == "integer" else float, bounds)
    return Dimension(kind, low, high, _step(how, kind, bounds, where))


def _step(how: Mapping[str, Any], kind: str, bounds: list[Any], where: str) -> float | int | None:
    if "step" not in how:
        return None
    step: Any = how["step"]
    fits = type(step) in ((int,) if kind == "integer" else (int, float)) and kind in ("uniform", "integer")
    if not fits or not 0 < step <= bounds[1] - bounds[0]:
        raise ConfigError(f"{where}: {dict(how)!r}: {STEPS}")
    return float(step) if kind == "uniform" else int(step)


def _is_interval(bounds: Any) -> bool:
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(b) in (int, float) for b in bounds)
    return bool(numbers and bounds[0] < bounds[1] and all(map(math.isfinite, bounds)))


def _rounded(value: float) -> float:
    """Six digits: as good a draw, and the same on machines whose logarithms differ in the last bit."""
    return float(f"{value:.6g}")
