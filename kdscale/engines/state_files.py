"""The files of an engine's state: safetensors and JSON, the same whoever writes them.

training.safetensors           parameters, and whatever else all ranks hold alike; rank 0 writes it
shard_rank00000.safetensors    what a rank holds alone, where an engine shards its state
buffers_rank00000.safetensors  a rank's BatchNorm statistics
engine.json                    the step, the loss scale, and how the state is sharded
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdscale import ranks
from kdscale.errors import CheckpointMismatch

__all__ = ["read_engine", "read_tensors", "restore_buffers", "write_buffers", "write_engine", "write_tensors"]

_SHARED, _ENGINE = "training.safetensors", "engine.json"


def write_tensors(folder: Path, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Write what all ranks hold alike once, and what this rank holds alone, if anything."""
    if ranks.rank() == 0:
        save_file(_whole(shared), folder / _SHARED)
    if own:
        save_file(_whole(own), folder / _of_rank("shard"))


def read_tensors(folder: Path, device: torch.device, *, sharded: bool) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote on this rank."""
    tensors: dict[str, Tensor] = load_file(folder / _SHARED, device=str(device))
    shard = folder / _of_rank("shard")
    # an optimizer without state, as before its first update, has no shard
    return tensors | load_file(shard, device=str(device)) if sharded and shard.exists() else tensors


def write_engine(folder: Path, state: Mapping[str, Any], sharding: Mapping[str, int]) -> None:
    """Write the small state, and how the tensors are sharded (empty: not at all); only rank 0 does anything."""
    if ranks.rank() == 0:
        document = {**state, "sharding": sharding} if sharding else state
        (folder / _ENGINE).write_text(json.dumps(document))


def read_engine(folder: Path, sharding: Mapping[str, int]) -> dict[str, Any]:
    """Read what `write_engine` wrote. Raises: CheckpointMismatch where it is sharded in another way."""
    state: dict[str, Any] = json.loads((folder / _ENGINE).read_text())
    found = state.get("sharding", {})
    if found != sharding:
        raise CheckpointMismatch(
            f"{folder} was written by {_described(found)}, and this is {_described(sharding)}: a sharded optimizer "
            f"goes on only as it began. Give {_keys(found)} to go on with it, or --fresh STAGE to begin again"
        )
    return state


def write_buffers(folder: Path, module: nn.Module) -> None:
    """Write this rank's buffers."""
    save_file(_whole(dict(module.named_buffers())), folder / _of_rank("buffers"))


@torch.no_grad()
def restore_buffers(folder: Path, module: nn.Module) -> None:
    """Read this rank's buffers; what another number of ranks wrote is averaged, unless they all held the same."""
    files = sorted(folder.glob("buffers_rank*.safetensors"))
    chosen = [load_file(file) for file in ([folder / _of_rank("buffers")] if len(files) == ranks.world() else files)]
    for name, buffer in module.named_buffers():
        values = [tensors[name] for tensors in chosen]
        buffer.copy_(values[0] if _alike(values) else torch.stack([v.double() for v in values]).mean(0))


def _alike(values: Sequence[Tensor]) -> bool:
    """Whether all are equal: a mean would round them, and hold copies in float64 of what may be large."""
    return all(torch.equal(value, values[0]) for value in values[1:])


def _of_rank(kind: str) -> str:
    return f"{kind}_rank{ranks.rank():05d}.safetensors"


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as the file format demands: copies of those that do not stand alone."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        # a copy of everything would hold the state twice, on a GPU too, and stop training for longer
        found[name] = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
    return found


def _described(sharding: Mapping[str, int]) -> str:
    if not sharding:
        return "an engine that shards nothing (ddp, or zero_stage 0)"
    return f"ZeRO {sharding['zero_stage']} over {sharding['world']} processes"


def _keys(sharding: Mapping[str, int]) -> str:
    if not sharding:
        return "engine.zero_stage=0"
    return f"engine.name=deepspeed engine.zero_stage={sharding['zero_stage']} engine.processes={sharding['world']}"
