"""A small vision transformer teaches a small convolutional network, through every loss that compares features."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.errors import ShapeError, TapError
from kdscale.pipeline.assemble import Assembled, Parent, assemble, dry_backward
from kdscale.pipeline.tapped import wanted_taps

INFO = DatasetInfo(10, 1, 28, 60, 20, (0.3,), (0.35,), tuple("abcdefghij"))
VIT = {
    "model": "timm:vit_tiny_patch16_224", "img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 2,
}  # fmt: skip
SWIN = {
    "model": "timm:swin_tiny_patch4_window7_224", "img_size": 28, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
    "num_heads": [2, 2],
}  # fmt: skip
MAP = {"module": "blocks.1", "as": "map"}
LOSSES: dict[str, dict[str, Any]] = {
    "at": {"student": "stage3", "teacher": MAP},
    "sp": {"student": "stage3", "teacher": MAP},
    "rkd": {"student": "pooled", "teacher": {"module": "norm", "as": "cls"}},
    "crd": {"student": "pooled", "teacher": {"module": "blocks.1", "as": "pooled"}},
    "pkt": {"student": "pooled", "teacher": {"module": "blocks.1", "as": "pooled"}},
    "ickd": {"student": "stage3", "teacher": MAP},
    "fitnet": {"student": "stage3", "teacher": MAP},
}


# not importorskip: timm imports torchvision, which loads on a CPU build only as kdscale imports it
pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


def stage(loss: str, taps: dict[str, Any], **options: Any) -> StageSpec:
    return StageSpec.model_validate(
        {
            "name": "s",
            "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]},
            "teachers": {"t": {"from": "t"}},
            "passes": {"main": [{"name": loss, "taps": taps, **options}]},
        }
    )


def assembled(spec: StageSpec, teacher: dict[str, Any] | None = None) -> Assembled:
    parent = Parent(StageSpec.model_validate({"name": "t", "student": teacher or VIT}), INFO)
    return assemble(spec, INFO, {"t": parent}, total_steps=10, train_rows=60)


def gradient(built: Assembled) -> dict[str, float]:
    """Largest absolute gradient of each of the student's modules, of one pass over made-up images."""
    seen: dict[str, float] = {}
    for name, parameter in built.network.model.named_parameters():

        def note(grad: torch.Tensor, part: str = name.partition(".")[0]) -> None:
            seen[part] = max(seen.get(part, 0.0), float(grad.abs().max()))

        parameter.register_hook(note)
    dry_backward(built, INFO, 28, "stages.s")
    return seen


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_reach_the_convolutions_and_are_finite(loss: str) -> None:
    built = assembled(stage(loss, LOSSES[loss]))
    reached = gradient(built)
    assert {"stem", "stage1", "stage2", "stage3"} <= reached.keys()
    assert all(0 < value < float("inf") for value in reached.values()), reached
    assert all(p.grad is None for p in built.teachers["t"].parameters())


def test_shapes_are_those_behind_the_transform() -> None:
    taps = {"student": ["stage3", "stage3"], "teacher": [MAP, {"module": "blocks.1", "as": "pooled"}]}
    built = assembled(stage("sp", taps))
    assert built.strategy.terms["sp"].shapes.teacher == [(24, 4, 4), (24,)]  # type: ignore[index, union-attr]
    assert len(built.teachers["t"].catches) == 1


def test_a_regressor_ends_without_a_relu_as_tokens_are_negative_too() -> None:
    built = assembled(stage("fitnet", LOSSES["fitnet"]))
    assert not built.strategy.terms["fitnet"].shapes.post_relu  # type: ignore[index, union-attr]


def test_a_transformer_with_channels_last_teaches_through_maps() -> None:
    spec = stage("at", {"student": "stage3", "teacher": {"module": "layers.1", "as": "map"}})
    built = assembled(spec, SWIN)
    assert built.teachers["t"].tap_shapes(28) == [(32, 7, 7)]
    assert all(value > 0 for value in gradient(built).values())


@pytest.mark.parametrize(
    ("taps", "teacher", "said"),
    [
        ({"teacher": {"module": "blocks.1", "as": "map", "grid": [3, 5]}}, VIT,
         r"^stages\.s\.losses\.at\.taps\.teacher: tap blocks\.1 as map, .*leaves 16 .*: no square, nor the grid"),
        ({"teacher": {"module": "blocks.11", "as": "map"}}, VIT,
         r"^stages\.s\.losses\.at\.taps\.teacher: VisionTransformer has no tap blocks\.11; did you mean blocks\.1"),
        ({"teacher": MAP, "student": {"module": "stage3", "as": "cls"}}, VIT,
         r"^stages\.s\.losses\.at\.taps\.student: tap stage3 as cls, .*a map has no class token"),
        ({"teacher": "layers.1"}, SWIN,
         r"^stages\.s\.losses\.at\.taps\.teacher: tap layers\.1, .*channels last; say \{module: layers\.1, as: map\}"),
        ({"teacher": {"module": "layers.0.blocks.0.attn", "as": "map"}}, SWIN,
         r"^stages\.s\.losses\.at\.taps\.teacher: SwinTransformer: tap layers.* for 2 images: its rows are windows"),
    ],
)  # fmt: skip
def test_a_tap_that_does_not_work_is_named_by_its_key(taps: dict[str, Any], teacher: dict[str, Any], said: str) -> None:
    with pytest.raises(TapError, match=said):
        assembled(stage("at", {"student": "stage3"} | taps), teacher)


def test_tokens_where_maps_are_meant_name_the_mend() -> None:
    with pytest.raises(ShapeError, match=r"at: .*not \[17, 24\]; say how to read .*\{module: NAME, as: map\}"):
        assembled(stage("at", {"student": "stage3", "teacher": "blocks.1"}))


def test_a_tap_in_one_form_is_wanted_once() -> None:
    spec = stage("at", {"student": ["stage3", "stage3"], "teacher": [MAP, "blocks.1", MAP]})
    wanted = wanted_taps(spec.passes["main"], only="t")
    assert [str(tap) for tap in wanted["t"]] == ["blocks.1 as map", "blocks.1"]
    assert wanted[None] == ["stage3"]
