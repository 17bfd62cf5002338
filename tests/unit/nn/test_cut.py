"""What is behind a module of a network, and when a network cannot be cut there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdscale.errors import ConfigError, ShapeError, TapError
from kdscale.nn.cut import Handed, before_last_stage, behind, catching, check_cut
from kdscale.nn.network import Network, NetworkInput

SIZE = 6


class Chain(nn.Module):
    """Three parts in sequence, the middle one nested, and one module that runs on both sides."""

    taps = {"stage1": ("first", True), "stage2": ("inner.second", True), "stage10": ("third", True)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU())
        self.inner = nn.ModuleDict({"second": nn.Conv2d(3, 4, 3, padding=1), "third": nn.Conv2d(4, 5, 3, padding=1)})
        self.halve = nn.MaxPool2d(2)
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.inner["second"](self.halve(self.first(images)))
        logits: Tensor = self.head(self.halve(self.inner["third"](x)).mean((2, 3)))
        return logits


class Bypassed(Chain):
    """Its head reads what its first part gave too."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        x = self.inner["second"](self.halve(first))
        logits: Tensor = self.head(self.halve(self.inner["third"](x)).mean((2, 3)))
        return logits + first.mean((1, 2, 3))[:, None]


class Shown(Chain):
    """Its head reads the image too, which every branch is shown."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + images.mean((1, 2, 3))[:, None]


class Twice(Chain):
    """Runs its first part twice."""

    def forward(self, images: Tensor) -> Tensor:
        self.first(images)
        return super().forward(images)


class Pairs(Chain):
    """Its first part gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.pair(images)[0])


class Pair(nn.Module):
    """Gives what it gets, twice."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Picky(Chain):
    """Does not take the images where its first part's features belong."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.inner["second"](self.first(images)[:, :3].reshape(-1, 3, SIZE, SIZE))
        logits: Tensor = self.head(self.inner["third"](x).mean((2, 3)))
        return logits


def network(model: nn.Module) -> Network:
    torch.manual_seed(0)
    seen = NetworkInput(given=1, given_size=SIZE, channels=1, size=SIZE, mean=[0.5], std=[0.5])
    return Network(model, seen).eval()


def images() -> Tensor:
    return torch.randint(0, 256, (4, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("split", ["first", "stage2", "inner.third", "halve"])
def test_the_part_behind_goes_on_from_the_features_it_is_handed(split: str) -> None:
    if split == "halve":  # runs on both sides
        with pytest.raises(ConfigError, match="fires 2 times"):
            check_cut(network(Chain()), split, SIZE)
        return
    torch.manual_seed(0)
    model = Chain()
    whole, handed = network(model), Handed()
    catch = catching(whole, split)
    expected = whole(images()).logits
    features = catch.take()
    torch.manual_seed(0)
    part = behind(network(Chain()), split, SIZE, handed)
    part.model.load_state_dict(model.state_dict(), strict=False)
    with handed.over(features):
        assert torch.equal(part(images()).logits, expected)
    assert 0 < len(list(part.parameters())) < len(list(whole.parameters()))
    assert check_cut(network(Chain()), split, SIZE) == tuple(features.shape[1:])


def test_features_are_held_only_while_networks_are_asked() -> None:
    handed, feature = Handed(), torch.ones(2)
    with handed.over(feature):
        assert handed(images()).data_ptr() == feature.data_ptr()
    with pytest.raises(ShapeError, match="without the features"):
        handed(images())


@pytest.mark.parametrize(
    ("model", "split", "said"),
    [
        (Bypassed, "stage2", "reads more than its output"),
        (Twice, "first", "fires 2 times"),
        (Picky, "stage2", "does not run from stage2 on"),
        (Chain, "head", "nothing is left behind it"),
        (Chain, "inner", "is silent"),
        (Pairs, "pair", "gives a tuple, not a tensor"),
    ],
)
def test_a_network_that_cannot_be_cut_there_is_refused(model: type[Chain], split: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"split_at: .*{said}"):
        check_cut(network(model()), split, SIZE)


def test_reading_the_image_itself_is_no_way_around_the_cut() -> None:
    assert check_cut(network(Shown()), "stage2", SIZE) == (4, SIZE // 2, SIZE // 2)


def test_an_unknown_module_is_named_with_the_nearest() -> None:
    with pytest.raises(TapError, match="did you mean stage2"):
        check_cut(network(Chain()), "stag2", SIZE)


def test_the_last_stage_is_branched_by_default() -> None:
    assert before_last_stage(Chain()) == "stage2"
    with pytest.raises(ConfigError, match="split_at"):
        before_last_stage(nn.Linear(2, 2))
