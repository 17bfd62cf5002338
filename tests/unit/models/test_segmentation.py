"""The segmentation network: a class for each pixel, at any output stride, and only the taps' sizes tell them apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdscale.models.segmentation import SegmentationResNet
from kdscale.nn.taps import Catch

STRIDES = [2, 4, 8, 16, 32]


def built(**arguments: Any) -> SegmentationResNet:
    torch.manual_seed(0)
    return SegmentationResNet(**{"classes": 5, "channels": 1, "depth": 8, "widths": [4, 6, 8], **arguments}).eval()


def is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", [64, 50])
def test_answers_at_the_images_size_whatever_its_stride(stride: int, size: int) -> None:
    model, last = built(output_stride=stride), Catch("stage3", "stage3")
    model.stage3.register_forward_hook(last)
    with torch.no_grad():
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 5, size, size)
    assert last.shape == (8, -(-size // stride), -(-size // stride)) or (stride == 32 and size == 50)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stride_changes_no_parameter(channels: int) -> None:
    """Dilation takes the place of stride: weights of one stride fit another, but for the first shortcuts."""
    shapes = [{k: v.shape for k, v in built(channels=channels, output_stride=s).state_dict().items()} for s in STRIDES]
    common = [{k: v for k, v in names.items() if "downsample" not in k} for names in shapes]
    assert all(names == common[0] for names in common)


@pytest.mark.parametrize(("stride", "dilations"), [(4, [1, 2, 4]), (8, [1, 1, 2]), (16, [1, 1, 1]), (32, [1, 1, 1])])
def test_a_stage_that_does_not_halve_the_map_looks_twice_as_far(stride: int, dilations: list[int]) -> None:
    model = built(output_stride=stride, depth=14)
    for number, dilation in enumerate(dilations, 1):
        found = {m.dilation[0] for m in model.get_submodule(f"stage{number}").modules() if is_3x3(m)}
        assert found == {dilation}


@pytest.mark.parametrize(
    "arguments", [{"depth": 10}, {"widths": [4, 8]}, {"output_stride": 12}], ids=["depth", "widths", "stride"]
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        built(**arguments)
