"""A plug-in is a file: `load("losses", "rkd")` takes the one public name of kdscale/losses/rkd.py.

There is no registry to forget: what lies in a folder is available under its file's name. A user's own
class is named by dotted path, `birds.nets:TinyNet`, and imported only where `plugins.allow` says so (own_code.py).
"""

from __future__ import annotations

import ast
import importlib
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdscale.errors import PluginError
from kdscale.own_code import file_of, is_own, source_hash, user_class, user_function

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kdscale.own_code import Allowed

__all__ = [
    "KINDS",
    "REQUIRED",
    "UNREADABLE",
    "Entry",
    "available",
    "bibtex",
    "describe",
    "entry",
    "load",
    "needs_teacher",
    "options",
    "revision",
    "source_hash",
    "user_class",
    "user_function",
]

KINDS = ("losses", "modifiers", "strategies", "models", "datasets", "teachers", "metrics")
_ROOT = Path(__file__).parent
_BASES = {"losses": "Loss", "modifiers": "Modifier", "strategies": "Strategy"}
"""What a user's own plug-in of a kind is derived from, in kdscale.api."""
REQUIRED, UNREADABLE = object(), object()
"""In place of an option's default: it has none; it is computed, so that the file does not tell."""


def load(kind: str, name: str, own: Allowed | None = None) -> Any:
    """The class, of metrics the function, that the plug-in `name` of `kind` offers.

    Args:
        kind: losses, modifiers, strategies, models, datasets, teachers or metrics.
        name: of its file; or a user's own loss, modifier or strategy, `birds.losses:Focal`.
        own: whose code may be imported, and where it lies.

    Raises:
        PluginError: there is no such plug-in, with the nearest name; or it is none of its kind.
    """
    return _own(kind, name, own) if is_own(name) else _shipped(kind, name)


def _own(kind: str, name: str, own: Allowed | None) -> Any:
    if kind not in _BASES:
        raise PluginError(f"{name}: {kind} are kdscale's own, by one name")
    found = user_class(name, own.allow if own else (), own.path if own else ())
    base = getattr(importlib.import_module("kdscale.api"), _BASES[kind])
    if not issubclass(found, base):
        raise PluginError(f"{name} is none of the {kind}: derive it from kdscale.api.{base.__name__}")
    return found


@cache
def _shipped(kind: str, name: str) -> Any:
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


class Entry(NamedTuple):
    """What somebody who chooses a loss or modifier wants to know."""

    name: str
    idea: str
    """The first paragraph of its file, as one line."""
    source: str
    taps: str
    """Whether a term that uses it names taps: yes or no, as below."""
    features: str
    """Whether it reads features, and not logits alone."""
    cacheable: str
    """Whether a teacher's answers on disk serve it: yes; `pooled` if its taps are that; no; - without a teacher."""
    relational: str
    """Whether its value belongs to the samples of a batch together."""


def entry(kind: str, name: str) -> Entry:
    """Describe a loss or modifier, read from its file without importing it; of other kinds flags are empty."""
    text = ast.get_docstring(ast.parse((_ROOT / kind / f"{name}.py").read_text(encoding="utf-8"))) or ""
    idea = " ".join(text.split("\n\n")[0].split()).rstrip(".")
    found = re.search(r"Source:\s*(.+?)(?=\n\s*\n|\n[A-Z]\w+:|\Z)", text, re.S)
    source = " ".join(found[1].split()).rstrip(".") if found else ""
    return Entry(name, idea, source, *(_flags(kind, name) if kind in ("losses", "modifiers") else ("",) * 4))


def bibtex(kind: str, name: str, path: Sequence[Path] = ()) -> str:
    """A plug-in's entries for a bibliography, `BIBTEX` in its file, read without importing it.

    Args:
        kind: of the plug-in.
        name: of its file; or a user's own, `birds.nets:TinyNet`.
        path: folders in which a user's own is looked for.

    Returns:
        The entries as they stand there; empty where it has none, or no file is found.
    """
    file = _file(kind, name, path)
    for node in ast.parse(file.read_bytes()).body if file else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BIBTEX":
            found = _default(node.value)
            return found.strip() if isinstance(found, str) else ""
    return ""


