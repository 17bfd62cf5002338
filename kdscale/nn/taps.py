"""Reading features out of a network by hooks, and refusing taps that would lie."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from kdscale.errors import TapError

__all__ = ["Catch", "locate"]


class Catch:
    """A forward hook that keeps what one module gave in the last forward.

    An object rather than a closure: a deep copy of a hooked network then holds copies of its catches,
    where closures would go on writing into the original's.
    """

    def __init__(self, tap: str, path: str) -> None:
        self.tap = tap
        self.path = path
        self.fired = 0
        self._value: Any = None
        self._version = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.fired += 1
        self._value = output
        self._version = output._version if isinstance(output, Tensor) else 0

    def reset(self) -> None:
        """Forget the last forward."""
        self.fired, self._value = 0, None

    def take(self) -> Tensor:
        """Hand over the feature and forget it, so that no graph outlives its step. Raises: TapError."""
        value = self._value
        self.reset()
        if not isinstance(value, Tensor):
            said = f"tap {self.tap} ({self.path}) gave {_kind(value)} in this forward, not a tensor"
            raise TapError(said, self.tap)
        return value

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the last forward's feature, without B; None when it is no tensor."""
        return tuple(self._value.shape[1:]) if isinstance(self._value, Tensor) else None

    def problem(self, images: int) -> str | None:
        """What is wrong with this tap after a complete forward of some images."""
        if self.fired == 0:
            return "is silent: its module does not run in a forward pass"
        if self.fired > 1:
            return f"fires {self.fired} times in one forward pass, so it names no single feature"
        if not isinstance(self._value, Tensor):
            return f"gives {_kind(self._value)}, not a tensor"
        if self._value.shape[:1] != (images,):
            return f"gives {list(self._value.shape)} for {images} images: its rows are windows, tokens or the like"
        if self._value._version != self._version:
            return "is overwritten in place after it is read (an in-place ReLU or += behind it)"
        return None


def locate(model: nn.Module, taps: Iterable[str], own: Mapping[str, str] | None = None) -> dict[str, tuple[str, bool]]:
    """Find each tap's module.

    Args:
        model: names its taps by an attribute `taps`; a foreign one has none.
        taps: names of the model's taps, of `own`, or module paths.
        own: further names for module paths.

    Returns:
        Module path and whether the feature lies behind a ReLU, by tap, in the order asked for.

    Raises:
        TapError: there is no such tap; names the nearest ones.
    """
    modules = dict(model.named_modules())
    named: dict[str, tuple[str, bool]] = dict(getattr(model, "taps", {}))
    named |= {name: (path, _behind_relu(modules.get(path))) for name, path in (own or {}).items()}
    found: dict[str, tuple[str, bool]] = {}
    for tap in taps:
        path, post_relu = named.get(tap, (tap, _behind_relu(modules.get(tap))))
        if path not in modules or not path:
            known = [*named, *(name for name in modules if name)]
            near = difflib.get_close_matches(tap, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(named) or 'module paths'}"
            missing = tap if path == tap else f"{tap} (module {path})"
            raise TapError(f"{type(model).__name__} has no tap {missing}; {hint} See: sweep.py --list taps MODEL", tap)
        found[tap] = (path, post_relu)
    return found


def _behind_relu(module: nn.Module | None) -> bool:
    """Whether a foreign module's output is surely not negative: it is, or ends in, a ReLU."""
    if isinstance(module, nn.Sequential) and len(module):
        return _behind_relu(module[-1])
    return isinstance(module, nn.ReLU | nn.ReLU6)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
