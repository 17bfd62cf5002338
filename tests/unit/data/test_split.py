"""Split: stratified, disjoint, and what is validated on does not depend on how much trains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdscale.config.schema import DataConfig
from kdscale.data import split
from kdscale.data.split import carve
from kdscale.draws import hash64

LABELS = (hash64(0, np.arange(5000)) % np.uint64(10)).astype(np.int64)
UNEVEN = np.repeat(np.arange(4), [400, 40, 4, 1])


def shares(labels: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    classes = int(labels.max()) + 1
    return np.bincount(labels[rows], minlength=classes) / np.bincount(labels, minlength=classes)


def test_every_row_is_in_one_part() -> None:
    parts = carve(LABELS, DataConfig(val_fraction=0.1))
    assert np.array_equal(np.sort(np.concatenate([parts.train, parts.val])), np.arange(5000))
    assert len(parts.val) == 500


def test_validation_holds_its_share_of_each_class() -> None:
    parts = carve(LABELS, DataConfig(val_fraction=0.1))
    np.testing.assert_allclose(shares(LABELS, parts.val), 0.1, atol=0.003)


def test_rare_classes_are_not_all_taken_for_validation() -> None:
    parts = carve(UNEVEN, DataConfig(val_fraction=0.25))
    assert set(UNEVEN[parts.train]) == {0, 1, 2, 3}
    np.testing.assert_allclose(shares(UNEVEN, parts.val)[:3], 0.25, atol=0.01)


def test_no_validation_is_legal() -> None:
    parts = carve(LABELS, DataConfig(val_fraction=0))
    assert len(parts.val) == 0
    assert np.array_equal(parts.train, np.arange(5000))


def test_a_limit_never_changes_what_is_validated_on() -> None:
    assert np.array_equal(carve(LABELS, DataConfig(limit=100)).val, carve(LABELS, DataConfig()).val)


@given(small=st.integers(1, 4500), large=st.integers(1, 4500))
def test_limits_are_nested_and_stratified(small: int, large: int) -> None:
    small, large = sorted((small, large))
    few, many = (carve(LABELS, DataConfig(limit=n)).train for n in (small, large))
    assert len(few) == small
    assert set(few) <= set(many)
    counts = np.bincount(LABELS[few], minlength=10)
    expected = small * np.bincount(LABELS[carve(LABELS, DataConfig()).train], minlength=10) / 4500
    assert np.abs(counts - expected).max() <= 1


def test_a_limit_beyond_the_data_takes_all_of_it() -> None:
    assert len(carve(LABELS, DataConfig(limit=10**9)).train) == 4500
    assert len(split.test_rows(LABELS, DataConfig(limit_test=10**9))) == 5000


def test_test_rows_are_a_stratified_nested_prefix() -> None:
    few, many = (split.test_rows(LABELS, DataConfig(limit_test=n)) for n in (100, 1000))
    assert len(few) == 100
    assert set(few) <= set(many)
    assert np.array_equal(split.test_rows(LABELS, DataConfig()), np.arange(5000))


@pytest.mark.parametrize("change", [{"split_seed": 1}, {"val_fraction": 0.2}])
def test_the_split_follows_its_own_keys(change: dict[str, float]) -> None:
    first = carve(LABELS, DataConfig())
    other = carve(LABELS, DataConfig.model_validate(change))
    assert not np.array_equal(other.val, first.val)


def test_the_split_follows_nothing_else() -> None:
    first = carve(LABELS, DataConfig())
    other = carve(LABELS, DataConfig(view_seed=7, size=64, loader="torch"))
    assert np.array_equal(other.val, first.val)


def test_the_split_never_changes_between_versions() -> None:
    parts = carve(np.arange(12) % 3, DataConfig(val_fraction=0.25, limit=4))
    assert (parts.val.tolist(), parts.train.tolist()) == ([0, 7, 11], [1, 2, 6, 10])


@given(transfer=st.integers(0, 4600), limit=st.none() | st.integers(1, 4600))
def test_a_transfer_set_goes_on_where_a_limit_ends(transfer: int, limit: int | None) -> None:
    everything = carve(LABELS, DataConfig())
    before = carve(LABELS, DataConfig(limit=transfer)).train if transfer else np.array([], np.int64)
    beyond = carve(LABELS, DataConfig(transfer=transfer, limit=limit))
    assert len(beyond.train) == min(limit or 4500, max(0, 4500 - transfer))
    assert not set(beyond.train) & set(before)
    assert set(beyond.train) <= set(everything.train)
    assert np.array_equal(beyond.val, everything.val)
    assert np.all(np.diff(beyond.train) > 0)
    if limit is None:
        assert len(before) + len(beyond.train) == 4500