def _file(kind: str, name: str, path: Sequence[Path] = ()) -> Path | None:
    """Where a plug-in's source stands; None for a library's, and a user's own that no folder of `path` holds."""
    return file_of(name, path) if ":" in name else _ROOT / kind / f"{name}.py"


def _flags(kind: str, name: str) -> tuple[str, str, str, str]:
    said = _attributes(kind, name)
    features = "features" in said.get("needs", ()) or said.get("needs_features", False)
    cacheable = "pooled" if kind == "losses" and features else "yes"
    if said.get("needs_input_grad", False):
        cacheable = "no"
    elif not said.get("needs_teacher", True):
        cacheable = "-"
    yes = {True: "yes", False: "no"}
    return yes[features], yes[features], cacheable, yes[said.get("relational", False)]


@cache
def _attributes(kind: str, name: str) -> Mapping[str, Any]:
    return _values_of(_public_class(kind, name))


def _values_of(cls: ast.ClassDef) -> dict[str, Any]:
    """Plain values that a class sets, and frozen sets of them."""
    found = {}
    for node in cls.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            is_set = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "frozenset"
            found[ast.unparse(target)] = _default(node.value.args[0] if is_set else node.value)  # type: ignore[attr-defined]
    return found


@cache
def options(kind: str, name: str) -> Mapping[str, Any] | None:
    """A plug-in's options with their defaults, read from its file without importing it.

    Returns:
        By name, the default, `REQUIRED`, or `UNREADABLE` where it is no plain value; None where the file
        does not tell (options that are inherited or passed on), and for a user's own.
    """
    if is_own(name):
        return None
    cls = _public_class(kind, name)
    if kind == "models":
        return _of_constructor(cls)
    config = next((node for node in cls.body if isinstance(node, ast.ClassDef) and node.name == "Config"), None)
    if config is None:
        return {} if kind in ("losses", "modifiers", "strategies") else None
    if [ast.unparse(base) for base in config.bases] != ["PluginConfig"]:
        return None
    fields = [node for node in config.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: _default(node.value) for node in fields if isinstance(node.target, ast.Name)}


def needs_teacher(loss: str, path: Sequence[Path] = ()) -> bool:
    """Whether a loss listens to a teacher, read from its file without importing it.

    Args:
        loss: its name; of a user's own whose file is not found, or that inherits the answer, it is taken to listen.
        path: folders in which a user's own is looked for.
    """
    said = _own_attributes(loss, path) if is_own(loss) else _attributes("losses", loss)
    return said.get("needs_teacher") is not False


def _own_attributes(name: str, path: Sequence[Path]) -> Mapping[str, Any]:
    """What a user's own class sets in its file; nothing where that cannot be read, of which its import will tell."""
    file = file_of(name, path)
    try:
        body = ast.parse(file.read_bytes()).body if file else []
    except SyntaxError:
        return {}
    called = name.partition(":")[2]
    cls = next((node for node in body if isinstance(node, ast.ClassDef) and node.name == called), None)
    return _values_of(cls) if cls else {}


def _public_class(kind: str, name: str) -> ast.ClassDef:
    tree = ast.parse((_ROOT / kind / f"{name}.py").read_text(encoding="utf-8"))
    public = {
        ast.literal_eval(node.value)[0]
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in public)


def _of_constructor(cls: ast.ClassDef) -> dict[str, Any] | None:
    init = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None or init.args.kwarg is not None:
        return None
    plain = init.args.args[1:]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(init.args.defaults))
    pairs = [*zip(plain, [*missing, *init.args.defaults], strict=True)]
    pairs += zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    return {argument.arg: _default(value) for argument, value in pairs}


def _default(value: ast.expr | None) -> Any:
    """A default as plain data, also the first argument of `Field(...)`."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field" and value.args:
        value = value.args[0]
    if value is None or (isinstance(value, ast.Constant) and value.value is ...):
        return REQUIRED
    try:
        return ast.literal_eval(value)
    except ValueError:
        return UNREADABLE


def revision(kind: str, name: str, plugins: Any) -> str | int:
    """What stands for a plug-in's code in a digest: its `revision`; a user's own class by its file's hash."""
    if is_own(name):
        found = (user_function if kind == "metrics" else user_class)(name, plugins.allow, plugins.path)
        return source_hash(found)
    if ":" in name:  # a library's
        return 1
    return int(getattr(load(kind, name), "revision", 1))
