"""A user's own code, by dotted name: imported only where a config allows it, and told apart by its source."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from kdscale.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

__all__ = [
    "LIBRARIES",
    "SNAPSHOT",
    "Allowed",
    "file_of",
    "is_own",
    "on_path",
    "source_hash",
    "user_class",
    "user_function",
]

SNAPSHOT = "KDSCALE_PLUGINS"
"""Where a cluster job finds the copy of a user's plug-ins that was made when it was submitted."""
LIBRARIES = ("torchvision:", "timm:")
"""How the names of models begin that are nobody's own."""


@runtime_checkable
class Allowed(Protocol):
    """Whose code may be imported: the section `plugins` of a config."""

    @property
    def path(self) -> Sequence[Path]: ...

    @property
    def allow(self) -> Sequence[str]: ...


def is_own(name: str) -> bool:
    """Whether a name in a config is a user's own class, `package.module:Class`."""
    return ":" in name and not name.startswith(LIBRARIES)


def file_of(name: str, path: Sequence[Path]) -> Path | None:
    """Where the module of `package.module:Class` stands in one of some folders; None where none holds it."""
    module = name.partition(":")[0].replace(".", "/")
    files = [Path(folder) / f"{module}{end}" for folder in path for end in (".py", "/__init__.py")]
    return next((file for file in files if file.is_file()), None)


def on_path(path: Sequence[Path]) -> None:
    """Let modules be found in some folders, in a cluster job in the copy of them, before anywhere else."""
    copied = os.environ.get(SNAPSHOT)
    for folder in [copied] if copied else reversed([str(Path(p).resolve()) for p in path]):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def user_class(text: str, allow: Sequence[str], path: Sequence[Path]) -> Any:
    """Import a user's own class, `package.module:Class`.

    Raises:
        PluginError: it is not allowed, cannot be imported, or is no class.
    """
    found = _imported(text, allow, path, "class")
    if not inspect.isclass(found):
        raise PluginError(f"{text} is a {type(found).__name__}, not a class")
    return found


def user_function(text: str, allow: Sequence[str], path: Sequence[Path]) -> Any:
    """Import a user's own function, `package.module:name`. Raises: PluginError, likewise."""
    found = _imported(text, allow, path, "function")
    if not inspect.isfunction(found):
        raise PluginError(f"{text} is a {type(found).__name__}, not a function")
    return found


def _imported(text: str, allow: Sequence[str], path: Sequence[Path], what: str) -> Any:
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise PluginError(f"{text}: say package.module:{'Class' if what == 'class' else 'name'}")
    package = module_name.partition(".")[0]
    if package not in allow:
        raise PluginError(f"{text}: {package} may not be imported; add it to plugins.allow: [{package}]")
    on_path(path)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        where = ", ".join(map(str, path)) or "nothing"
        raise PluginError(f"{text}: {error}; looked in plugins.path ({where}) and in the environment") from error
    except Exception as error:  # whatever the user's own file does
        raise PluginError(f"{text}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if found is None:
        near = get_close_matches(name, vars(module), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PluginError(f"{text}: {module.__file__} has no {what} {name}{hint}")
    return found


def source_hash(cls: Any) -> str:
    """Hash of the file that defines a class or function, and of the files of its package which that one imports.

    What a network does may stand in the file beside it: an edit there must not pass for the same network.
    """
    file = inspect.getsourcefile(cls)
    if file is None:
        raise PluginError(f"{cls.__module__}:{cls.__qualname__} has no source file, so it cannot be told from others")
    files = _files_of(cls.__module__, Path(file), {})
    digest = hashlib.sha256()
    for module in sorted(files):
        digest.update(f"{module}\0".encode() + files[module].read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:16]


def _files_of(module: str, file: Path, found: dict[str, Path]) -> dict[str, Path]:
    """A module's file and, through its imports, those of the same top-level package."""
    found[module] = file
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    for name in _imports(ast.parse(file.read_bytes()), package):
        if name.partition(".")[0] == module.partition(".")[0] and name not in found:
            spec = _spec_of(name)
            if spec is not None and spec.origin and spec.origin.endswith(".py"):
                _files_of(name, Path(spec.origin), found)
    return found


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names that a module imports; of `from a import b` both a and a.b, as b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            upwards = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*upwards, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _spec_of(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None  # a name within a module, not a module
