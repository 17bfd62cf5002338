"""Weights files: reading them without running their code, fitting them to a network, hashing tensors."""

from __future__ import annotations

import pickle  # for the name of the exception with which torch refuses a file; nothing is unpickled
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from kdscale.errors import CheckpointError, CheckpointMismatch

__all__ = [
    "Loaded",
    "file_weights_hash",
    "fit_tensors",
    "load_weights",
    "read_tensors",
    "select_tensors",
    "tensors_hash",
    "weights_hash",
    "within",
]

# In the order in which they are looked for; a key in front of a plain dict of tensors.
KEYS = ("state_dict", "model", "ema", "model_ema", "net", "state_dict_ema", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "model.")
UNCOUNTED = ".num_batches_tracked"
"""Absent from files of old torch versions, and without effect on any number while momentum is set."""


@dataclass(frozen=True)
class Loaded:
    """What was done to make a file fit: said to the user."""

    source: str
    tensors: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join([f"{self.source}: {self.tensors} tensors", *self.notes])


def load_weights(
    model: nn.Module, path: Path, *, key: str | None = None, strict: Sequence[str] | bool = True
) -> Loaded:
    """Fill `model` from a .safetensors, .pt or .pth file.

    Args:
        model: changed in place.
        path: the file; unpickled by torch's weights-only reader, which runs no code.
        key: where the tensors lie in the file; searched when None.
        strict: False, or names of parts (such as head), allow these to keep their initial weights.

    Raises:
        CheckpointError: the file cannot be read, or holds more than tensors.
        CheckpointMismatch: its names or shapes are not the model's.
    """
    tensors, notes = read_tensors(path, key)
    loaded = fit_tensors(model, tensors, strict=strict, source=str(path))
    return Loaded(loaded.source, loaded.tensors, (*notes, *loaded.notes))


def read_tensors(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Read a weights file's tensors by name, and what there is to say about it. Raises: CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"weights {path} do not exist")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return select_tensors(content, path, key)


def fit_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], *, strict: Sequence[str] | bool = True, source: str = "weights"
) -> Loaded:
    """Copy named tensors into `model`, taking off prefixes that wrappers have left in the names.

    Args:
        model: changed in place; its class may say how other code bases name its parts (`renames`).
        tensors: by name.
        strict: as in `load_weights`.
        source: what errors call them.

    Raises:
        CheckpointMismatch: lists the first five missing, unexpected and misshapen names.
    """
    expected = model.state_dict()
    named, notes = _renamed(dict(tensors), expected, getattr(model, "renames", ()))
    loose = _loose(strict)
    misshapen = [k for k, v in named.items() if k in expected and v.shape != expected[k].shape]
    missing = [k for k in expected if k not in named and not k.endswith(UNCOUNTED)]
    unexpected = [k for k in named if k not in expected]
    faults = {
        "missing in the file": [k for k in missing if not loose(k)],
        "unknown to the network": [k for k in unexpected if not loose(k)],
        "of another shape": [_shapes(k, named, expected) for k in misshapen if strict is False or not loose(k)],
    }
    if any(faults.values()):
        raise CheckpointMismatch(_mismatch(source, type(model).__name__, faults))
    fitting = {k: v for k, v in named.items() if k in expected and k not in misshapen}
    if not fitting:
        raise CheckpointMismatch(f"{source} holds nothing that {type(model).__name__} could take")
    model.load_state_dict(fitting, strict=False)
    fresh = sorted({k.rpartition(".")[0] or k for k in [*missing, *misshapen]})
    notes += [f"left at their initial values: {', '.join(fresh)}"] if fresh else []
    return Loaded(source, len(fitting), tuple(notes))


