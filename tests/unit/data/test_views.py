"""Views: pure functions of (view_seed, view, row), whatever stands beside them in a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdscale.api import DatasetInfo
from kdscale.config.schema import AugmentConfig, DataConfig
from kdscale.data.views import ViewScheme, eval_views, make_views, mix, partner_rows
from kdscale.draws import hash64

AUGMENTS = {
    "plain": {},
    "crop_flip": {"crop": 3, "flip": True},
    "resized_crop": {"resized_crop": {}, "flip": True},
    "jitter": {"jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}},
    "cutout": {"cutout": 5},
    "all": {"resized_crop": {}, "flip": True, "jitter": {"brightness": 0.3, "contrast": 0.2}, "cutout": 4},
}
ROWS = np.arange(40, dtype=np.int64) * 7
STORED = hash64(3, np.arange(40 * 14 * 14 * 3)).astype(np.uint8).reshape(40, 14, 14, 3)
INFO = DatasetInfo(5, 3, 14, 280, 10, (0.1, 0.5, 0.9), (0.2, 0.2, 0.2), tuple("abcde"))


def scheme(name: str, size: int = 14, **changes: object) -> ViewScheme:
    augment = AugmentConfig.model_validate(AUGMENTS[name])
    return ViewScheme.of(DataConfig.model_validate({"size": size, "augment": augment, **changes}), INFO)


@pytest.mark.parametrize("name", AUGMENTS)
@given(picked=st.lists(st.integers(0, 39), min_size=1, max_size=40), view=st.integers(0, 5))
def test_a_view_does_not_depend_on_its_batch(name: str, picked: list[int], view: int) -> None:
    whole = make_views(STORED, ROWS, view, scheme(name))
    some = make_views(STORED[picked], ROWS[picked], view, scheme(name))
    np.testing.assert_array_equal(some, whole[picked])


@pytest.mark.parametrize("name", [name for name in AUGMENTS if name != "plain"])
def test_each_view_seed_and_view_and_row_has_its_own(name: str) -> None:
    same_image = np.repeat(STORED[:1], 40, axis=0)
    ways = [(0, 0, ROWS), (0, 1, ROWS), (1, 0, ROWS), (0, 0, ROWS + 1)]
    made = [make_views(same_image, rows, view, scheme(name, view_seed=seed)) for seed, view, rows in ways]
    assert len({views.tobytes() for views in made}) == 4
    assert len({view.tobytes() for view in made[0]}) > 15, "rows of one batch share their draws"


@pytest.mark.parametrize("size", [8, 14, 19])
def test_what_is_not_augmented_looks_as_in_evaluation(size: int) -> None:
    np.testing.assert_array_equal(make_views(STORED, ROWS, 3, scheme("plain", size)), eval_views(STORED, size))


@pytest.mark.parametrize("size", [8, 14, 19])
@pytest.mark.parametrize("name", AUGMENTS)
def test_views_have_the_size_asked_for_in_memory_of_their_own(name: str, size: int) -> None:
    before = STORED.copy()
    views = make_views(STORED, ROWS, 0, scheme(name, size))
    assert views.shape == (40, size, size, 3)
    assert not np.shares_memory(views, STORED)
    views[:] = 0
    np.testing.assert_array_equal(STORED, before)


def test_small_images_are_padded_around_and_large_ones_shrunk() -> None:
    padded = eval_views(STORED, 20)
    np.testing.assert_array_equal(padded[:, 3:17, 3:17], STORED)
    assert padded.sum() == STORED.sum()
    shrunk = eval_views(STORED, 7)
    np.testing.assert_allclose(shrunk.mean(axis=(1, 2)), STORED.mean(axis=(1, 2)), atol=8)


def test_cutout_leaves_the_data_sets_mean() -> None:
    views = make_views(STORED, ROWS, 0, scheme("cutout"))
    changed = (views != STORED).any(axis=3)
    assert (views[changed] == (26, 128, 230)).all()
    assert changed.any(axis=(1, 2)).all()
    assert changed.sum(axis=(1, 2)).max() <= 25


def mixing(kind: str, alpha: float) -> ViewScheme:
    return ViewScheme(14, AugmentConfig.model_validate({kind: alpha}), 0, (0, 0, 0))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_view_is_its_share_of_both(kind: str) -> None:
    black, white = np.zeros((40, 14, 14, 3), np.uint8), np.full((40, 14, 14, 3), 255, np.uint8)
    lam = mix(black, white, ROWS, 0, mixing(kind, 1.0))
    assert lam.dtype == np.float32
    assert len(set(lam.tolist())) > 20
    np.testing.assert_allclose(black.mean(axis=(1, 2, 3)) / 255, 1 - lam, atol=0.003)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@given(picked=st.lists(st.integers(0, 39), min_size=1, max_size=40))
def test_mixing_does_not_depend_on_the_batch(kind: str, picked: list[int]) -> None:
    whole, part = STORED.copy(), STORED[picked]
    lam = mix(whole, STORED[::-1].copy(), ROWS, 2, mixing(kind, 0.4))
    some = mix(part, STORED[::-1][picked], ROWS[picked], 2, mixing(kind, 0.4))
    np.testing.assert_array_equal(part, whole[picked])
    np.testing.assert_array_equal(some, lam[picked])


def test_partners_come_from_the_rows_that_train() -> None:
    pool = np.array([3, 8, 9], np.int64)
    drawn = [partner_rows(ROWS, view, mixing("mixup", 1.0), pool) for view in (0, 1)]
    assert set(drawn[0]) == set(pool)
    assert not np.array_equal(*drawn)


FROZEN = {
    "plain": "b9eeac73f37cdda7",
    "crop_flip": "7661b49d5ad61595",
    "resized_crop": "85d75ec971be22f4",
    "jitter": "8fadb9581b4dcef3",
    "cutout": "0b54b27f540ae36c",
    "all": "d8b7b71416107e9a",
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_pixels_never_change_without_a_new_revision(name: str) -> None:
    """Caches of teachers hold answers to exactly these pixels: raise VIEWS_REVISION when they must change."""
    assert checksum(make_views(STORED, ROWS, 1, scheme(name, 12))) == FROZEN[name]


def checksum(views: NDArray[np.uint8]) -> str:
    import xxhash

    return xxhash.xxh3_64(views.tobytes()).hexdigest()
