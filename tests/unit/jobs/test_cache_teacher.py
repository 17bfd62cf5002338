"""The live teacher of a cache gives the very bytes that are there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kdscale.cache.reader import CacheReader
from kdscale.jobs.cache_places import CachePlace
from kdscale.jobs.cache_teacher import data_of, filler_of
from kdscale.pipeline.artifacts import Root

Of = Callable[[str], CachePlace]


@pytest.mark.parametrize("name", ["exact", "sparse", "mixed"])
def test_every_slice_is_answered_as_it_was(caches: Root, place: Of, name: str) -> None:
    folder, filler = place(name).opened, filler_of(place(name), caches)
    for block in range(folder.manifest.blocks):
        view = block // folder.manifest.blocks_per_view
        answers = torch.cat(list(filler.answers(filler.slices_of(block), view))).numpy()
        rows = folder.rows_of(block)
        assert len(answers) == folder.manifest.block_rows
        assert (answers[: len(rows)] == CacheReader(folder).gather(rows, view)).all()


def test_the_data_is_that_of_the_cache(caches: Root, place: Of) -> None:
    store, data = data_of(place("mixed"), caches)
    assert data.augment.mixup == 0.4
    assert np.isin(place("mixed").opened.rows, np.arange(len(store.labels("train")))).all()
