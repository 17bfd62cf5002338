"""A small head in the place of a network's first modules: what it takes away, what it leaves, where it is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ConfigError, ShapeError, TapError
from kdscale.losses.fitnet import Hints
from tests.unit.nn.small_split import head_of, images, network

CHAINS = [
    ("resnet_cifar", "stage1"), ("resnet_cifar", "stage2"), ("wrn", "stage2"), ("vgg", "stage2"),
    ("plain_cnn", "stage1"), ("mobilenet_v2", "stage2"), ("shufflenet_v2", "stage2"),
]  # fmt: skip


class Given(nn.Module):
    """Answers with what it was made with."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


@pytest.mark.parametrize(("model", "split"), CHAINS)
def test_with_the_teachers_own_feature_it_is_the_teacher(model: str, split: str) -> None:
    teacher = network(model, [split]).eval()
    student = network(model, [split], split_head={"split_at": split, "channels": 2}).eval()
    student.model.load_state_dict(teacher.model.state_dict(), strict=False)
    head, expected = head_of(student), teacher(images())
    head.encoder, head.decoder = Given(expected.features[0]), nn.Identity()
    with head.wire.uncoded():
        found = student(images())
    assert torch.equal(found.logits, expected.logits)
    feature = tuple(expected.features[0].shape[1:])
    hints = Hints(Hints.Config(regressor="none"), Shapes(3, [feature], [feature]))
    batch = Batch(images(), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)
    assert hints(Outputs(found.logits, found.features), expected, batch).abs().max() == 0


def test_what_follows_keeps_its_names_and_initial_weights() -> None:
    whole, split = network().model, network(split_head={"split_at": "stage2", "channels": 2}).model
    ours, theirs = split.state_dict(), whole.state_dict()
    kept = {name for name in theirs if name.startswith(("stage3.", "head."))}
    assert {name for name in ours if not name.startswith("stage2.")} == kept
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    assert head_of(network(split_head={"split_at": "stage2", "channels": 2})).replaced >= {"stem", "stage1", "stage2"}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_wire_is_as_narrow_as_asked_and_the_feature_that_of_the_teacher(size: int) -> None:
    student = network(taps=["stage2"], split_head={"split_at": "stage2", "channels": 3, "size": size, "width": 5})
    head, sent = head_of(student), []
    head.wire.register_forward_hook(lambda *called: sent.append(tuple(called[2].shape[1:])))
    answered = student.eval()(images())
    assert sent == [head.shape] == [(3, size, size)]
    assert answered.features[0].shape == network(taps=["stage2"]).eval()(images()).features[0].shape


def test_a_copy_answers_by_itself() -> None:
    student = network(split_head={"split_at": "stage2", "channels": 2})
    student(images())  # its wire sees a range
    twin = copy.deepcopy(student.eval())
    nn.init.zeros_(twin.model.head.weight)  # type: ignore[arg-type, union-attr]
    before = student(images()).logits
    assert not torch.equal(twin(images()).logits, before)
    assert torch.equal(student(images()).logits, before)
    assert head_of(twin)._images is None  # handed on, and no longer held


def test_it_begins_as_the_seed_says() -> None:
    made = [network(split_head={"split_at": "stage2", "channels": 2}).model.state_dict() for _ in range(2)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_tap_on_what_is_gone_is_refused() -> None:
    with pytest.raises(TapError, match=r"tap stage1 .*gone.*stage2"):
        network(taps=["stage1"], split_head={"split_at": "stage2", "channels": 2})


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"split_at": "stagger2"}, ConfigError, r"split_head\.split_at: .*stagger2"),
        ({"split_at": "pooled"}, ShapeError, r"split_head\.split_at: pooled gives \[8\]; .*square maps"),
        ({"split_at": "stage2.0.conv2"}, ConfigError, r"split_head\.split_at: .*does not run from"),
        ({"split_at": "stage2", "size": 3}, ShapeError, r"split_head\.size: 3 .*one of 8, 4, 2, 1"),
        ({"split_at": "stage2", "size": 16}, ShapeError, r"split_head\.size: 16"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        network(split_head={"channels": 2, **options})


def test_outside_of_its_network_it_has_no_images() -> None:
    with pytest.raises(ShapeError, match="within its network"):
        head_of(network(split_head={"split_at": "stage2", "channels": 2}))(torch.zeros(1, 1, 16, 16))
