"""Tokens as maps and the rest: each form, what a model says of its tokens, and what is asked for when it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.config.taps import TapConfig
from kdscale.errors import TapError
from kdscale.nn.network import Network, NetworkInput
from kdscale.nn.tap_forms import Form, Told, fitting, map_of, tokens_of, told_by

VIT = Told(prefix=1, grid=(4, 4), class_token=True, layout="NCHW")
SILENT = Told()


def numbered(*shape: int) -> Tensor:
    return torch.arange(float(torch.tensor(shape).prod())).reshape(shape)


def tap(form: str, **options: Any) -> TapConfig:
    return TapConfig.model_validate({"module": "blocks.8", "as": form, **options})


def read(feature: Tensor, form: str, told: Told = SILENT, **options: Any) -> Tensor:
    return Form(tap(form, **options), told)(feature)


# --------------------------------------------------------------------------- forms


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_maps_and_tokens_are_inverse(batch: int, width: int, rows: int, columns: int) -> None:
    tokens = numbered(batch, rows * columns, width)
    maps = map_of(tokens, (rows, columns))
    assert maps.shape == (batch, width, rows, columns)
    assert torch.equal(tokens_of(maps), tokens)
    assert torch.equal(map_of(tokens_of(maps), (rows, columns)), maps)


@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))
def test_every_form_reads_the_patches_behind_the_prefix(prefix: int, rows: int, columns: int) -> None:
    patches = numbered(2, rows * columns, 3)
    feature = torch.cat([torch.full((2, prefix, 3), -7.0), patches], dim=1)
    assert torch.equal(read(feature, "tokens", prefix=prefix), patches)
    assert torch.equal(read(feature, "map", prefix=prefix, grid=[rows, columns]), map_of(patches, (rows, columns)))
    torch.testing.assert_close(read(feature, "pooled", prefix=prefix), patches.mean(dim=1))
    if prefix:
        assert (read(feature, "cls", prefix=prefix) == -7).all()


def test_a_map_is_laid_out_row_by_row() -> None:
    tokens = torch.tensor([[[9.0], [0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]])
    assert read(tokens, "map", prefix=1, grid=[2, 3])[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_map_stays_a_map_and_its_positions_are_tokens() -> None:
    maps = numbered(2, 3, 4, 5)
    assert read(maps, "map") is maps
    assert torch.equal(read(maps, "tokens"), tokens_of(maps))
    torch.testing.assert_close(read(maps, "pooled"), maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(("told", "options"), [(Told(layout="NHWC"), {}), (SILENT, {"layout": "NHWC"})])
def test_channels_that_are_last_become_second(told: Told, options: dict[str, str]) -> None:
    feature = numbered(2, 4, 5, 3)
    maps = read(feature, "map", told, **options)
    assert maps.shape == (2, 3, 4, 5)
    assert torch.equal(maps[1, 2], feature[1, :, :, 2])
    torch.testing.assert_close(read(feature, "pooled", told, **options), feature.mean(dim=(1, 2)))


def test_the_users_layout_overrules_the_models() -> None:
    maps = numbered(2, 3, 4, 5)
    assert read(maps, "map", Told(layout="NHWC"), layout="NCHW") is maps


def test_what_is_pooled_already_stays() -> None:
    feature = numbered(2, 3)
    assert read(feature, "pooled") is feature


def test_half_precision_is_averaged_in_float32() -> None:
    feature = torch.full((2, 4096, 1), 1.0, dtype=torch.bfloat16)
    feature[:, ::2] = 1.0078125
    means = read(feature, "pooled", prefix=0)
    assert means.dtype == torch.float32
    assert means[0].item() == pytest.approx(1.00390625, abs=1e-6), "a bf16 would round it to one of both"
    assert read(feature.double(), "pooled", prefix=0).dtype == torch.float64


def test_a_name_alone_is_what_the_module_gives() -> None:
    feature = numbered(2, 17, 3)
    assert Form("blocks.8", VIT)(feature) is feature


def test_gradients_pass() -> None:
    for form in ("map", "pooled", "cls", "tokens"):
        feature = torch.randn(2, 17, 3, requires_grad=True)
        read(feature, form, VIT).square().sum().backward()
        assert feature.grad is not None
        reached = feature.grad.abs().sum(dim=(0, 2)) > 0
        assert reached.tolist() == ([True] + [False] * 16 if form == "cls" else [False] + [True] * 16)


# --------------------------------------------------------------------------- the model's word


def test_the_model_says_how_many_tokens_come_before() -> None:
    assert read(numbered(2, 17, 3), "map", VIT).shape == (2, 3, 4, 4)
    assert read(numbered(2, 21, 3), "tokens", VIT._replace(prefix=5)).shape == (2, 16, 3)


def test_a_place_before_the_class_token_has_none() -> None:
    assert torch.equal(read(numbered(2, 16, 3), "tokens", VIT), numbered(2, 16, 3))
    with pytest.raises(TapError, match=r"no token comes before those of patches here; say as: pooled"):
        read(numbered(2, 16, 3), "cls", VIT)


def test_another_size_of_image_has_another_grid() -> None:
    assert read(numbered(2, 10, 3), "map", VIT).shape == (2, 3, 3, 3)


def test_the_users_prefix_overrules_the_models() -> None:
    assert read(numbered(2, 20, 3), "map", VIT, prefix=4).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("shape", "form", "told", "options", "said"),
    [
        (
            (17, 3),
            "map",
            SILENT,
            {},
            r"tap blocks\.8 as map, whose module gives \[17, 3\]: .*set prefix: N \(0: none\)",
        ),
        ((16, 3), "cls", SILENT, {}, "set prefix: N"),
        (
            (18, 3),
            "pooled",
            VIT,
            {},
            r"prefix_tokens is 1, which leaves 17 .*no square, nor the grid; set prefix: N",
        ),
        ((7, 3), "map", SILENT, {"prefix": 1}, r"6 patches: set grid: \[rows, columns\]"),
        ((7, 3), "map", SILENT, {"prefix": 1, "grid": [2, 2]}, "6 patches: set grid"),
        ((17, 3), "tokens", VIT, {"grid": [3, 5]}, "leaves 16 for patches: no square, nor the grid"),
        ((17, 3), "map", VIT, {"prefix": 17}, "prefix: 17 leaves no token of a patch"),
        ((20, 3), "cls", Told(4, (4, 4), class_token=False), {}, "registers but no class token; say as: pooled"),
        ((17, 3), "cls", SILENT, {"prefix": 0}, "no token comes before"),
        ((17, 3), "map", VIT, {"layout": "NHWC"}, "layout is for features with four dimensions"),
        ((3, 4, 4), "cls", VIT, {}, "a map has no class token; say as: pooled"),
        ((3, 4, 4), "map", VIT, {"grid": [4, 4]}, "a map already; prefix and grid are for tokens"),
        ((3, 4, 4), "pooled", VIT, {"prefix": 1}, "a map already; prefix and grid are for tokens"),
        ((3,), "map", VIT, {}, "no tokens .* and no map; leave `as` out"),
        ((3,), "cls", VIT, {}, "no tokens"),
        ((2, 3, 4, 4), "map", VIT, {}, "no tokens"),
    ],
)
def test_what_cannot_be_is_refused_with_its_mend(
    shape: tuple[int, ...], form: str, told: Told, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TapError, match=said) as caught:
        read(torch.zeros(2, *shape), form, told, **options)
    assert caught.value.tap == f"blocks.8 as {form}"


def test_channels_last_are_not_taken_for_a_map_unseen() -> None:
    with pytest.raises(TapError, match=r"channels last; say \{module: layers\.1, as: map\}"):
        Form("layers.1", Told(layout="NHWC"))(torch.zeros(2, 4, 4, 3))


def test_the_forms_that_fit_are_known_by_shape() -> None:
    assert fitting(VIT, "blocks.8", (17, 3)) == ("map", "pooled", "cls", "tokens")
    assert fitting(VIT, "patch_embed", (16, 3)) == ("map", "pooled", "tokens")
    assert fitting(SILENT, "x", (3, 4, 4)) == ("map", "pooled", "tokens")
    assert fitting(SILENT, "x", (17, 3)) == ()
    assert fitting(SILENT, "x", (3,)) == ("pooled",)


# --------------------------------------------------------------------------- in a network


class Patches(nn.Module):
    """Rows of 2 x 2 pixels, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.grid_size = (4, 4)
        self.proj = nn.Conv2d(3, 6, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Tokens(nn.Module):
    """A class token and a register before 16 patches, said in timm's words."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Patches()
        self.num_prefix_tokens = 2
        self.has_class_token = True
        self.prefix = nn.Parameter(torch.randn(1, 2, 6))
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.windows = nn.Identity()
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        self.windows(x.reshape(-1, 4, 6))
        x = self.block(torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1))
        logits: Tensor = self.head(x[:, 0])
        return logits


class Around(nn.Module):
    """A user's network that holds another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tokens()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits


def network(model: nn.Module, *taps: str | TapConfig) -> Network:
    return Network(model, NetworkInput(given=3, given_size=8, channels=3, size=8, mean=[0.5] * 3, std=[0.5] * 3), taps)


def of(module: str, form: str, **options: Any) -> TapConfig:
    return TapConfig.model_validate({"tap": module, "as": form, **options})


def test_one_hook_serves_several_forms() -> None:
    taps = [of("block", "map"), "block", of("block", "cls"), of("patch_embed", "map"), of("block", "tokens")]
    taken = network(Tokens(), *taps)
    assert [catch.path for catch in taken.catches] == ["block", "patch_embed"]
    assert len(taken.model.block._forward_hooks) == 1  # type: ignore[union-attr]
    assert taken.tap_shapes(8) == [(6, 4, 4), (18, 6), (6,), (6, 4, 4), (16, 6)]
    maps, whole, token, _, patches = taken(torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)).features
    assert torch.equal(token, whole[:, 0])
    assert torch.equal(patches, whole[:, 2:])
    assert torch.equal(tokens_of(maps), patches)
    assert all(taken.post_relu(tap) for tap in taps if "block" in str(tap))
    assert not taken.post_relu(of("patch_embed", "map"))


def test_a_network_within_another_is_asked_itself() -> None:
    assert network(Around(), of("inner.block", "map")).tap_shapes(8) == [(6, 4, 4)]
    assert told_by(Around(), "inner.block.1") == Told(2, (4, 4), class_token=True, layout=None)


def test_a_convolution_has_its_channels_second_in_whatever_network() -> None:
    model = Tokens()
    model.output_fmt = "NHWC"
    assert told_by(model, "patch_embed.proj").layout == "NCHW"
    assert told_by(model, "block").layout == "NHWC"


def test_rows_that_are_no_images_are_refused() -> None:
    with pytest.raises(TapError, match=r"tap windows as map .*gives \[8, 4, 6\] for 2 images: its rows are windows"):
        network(Tokens(), of("windows", "map", prefix=0)).tap_shapes(8)


def test_a_form_that_cannot_be_is_refused_in_the_dry_forward() -> None:
    with pytest.raises(TapError, match=r"tap block as map, .*15 patches: set grid"):
        network(Tokens(), of("block", "map", prefix=3)).tap_shapes(8)
