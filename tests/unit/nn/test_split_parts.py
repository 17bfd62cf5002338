"""The two parts that are deployed: composed they are the network, apart they hold what each machine needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdscale.api import DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.errors import ConfigError
from kdscale.nn.build import build_network
from kdscale.nn.network import Network
from kdscale.nn.split_parts import split_parts, wire_cost
from tests.unit.nn.small_split import head_of, images, network

SPLIT = {"split_at": "stage2", "channels": 2, "size": 4}


def trained(model: str = "resnet_cifar", **options: Any) -> Network:
    """Whose BatchNorm and wire have seen images."""
    made = network(model, split_head=SPLIT, **options)
    for seed in range(3):
        made.train()(images(32, seed))
    return made.eval()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("resnet_cifar", {}),
        ("resnet_cifar", {"input": {"size": 32, "channels": 3}}),
        ("resnet_cifar", {"classes": 5, "class_map": [4, 0, 2]}),
        ("vgg", {}),
    ],
)
def test_the_server_answers_to_the_devices_bytes_as_the_whole_network(model: str, options: dict[str, Any]) -> None:
    whole = trained(model, **options)
    device, server = split_parts(whole)
    sent = device(images())
    assert torch.equal(server(sent), whole(images()).logits)
    with head_of(whole).wire.uncoded():
        assert not torch.equal(server(sent), whole(images()).logits)  # bytes were in between


def test_a_sample_sends_as_many_bytes_as_is_said() -> None:
    whole = trained(input={"size": 32})
    sent = split_parts(whole)[0](images())
    assert sent.dtype == torch.uint8
    assert wire_cost(whole) == {"bytes": 2 * 4 * 4, "input_bytes": 16 * 16}
    assert sent[0].numel() * sent.element_size() == 2 * 4 * 4


def test_a_resnet56_for_cifar_sends_128_bytes_of_its_images_3072() -> None:
    info = DatasetInfo(10, 3, 32, 100, 20, (0.5,) * 3, (0.25,) * 3, tuple("abcdefghij"))
    head = {"split_at": "stage2", "channels": 2, "size": 8}
    whole = build_network(StudentConfig(model="resnet_cifar", depth=56, split_head=head), info, 32)
    assert head_of(whole).shape == (2, 8, 8)
    assert wire_cost(whole) == {"bytes": 128, "input_bytes": 3072}


def test_each_part_holds_its_own_weights_and_the_range_alone() -> None:
    whole = trained()
    device, server = split_parts(whole)
    names = [set(part.state_dict()) for part in (device, server)]
    assert names[0] & names[1] == {"wire.low", "wire.high"}
    assert {name.partition(".")[0] for name in names[0]} == {"encoder", "wire"}
    assert {name.partition(".")[0] for name in names[1]} == {"decoder", "wire", "tail"}
    assert len(names[0] | names[1]) == len(whole.model.state_dict())
    split_parts(whole)[1].decoder[0].weight.data.zero_()  # type: ignore[union-attr]
    assert torch.equal(server(device(images())), whole(images()).logits)  # they are copies


def test_parts_go_through_files_of_their_own(tmp_path: Path) -> None:
    whole = trained()
    for name, part in zip(("device", "server"), split_parts(whole), strict=True):
        save_file(part.state_dict(), tmp_path / f"{name}.safetensors")
    device, server = split_parts(network(split_head=SPLIT))
    device.load_state_dict(load_file(tmp_path / "device.safetensors"))
    server.load_state_dict(load_file(tmp_path / "server.safetensors"))
    assert torch.equal(server(device(images())), whole(images()).logits)


def test_a_network_without_a_split_head_has_no_parts() -> None:
    assert wire_cost(network()) is None
    with pytest.raises(ConfigError, match="split_head"):
        split_parts(network())