def weights_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers with their names, dtypes and shapes, independent of layout and device."""
    return tensors_hash({**dict(model.named_parameters()), **dict(model.named_buffers())})


def file_weights_hash(path: Path, key: str | None = None) -> str:
    """Hash of a file's tensors: the same for a .pth and for the .safetensors made from it."""
    return tensors_hash(read_tensors(path, key)[0])


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """128-bit xxHash over tensors in the order of their names, in hexadecimal."""
    state = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def within(name: str, parts: Iterable[str]) -> bool:
    """Whether a tensor belongs to one of some modules, given by their paths."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


# --------------------------------------------------------------------------- reading


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds {found[1]}, which may run code on loading" if found else "holds more than tensors"
        out = path.with_suffix(".safetensors").name
        raise CheckpointError(
            f"{path} {what}. If you trust it:  python launch/import.py {path} --trust --out {out}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a torch file: {str(error).splitlines()[0]}") from error


def select_tensors(content: Any, path: Path, key: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Find the dict of tensors within a file's content. Raises: CheckpointError."""
    if key is not None:
        inner = _at(content, key)
        if not _tensors_of(inner):
            have = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise CheckpointError(f"{path} holds no tensors under weights_key {key}; it has: {have[:300]}")
        return _tensors_of(inner), []
    taken = _search(content)
    found = _at(content, taken) if taken else content
    tensors = _tensors_of(found)
    if not tensors:
        have = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: found no tensors in it ({have[:300]}); name their place by weights_key")
    notes = [f"tensors found under {taken}"] if taken else []
    others = [k for k in KEYS if taken and k != taken and _tensors_of(_at(content, k))]
    notes += [f"not taken: {', '.join(others)} (weights_key chooses)"] if others else []
    return tensors, notes


def _search(content: Any, depth: int = 3) -> str:
    """Dotted key of the tensors; empty when they lie at the top."""
    if depth and isinstance(content, dict):
        for key in KEYS:
            inner = content.get(key)
            if isinstance(inner, dict) and inner:
                deeper = _search(inner, depth - 1)
                if deeper or _tensors_of(inner):
                    return f"{key}.{deeper}" if deeper else key
    return ""


def _at(content: Any, key: str) -> Any:
    """The value under a key, or under a dotted path of keys."""
    if isinstance(content, dict) and key in content:
        return content[key]
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _tensors_of(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


# --------------------------------------------------------------------------- fitting


def _renamed(
    named: dict[str, Tensor], expected: Mapping[str, Tensor], renames: Iterable[tuple[str, str]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Take wrappers' prefixes off and translate names, where that makes more of them fit."""
    notes: list[str] = []
    for _ in range(4):  # wrappers may nest: module._orig_mod.model.
        for prefix in PREFIXES:
            shorter = {k.replace(prefix, "", 1) if k.startswith(prefix) else k: v for k, v in named.items()}
            whole = prefix != "model." and all(k.startswith(prefix) for k in named)
            if (
                len(shorter) == len(named)
                and shorter.keys() != named.keys()
                and (whole or _fit(shorter, expected, named))
            ):
                named, notes = shorter, [*notes, f"prefix {prefix} taken off"]
    renamed = {_translate(k, renames): v for k, v in named.items()}
    if len(renamed) == len(named) and _fit(renamed, expected, named):
        named, notes = renamed, [*notes, "names translated from another code base"]
    return named, notes


def _fit(candidate: Mapping[str, Tensor], expected: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> bool:
    return len(candidate.keys() & expected.keys()) > len(current.keys() & expected.keys())


def _translate(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for old, new in renames:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _loose(strict: Sequence[str] | bool) -> Callable[[str], bool]:  # noqa: FBT001
    if isinstance(strict, bool):
        return lambda name: not strict
    return lambda name: within(name, strict)


def _shapes(name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"


def _mismatch(source: str, network: str, faults: Mapping[str, list[str]]) -> str:
    parts = [f"{len(n)} {what}: {', '.join(n[:5])}{' ...' if len(n) > 5 else ''}" for what, n in faults.items() if n]
    return f"{source} does not fit {network}: {'; '.join(parts)}. Parts that may start fresh: strict: [head]"
