"""Weights files: found, stripped, fitted or refused; nothing in them is ever run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdscale.errors import CheckpointError, CheckpointMismatch
from kdscale.models.resnet_cifar import ResNetCifar
from kdscale.nn.untrusted import import_weights
from kdscale.nn.weights import file_weights_hash, fit_tensors, load_weights, tensors_hash, weights_hash


def network(seed: int, classes: int = 4) -> ResNetCifar:
    torch.manual_seed(seed)
    return ResNetCifar(classes=classes, depth=8)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture
def trained() -> ResNetCifar:
    return network(1)


class TestFinding:
    @pytest.mark.parametrize("key", ["state_dict", "model", "ema", "model_ema", "net", "state_dict_ema"])
    def test_searches_the_usual_places(self, key: str, trained: ResNetCifar, tmp_path: Path) -> None:
        path = saved(tmp_path / "w.pth", {"epoch": 3, "best": torch.tensor(0.9), key: trained.state_dict()})
        model = network(2)
        assert f"tensors found under {key}" in load_weights(model, path).notes
        assert weights_hash(model) == weights_hash(trained)

    def test_takes_a_bare_state_dict_and_safetensors(self, trained: ResNetCifar, tmp_path: Path) -> None:
        save_file(trained.state_dict(), tmp_path / "w.safetensors")
        for path in (saved(tmp_path / "w.pt", trained.state_dict()), tmp_path / "w.safetensors"):
            model = network(2)
            assert load_weights(model, path).notes == ()
            assert weights_hash(model) == weights_hash(trained)

    def test_names_the_other_candidates(self, trained: ResNetCifar, tmp_path: Path) -> None:
        path = saved(
            tmp_path / "w.pth", {"state_dict": network(5).state_dict(), "state_dict_ema": trained.state_dict()}
        )
        assert any("not taken: state_dict_ema" in n for n in load_weights(network(2), path).notes)
        model = network(2)
        load_weights(model, path, key="state_dict_ema")
        assert weights_hash(model) == weights_hash(trained)

    def test_a_wrong_key_shows_what_there_is(self, trained: ResNetCifar, tmp_path: Path) -> None:
        path = saved(tmp_path / "w.pth", {"teacher": trained.state_dict()})
        with pytest.raises(CheckpointError, match="weights_key"):
            load_weights(network(2), path)
        with pytest.raises(CheckpointError, match="it has: teacher"):
            load_weights(network(2), path, key="student")
        load_weights(network(2), path, key="teacher")

    def test_missing_and_damaged_files_are_checkpoint_errors(self, tmp_path: Path) -> None:
        (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
        (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint either")
        with pytest.raises(CheckpointError, match="do not exist"):
            load_weights(network(2), tmp_path / "none.pth")
        for name in ("bad.pth", "bad.safetensors"):
            with pytest.raises(CheckpointError, match=name):
                load_weights(network(2), tmp_path / name)


class TestFitting:
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
    def test_takes_wrappers_prefixes_off_and_says_so(self, prefix: str, trained: ResNetCifar) -> None:
        model = network(2)
        notes = fit_tensors(model, {prefix + k: v for k, v in trained.state_dict().items()}).notes
        assert any("taken off" in note for note in notes)
        assert weights_hash(model) == weights_hash(trained)

    def test_keeps_a_prefix_that_belongs_to_the_network(self) -> None:
        inner = nn.Module()
        inner.model = nn.Linear(2, 2)
        notes = fit_tensors(inner, {"model.weight": torch.ones(2, 2), "model.bias": torch.ones(2)}).notes
        assert notes == ()

    def test_lists_the_first_five_of_each(self, trained: ResNetCifar) -> None:
        tensors = {k: v for k, v in trained.state_dict().items() if not k.startswith("stage")}
        tensors |= {f"extra{i}": torch.zeros(1) for i in range(7)}
        with pytest.raises(CheckpointMismatch) as error:
            fit_tensors(network(2), tensors, source="w.pth")
        assert "missing in the file: stage1.0.conv1.weight" in str(error.value)
        assert "7 unknown to the network: extra0, extra1, extra2, extra3, extra4 ..." in str(error.value)
        assert "strict: [head]" in str(error.value)

    def test_named_parts_may_start_fresh(self, trained: ResNetCifar) -> None:
        other = network(3, classes=9)
        with pytest.raises(CheckpointMismatch, match=r"head\.weight \(4, 64\) instead of \(9, 64\)"):
            fit_tensors(other, trained.state_dict())
        head = other.head.weight.detach().clone()
        loaded = fit_tensors(other, trained.state_dict(), strict=["head"])
        assert "left at their initial values: head" in loaded.notes
        assert torch.equal(other.head.weight, head)
        assert torch.equal(other.stem[0].weight, trained.stem[0].weight)

    def test_a_part_is_a_whole_name(self, trained: ResNetCifar) -> None:
        lacking = {k: v for k, v in trained.state_dict().items() if not k.startswith("stage1.")}
        with pytest.raises(CheckpointMismatch):
            fit_tensors(network(2), lacking, strict=["stage"])

    def test_reads_the_names_of_other_code_bases(self, trained: ResNetCifar) -> None:
        def theirs(name: str) -> str:
            name = name.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.").replace("stage", "layer")
            return name.replace("head.", "fc.")

        model = network(2)
        fit_tensors(model, {f"module.{theirs(k)}": v for k, v in trained.state_dict().items()})
        assert weights_hash(model) == weights_hash(trained)

    def test_a_refused_file_changes_nothing(self, trained: ResNetCifar) -> None:
        model = network(2)
        before = weights_hash(model)
        with pytest.raises(CheckpointMismatch):
            fit_tensors(model, {**trained.state_dict(), "extra": torch.zeros(1)})
        assert weights_hash(model) == before


class TestHash:
    def test_covers_values_names_buffers_and_dtypes(self) -> None:
        base = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
        others = [
            {**base, "a": torch.tensor([0.0, 0, 0, -0.0])},
            {"a": base["a"], "c": base["b"]},
            {**base, "b": torch.ones(4)},
            {**base, "a": torch.zeros(4, dtype=torch.float64)},
        ]
        assert len({tensors_hash(t) for t in [base, *others]}) == 5
        model = network(0)
        before = weights_hash(model)
        assert model.stem[1].running_mean is not None
        model.stem[1].running_mean.add_(1)
        assert weights_hash(model) != before

    def test_does_not_depend_on_layout_or_order(self) -> None:
        model = network(0)
        before = weights_hash(model)
        assert weights_hash(model.to(memory_format=torch.channels_last)) == before  # type: ignore[call-overload]
        tensors = dict(model.state_dict())
        assert tensors_hash(dict(reversed(tensors.items()))) == tensors_hash(tensors)


class Payload:
    """Would leave a file behind if anything ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class TestUntrusted:
    def test_a_file_with_more_than_tensors_names_the_command(self, trained: ResNetCifar, tmp_path: Path) -> None:
        path = saved(tmp_path / "vit.pth", {"state_dict": trained.state_dict(), "args": argparse.Namespace(lr=1)})
        with pytest.raises(CheckpointError) as error:
            load_weights(network(2), path)
        assert "holds argparse.Namespace, which may run code on loading" in str(error.value)
        assert f"python launch/import.py {path} --trust --out vit.safetensors" in str(error.value)

    @pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
    def test_its_tensors_come_out_and_nothing_runs(
        self, options: dict[str, Any], trained: ResNetCifar, tmp_path: Path
    ) -> None:
        trap = tmp_path / "ran"
        content = {"state_dict": trained.state_dict(), "args": argparse.Namespace(lr=1), "trap": Payload(trap)}
        path, out = saved(tmp_path / "w.pth", content, **options), tmp_path / "w.safetensors"
        lines = import_weights(path, out, trust=True)
        assert any("argparse.Namespace" in line for line in lines)
        assert not trap.exists()
        model = network(2)
        load_weights(model, out)
        assert weights_hash(model) == weights_hash(trained)
        assert tensors_hash(load_file(out)) == file_weights_hash(out)

    def test_a_pickled_network_gives_its_state_dict(self, trained: ResNetCifar, tmp_path: Path) -> None:
        trained.register_buffer("scratch", torch.zeros(3), persistent=False)
        path, out = saved(tmp_path / "w.pth", {"model": trained}), tmp_path / "w.safetensors"
        import_weights(path, out, trust=True)
        assert tensors_hash(load_file(out)) == tensors_hash(trained.state_dict())

    def test_without_trust_it_stays_closed(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "w.pth", {"args": argparse.Namespace()})
        with pytest.raises(CheckpointError, match="--trust"):
            import_weights(path, tmp_path / "w.safetensors")
        assert not (tmp_path / "w.safetensors").exists()

    def test_damaged_files_are_errors_also_when_trusted(self, tmp_path: Path) -> None:
        (tmp_path / "w.pth").write_bytes(b"\x80\x02garbage")
        with pytest.raises(CheckpointError, match=r"w\.pth"):
            import_weights(tmp_path / "w.pth", tmp_path / "w.safetensors", trust=True)

    def test_the_command_line(self, trained: ResNetCifar, tmp_path: Path, root: Path) -> None:
        path = saved(tmp_path / "w.pth", {"args": argparse.Namespace(), "net": {"w": torch.ones(3)}})
        command = [
            sys.executable,
            str(root / "launch" / "import.py"),
            str(path),
            "--out",
            str(tmp_path / "o.safetensors"),
        ]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr
        done = subprocess.run([*command, "--trust"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "1 tensors" in done.stdout
        assert load_file(tmp_path / "o.safetensors")["w"].tolist() == [1, 1, 1]
