"""Which file may know what: heavy dependencies, hidden randomness, the unwrapped student, shells and pickles."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdscale.contract.source import bare_draws, dotted, is_bare_draw

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "kdscale").rglob("*.py"))
SCRIPTS = sorted((ROOT / "launch").glob("*.py"))

FENCES = {
    "torch.distributed": ["kdscale/ranks.py", "kdscale/engines/*"],
    "deepspeed": ["kdscale/engines/deepspeed.py"],
    "mlflow": ["kdscale/trackers/mlflow.py"],
    "submitit": ["kdscale/jobs/*"],
    "optuna": ["kdscale/jobs/study.py"],
    "ffcv": ["kdscale/data/ffcv_*.py"],
    "marshal": [],
    "random": [],
    "numpy.random": [],
}
HEAVY = {"deepspeed", "ffcv", "matplotlib", "mlflow", "optuna", "submitit", "timm", "torchvision"}
"""Imported inside functions only: the file that knows them may be imported where they are not needed."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, `from a import b` as `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=name_of)
def test_imports_stay_behind_their_fences(path: Path) -> None:
    for name in imports(ast.parse(path.read_text())):
        for fenced, homes in FENCES.items():
            if name == fenced or name.startswith(f"{fenced}."):
                assert any(fnmatch.fnmatch(name_of(path), home) for home in homes), (
                    f"{name_of(path)} imports {name}; only {', '.join(homes) or 'nothing'} may"
                )


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=name_of)
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    type_only = {id(n) for node in tree.body if _is_type_checking(node) for n in ast.walk(node)}
    outside = [n for n in _outside_functions(tree) if id(n) not in type_only]
    found = {name.split(".")[0] for node in outside for name in imports(node)} & HEAVY
    assert not found, f"{name_of(path)} imports {found} when it is imported"


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from _outside_functions(child)


@pytest.mark.parametrize("path", sorted((ROOT / "kdscale/models").glob("*.py")), ids=name_of)
def test_models_import_torch_only(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert packages <= {"torch", *sys.stdlib_module_names}, f"{name_of(path)}: a model must run without kdscale"


# --------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_bare_random_draws(path: Path) -> None:
    found = [f"{name_of(path)}:{line}: {what}" for line, what in bare_draws(path)]
    assert not found, f"draw through kdscale/draws.py, or pass a generator seeded from it: {found}"


@pytest.mark.parametrize(
    ("line", "bare"),
    [
        ("torch.rand(3)", True),
        ("np.random.default_rng(0)", True),
        ("random.random()", True),
        ("x.normal_(0, 1)", True),
        ("torch.randperm(5, generator=g)", False),
        ("nn.init.normal_(x)", False),
        ("draws.uniform(1, 2)", False),
    ],
)
def test_the_scan_for_draws_finds_them(line: str, bare: bool) -> None:
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert is_bare_draw(call) is bare


# --------------------------------------------------------------------------- other rules of the house

INERT_READER = "kdscale/nn/untrusted.py"
"""Reads files that torch's weights-only reader refuses, by an unpickler that imports nothing."""
MAY_UNWRAP = ["kdscale/api.py", "kdscale/engines/*", "kdscale/export/*", "kdscale/train/evaluate.py"]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_student_is_reached_unwrapped_in_evaluation_and_export_only(path: Path) -> None:
    if not any(fnmatch.fnmatch(name_of(path), home) for home in MAY_UNWRAP):
        tree = ast.parse(path.read_text())
        trains = path.parent.name in {"train", "strategies", "losses", "modifiers", "teachers"}
        forbidden = {"unwrapped", "module"} if trains else {"unwrapped"}
        found = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in forbidden]
        assert not found, f"{name_of(path)}, lines {found}: a student called unwrapped skips the gradient all-reduce"


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=name_of)
def test_nothing_is_evaluated_unpickled_or_given_to_a_shell(path: Path) -> None:
    for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
        name, given = dotted(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        where = f"{name_of(path)}:{call.lineno}"
        assert name not in {"eval", "exec", "os.system", "os.popen"}, f"{where}: {name}"
        assert name != "yaml.load" or "SafeLoader" in given.get("Loader", ""), f"{where}: yaml.load without SafeLoader"
        assert not name.startswith("pickle."), f"{where}: {name}"
        assert given.get("shell", "False") == "False", f"{where}: a shell"
        assert given.get("allow_pickle", "False") == "False", f"{where}: a pickle"
        if name == "torch.load" and name_of(path) != INERT_READER:
            assert given.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"


def test_no_tracked_file_names_a_path_of_somebodys_machine() -> None:
    places = re.compile(rb"(?<![\w.~}/-])/(?:home|root|work|Users)/\w")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    texts = [p for n in names if n and (p := ROOT / n.decode()).is_file() and p.suffix not in {".png", ".npz"}]
    found = [name_of(path) for path in texts if places.search(path.read_bytes()) and path != Path(__file__)]
    assert not found


def test_no_file_names_hide_what_is_in_them() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
    assert not [name_of(p) for p in SOURCES if p.stem in vague]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_readable_at_a_sitting(path: Path) -> None:
    limit = 360 if name_of(path) in {"kdscale/config/schema.py", "kdscale/api.py"} else 300
    assert len(path.read_text().splitlines()) <= limit, f"{name_of(path)}: split it by concern"
