"""Weights files that hold more than tensors: their tensors are taken out, and nothing of theirs is run.

Torch's weights-only reader refuses a file that names a class it does not know (`argparse.Namespace`, a whole
pickled network). Here every such name gives an inert stand-in, so that the reader gets to the tensors, while
constructors and `__reduce__` payloads do nothing. It still happens in a child process without network, and
only for files that the user says to trust: a reader of foreign bytes may err.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import pickle  # its Unpickler's `find_class` is the documented place to forbid names
import subprocess
import sys
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from kdscale import atomic
from kdscale.errors import CheckpointError
from kdscale.nn.weights import read_tensors, select_tensors, tensors_hash

__all__ = ["import_weights"]

NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000
"""CLONE_NEWNET and CLONE_NEWUSER of Linux: a network namespace without any interface that is up."""
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "SYSTEMROOT")


def import_weights(path: Path, out: Path, *, key: str | None = None, trust: bool = False) -> list[str]:
    """Write the tensors of `path` as safetensors.

    Args:
        path: .pt, .pth or .safetensors.
        out: ends in .safetensors.
        key: where the tensors lie in the file; searched when None.
        trust: whether a file that holds more than tensors may be read, in a child process.

    Returns:
        Lines to show: what was written, where it was found, what was left out.

    Raises:
        CheckpointError: the file cannot be read, holds no tensors, or needs trust.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"--out {out} must end in .safetensors")
    if trust and path.suffix != ".safetensors":
        return _in_child(path, out, key)
    tensors, notes = read_tensors(path, key)
    return [_write(tensors, out), *notes]


def _in_child(path: Path, out: Path, key: str | None) -> list[str]:
    # the working directory's modules must not be importable in the child: -P
    command = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-m", __name__]
    environment = {k: v for k, v in os.environ.items() if k in KEPT_ENVIRONMENT}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    asked = [str(path.absolute()), str(out.absolute()), key or ""]
    done = subprocess.run([*command, *asked], env=environment, capture_output=True, text=True, check=False)
    answer = done.stdout.strip().splitlines()
    if not answer or not answer[-1].startswith("{"):
        raise CheckpointError(f"reading {path} ended with exit status {done.returncode}: {done.stderr.strip()[-500:]}")
    said = json.loads(answer[-1])
    if "error" in said:
        raise CheckpointError(said["error"])
    return [str(line) for line in said["lines"]]


def _child(path: Path, out: Path, key: str | None) -> dict[str, Any]:
    """What the child process does, and answers."""
    cut = _without_network()
    try:
        content, classes = _read_inert(path)
        tensors, notes = select_tensors(_plain(content), path, key)
        lines = [_write(tensors, out), *notes]
    except CheckpointError as error:
        return {"error": str(error)}
    lines += [f"not run, and left out: {', '.join(sorted(classes))}"] if classes else []
    lines += [] if cut else ["note: this system does not let a process give up its network; it kept it"]
    return {"lines": lines}


def _without_network() -> bool:
    """Give up the network for this process; False where the system does not allow it."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (AttributeError, OSError, TypeError):
        return False
    return bool(unshare(NEW_NETWORK) == 0 or unshare(NEW_USER | NEW_NETWORK) == 0)


# --------------------------------------------------------------------------- reading


class Inert:
    """Stands for an object of an unknown class: keeps what it is given, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        made = object.__new__(cls)
        made.state = {}
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: dict[Any, Any]

    def __call__(self, *_: Any, **__: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            self.state |= part if isinstance(part, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def append(self, value: Any) -> None:
        """Take an item as a list or a set would, and forget it."""

    add = append


class InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; everything else becomes a stand-in."""

    met: ClassVar[set[str]] = set()
    """Names of what was replaced, of the one file that this process reads."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return one of the few known constructors, or a stand-in; nothing is imported."""
        known = _known_names()
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        self.met.add(f"{module}.{name}")
        return type(name, (Inert,), {})


class _InertPickle:
    """What torch.load asks of a pickle module."""

    Unpickler = InertUnpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> Any:
        return InertUnpickler(file, **options).load()


@cache
def _known_names() -> dict[tuple[str, str], Any]:
    """Constructors of data: they run nothing but what they are named for."""
    rebuild = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
    names: dict[tuple[str, str], Any] = {("torch._utils", n): getattr(torch._utils, n) for n in rebuild}
    builtin = (set, frozenset, list, dict, tuple, int, float, str, bool, bytes, bytearray, complex, slice, range)
    names |= {(m, c.__name__): c for c in builtin for m in ("builtins", "__builtin__")}
    names |= {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): lambda *_: {},
        ("_codecs", "encode"): codecs.encode,  # how protocol 2 writes bytes
        ("copyreg", "_reconstructor"): lambda made, *_: made(),
        ("copy_reg", "_reconstructor"): lambda made, *_: made(),
        ("__builtin__", "long"): int,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch", "Tensor"): torch.Tensor,
        ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, _, given, __: rebuild(*given),
        ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    }
    return names | _numpy_names()


def _numpy_names() -> dict[tuple[str, str], Any]:
    """Arrays and scalars, under the names of numpy 1 and 2."""
    import numpy as np

    try:
        from numpy._core import multiarray
    except ImportError:  # numpy 1
        from numpy.core import multiarray  # type: ignore[no-redef]
    names: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names |= {(module, name): getattr(multiarray, name) for name in ("_reconstruct", "scalar")}
    return names


def _read_inert(path: Path) -> tuple[Any, set[str]]:
    """The file's content with stand-ins, and the names of what they stand for."""
    if zipfile.is_zipfile(path) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist()):
        raise CheckpointError(f"{path} is a TorchScript archive, a program; save its state_dict() instead")
    try:
        # weights_only refuses any pickle module but its own; this one runs less than that does
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
    return content, InertUnpickler.met


def _plain(content: Any) -> Any:
    """Dicts and tensors only: whole networks become their state_dict, arrays become tensors."""
    if isinstance(content, Inert):
        if "_parameters" in content.state:
            return _state_dict(content)
        return {str(k): _plain(v) for k, v in content.state.items()}
    if isinstance(content, dict):
        return {k: _plain(v) for k, v in content.items()}
    return torch.from_numpy(content.copy()) if type(content).__name__ == "ndarray" else content


def _state_dict(network: Inert, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and persistent buffers of a pickled nn.Module, under the names that state_dict() gives them."""
    state = network.state
    transient = state.get("_non_persistent_buffers_set") or ()
    own = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    named = {f"{prefix}{k}": v.detach() for k, v in own.items() if isinstance(v, Tensor) and k not in transient}
    for name, child in state.get("_modules", {}).items():
        if isinstance(child, Inert):
            named |= _state_dict(child, f"{prefix}{name}.")
    return named


def _write(tensors: dict[str, Tensor], out: Path) -> str:
    from safetensors.torch import save_file

    # copies: tied tensors share memory, which the format refuses
    whole = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with atomic.aside(out) as side:
        save_file(whole, side)
    values = sum(t.numel() for t in whole.values())
    return f"{out}: {len(whole)} tensors, {values / 1e6:.2f} M values, hash {tensors_hash(whole)[:12]}"


if __name__ == "__main__":
    print(json.dumps(_child(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] or None)))  # noqa: T201
