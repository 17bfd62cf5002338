from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.api import DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.errors import ConfigError
from kdscale.nn.block_swap import connectors_of, even_groups, even_pairs, swapped_in, units_of
from kdscale.nn.build import build_network
from kdscale.nn.network import Network
from kdscale.nn.sync_bn import measure_anew

INFO = DatasetInfo(5, 1, 16, 100, 10, (0.5,), (0.25,), tuple("abcde"))


def network(**arguments: object) -> Network:
    return build_network(StudentConfig.model_validate({"model": "resnet_cifar"} | arguments), INFO, 16)


@pytest.mark.parametrize(
    ("blocks", "groups", "sizes"), [(9, 3, [3, 3, 3]), (4, 2, [2, 2]), (4, 1, [4]), (7, 4, [2, 2, 2, 1])]
)
def test_groups_of_known_networks(blocks: int, groups: int, sizes: list[int]) -> None:
    assert [len(group) for group in even_groups(blocks, groups)] == sizes


@given(st.integers(1, 60), st.integers(1, 60))
def test_groups_are_an_even_partition_in_order(blocks: int, groups: int) -> None:
    if groups > blocks:
        with pytest.raises(ValueError, match="make no"):
            even_groups(blocks, groups)
        return
    found = even_groups(blocks, groups)
    sizes = [len(group) for group in found]
    assert [i for group in found for i in group] == list(range(blocks))
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == groups
    assert max(sizes) - min(sizes) <= 1


def test_blocks_pair_stage_by_stage() -> None:
    pairs = even_pairs(network(depth=14).model, network(depth=20).model)
    assert pairs["stage2.0"] == ["stage2.0", "stage2.1"]
    assert pairs["stage2.1"] == ["stage2.2"]
    assert len(pairs) == 6


def test_blocks_of_every_stage_pair() -> None:
    student = network(blocks=[1, 1, 1, 1], widths=[4, 4, 8, 8])
    teacher = network(blocks=[2, 1, 1, 3], widths=[4, 4, 8, 8])
    pairs = even_pairs(student.model, teacher.model)
    assert list(pairs) == ["stage1.0", "stage2.0", "stage3.0", "stage4.0"]
    assert pairs["stage4.0"] == ["stage4.0", "stage4.1", "stage4.2"]
    with pytest.raises(ConfigError, match=r"options\.units: the blocks of .* do not pair by themselves"):
        even_pairs(student.model, network(depth=8).model)


def test_connectors_stand_around_the_teachers_blocks_where_widths_differ() -> None:
    student, teacher = network(depth=8, widths=[4, 8, 16]), network(depth=14, widths=[4, 12, 16])
    pairs = even_pairs(student.model, teacher.model)
    made = connectors_of(student, teacher, pairs, seed=0)
    assert {path: sorted(each) for path, each in made.items()} == {
        "stage1.0": [], "stage2.0": ["out"], "stage3.0": ["into"],
    }  # fmt: skip
    again = connectors_of(student, teacher, pairs, seed=0)
    other = connectors_of(student, teacher, pairs, seed=1)

    def weight(of: dict[str, nn.Module]) -> Tensor:
        return next(of["stage2.0"].parameters())

    assert torch.equal(weight(dict(made)), weight(dict(again)))
    assert not torch.equal(weight(dict(made)), weight(dict(other)))
    units = units_of(student, teacher, pairs, made)
    names = list(student.model.state_dict())
    with swapped_in(student.model, units):
        assert student(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).logits.shape == (2, 5)
        assert student.model.get_submodule("stage2.0") is units[1].other
    assert list(student.model.state_dict()) == names


def test_statistics_measured_anew_are_means_over_the_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[2].eval()
    batches = [torch.randn(8, 3), 3 + 2 * torch.randn(8, 3)]
    modes = [part.training for part in model.modules()]
    measure_anew(model, batches)
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == 0.1
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(model[2].running_mean, torch.zeros(3)), "a frozen one keeps what it has"
