"""A plug-in is a file: `load("losses", "rkd")` takes the one public name of kdscale/losses/rkd.py.

There is no registry to forget: what lies in a folder is available under its file's name. A user's own
class is named by dotted path, `birds.nets:TinyNet`, and imported only where `plugins.allow` says so.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdscale.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KINDS", "available", "describe", "load", "revision", "source_hash", "user_class"]

KINDS = ("losses", "modifiers", "strategies", "models", "datasets", "teachers")
_ROOT = Path(__file__).parent


@cache
def load(kind: str, name: str) -> Any:
    """The class that the plug-in `name` of `kind` offers.

    Raises:
        PluginError: there is no such plug-in, with the nearest name.
    """
    known = available(kind)
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
        raise PluginError(f"no {kind} plug-in {name}; {hint}")
    module = importlib.import_module(f"kdscale.{kind}.{name}")
    public = list(module.__all__)
    if len(public) != 1:
        raise PluginError(f"kdscale/{kind}/{name}.py must offer one name in __all__, not {public}")
    return getattr(module, public[0])


def available(kind: str) -> list[str]:
    """Names of all plug-ins of one kind, from the folder, without importing them."""
    if kind not in KINDS:
        raise PluginError(f"no kind of plug-in {kind}; there are: {', '.join(KINDS)}")
    return sorted(path.stem for path in (_ROOT / kind).glob("*.py") if path.stem != "__init__")


def describe(kind: str) -> list[tuple[str, str]]:
    """Each plug-in with its one-line summary, read from the file without importing it."""
    lines = []
    for name in available(kind):
        text = ast.get_docstring(ast.parse((_ROOT / kind / f"{name}.py").read_text())) or ""
        lines.append((name, text.strip().partition("\n")[0]))
    return lines


def user_class(text: str, allow: Sequence[str], path: Sequence[Path]) -> Any:
    """Import a user's own class, `package.module:Class`.

    Raises:
        PluginError: it is not allowed, cannot be imported, or is no class.
    """
    module_name, _, class_name = text.partition(":")
    package = module_name.partition(".")[0]
    if package not in allow:
        raise PluginError(f"{text}: {package} may not be imported; add it to plugins.allow: [{package}]")
    for folder in reversed([str(Path(p).resolve()) for p in path]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        where = ", ".join(map(str, path)) or "nothing"
        raise PluginError(f"{text}: {error}; looked in plugins.path ({where}) and in the environment") from error
    if not inspect.isclass(found):
        raise PluginError(f"{text} is a {type(found).__name__}, not a class")
    return found


def source_hash(cls: type) -> str:
    """Hash of the file that defines a class."""
    file = inspect.getsourcefile(cls)
    assert file is not None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def revision(kind: str, name: str, plugins: Any) -> str | int:
    """What stands for a plug-in's code in a digest: its `revision`; a user's own class by its file's hash."""
    if ":" in name and not name.startswith(("torchvision:", "timm:")):
        return source_hash(user_class(name, plugins.allow, plugins.path))
    if name.startswith(("torchvision:", "timm:")):
        return 1
    return int(getattr(load(kind, name), "revision", 1))
