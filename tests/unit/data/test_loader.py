"""Batches: equal bit for bit on both loaders, for any number of workers and ranks, from any point on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch
from kdscale.config.schema import DataConfig
from kdscale.data.loader import EvalLoader, TrainLoader, ffcv_problem, resolve_loader, view_scheme
from kdscale.data.split import carve, test_rows
from kdscale.data.store import Store, write_store
from kdscale.data.views import ViewScheme, eval_views, make_views
from kdscale.errors import ConfigError, DataError
from tests.unit.data.places import FASHION, Pictures, fashion_mnist, made_up

needs_ffcv = pytest.mark.skipif(bool(ffcv_problem()), reason=f"FFCV: {ffcv_problem()}")
KINDS = ["torch", pytest.param("ffcv", marks=needs_ffcv)]
PICTURES = made_up(train=211, test=53)
AUGMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "crop and flip": {"crop": 2, "flip": True},
    "resized crop": {"resized_crop": {}, "flip": True},
    "jitter": {"jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}},
    "cutout": {"crop": 1, "cutout": 4},
    "mixup": {"crop": 2, "mixup": 0.5},
    "cutmix": {"flip": True, "cutmix": 1.0},
    "everything": {
        "resized_crop": {}, "flip": True, "jitter": {"brightness": 0.3, "saturation": 0.3}, "cutout": 3, "mixup": 1.0,
    },
}  # fmt: skip
Stores = Callable[..., Store]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Stores by kind and encoding, converted and opened once."""
    made: dict[tuple[str, str], Store] = {}

    def get(kind: str, encoding: str = "raw") -> Store:
        if (kind, encoding) not in made:
            folder = tmp_path_factory.mktemp("stores") / "store"
            made[kind, encoding] = write_store(PICTURES, DataConfig.model_validate({"store": encoding}), folder, kind)  # type: ignore[arg-type]
        return made[kind, encoding]

    return get


def config(augment: str = "plain", **changes: Any) -> DataConfig:
    return DataConfig.model_validate({"augment": AUGMENTS[augment], **changes})


def train(store: Store, data: DataConfig, **changes: Any) -> TrainLoader:
    return TrainLoader(store, data, **{"batch_size": 12, "seed": 3, "rank": 0, "world": 1, **changes})


def evaluation(store: Store, data: DataConfig, split: Any, **changes: Any) -> EvalLoader:
    return EvalLoader(store, data, split, **{"batch_size": 7, "rank": 0, "world": 1, **changes})


def joined(batches: list[Batch]) -> dict[str, Tensor]:
    """Several batches' tensors, one after the other."""
    names = ["images", "labels", "rows"] + (["labels_b", "lam"] if batches[0].lam is not None else [])
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}


def same(left: list[Batch], right: list[Batch]) -> None:
    assert joined(left).keys() == joined(right).keys()
    for name, tensor in joined(left).items():
        assert torch.equal(tensor, joined(right)[name]), name


# --------------------------------------------------------------------------- equal batches


@needs_ffcv
@settings(max_examples=40)
@given(
    augment=st.sampled_from(sorted(AUGMENTS)), size=st.sampled_from([8, 12, 15]), world=st.sampled_from([1, 2, 3, 4]),
    workers=st.sampled_from([1, 2, 3]), seed=st.integers(0, 5), epoch=st.integers(0, 4), start=st.integers(0, 15),
    view_seed=st.integers(0, 2), limit=st.sampled_from([None, 60]), views=st.sampled_from([None, 2]),
)  # fmt: skip
def test_ffcv_and_torch_batches_are_equal_bit_for_bit(
    stores: Stores, augment: str, size: int, world: int, workers: int, seed: int, epoch: int, start: int,
    view_seed: int, limit: int | None, views: int | None,
) -> None:  # fmt: skip
    """One process of torch, from the epoch's first step, is what any ranks and workers of FFCV give together."""
    data = config(augment, size=size, view_seed=view_seed, limit=limit)
    whole = train(stores("torch"), data, seed=seed, views=views)
    start = min(start, whole.steps_per_epoch - 1)
    expected = list(whole.epoch(epoch))[start:]
    loaders = [
        train(stores("ffcv"), data, seed=seed, views=views, rank=rank, world=world, workers=workers)
        for rank in range(world)
    ]
    ranks = [list(loader.epoch(epoch, start)) for loader in loaders]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        same(list(parts), [expected[step]])
        assert {part.step for part in parts} == {epoch * whole.steps_per_epoch + start + step}
        assert {part.view for part in parts} == {epoch % views if views else epoch}
    assert len(ranks[0]) == len(expected)


@needs_ffcv
@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no Fashion-MNIST in {FASHION}")
def test_on_the_real_fashion_mnist(tmp_path: Path) -> None:
    pictures, data = (
        fashion_mnist(6000, 1000),
        DataConfig.model_validate({"size": 32, "augment": {"crop": 4, "flip": True}}),
    )
    both = [write_store(pictures, data, tmp_path / kind, kind) for kind in ("ffcv", "torch")]
    loaders = [train(store, data, batch_size=100) for store in both]
    assert loaders[0].steps_per_epoch == 54
    rows = []
    for ours, theirs in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        same([ours], [theirs])
        rows += ours.rows.tolist()
    assert len(set(rows)) == 5400
    tests = [list(evaluation(store, data, "test", batch_size=256)) for store in both]
    same(*tests)
    originals = torch.from_numpy(pictures.splits["test"][0].copy()).permute(0, 3, 1, 2)
    assert torch.equal(joined(tests[0])["images"][:, :, 2:30, 2:30], originals)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_views_of_its_rows(stores: Stores, kind: str) -> None:
    data = config("crop and flip", view_seed=9)
    images, labels = PICTURES.splits["train"]
    scheme = ViewScheme.of(data, PICTURES.info)
    for batch in train(stores(kind), data).epoch(2):
        rows = batch.rows.numpy()
        expected = make_views(images[rows], rows, 2, scheme)
        assert torch.equal(batch.images, torch.from_numpy(expected).permute(0, 3, 1, 2))
        assert torch.equal(batch.labels, torch.from_numpy(labels[rows]))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_the_rows_that_train_but_for_a_partial_batch(stores: Stores, kind: str) -> None:
    loader = train(stores(kind), config())
    trained = carve(stores(kind).labels("train"), config()).train
    for epoch in range(2):
        rows = [row for batch in loader.epoch(epoch) for row in batch.rows.tolist()]
        assert len(rows) == len(set(rows)) == 12 * loader.steps_per_epoch
        assert set(rows) <= set(trained)
        assert len(trained) - len(rows) < 12


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_order_and_never_the_views(stores: Stores, kind: str) -> None:
    seen = [joined(list(train(stores(kind), config("crop and flip"), seed=seed).epoch(0))) for seed in (0, 1)]
    assert not torch.equal(seen[0]["rows"], seen[1]["rows"])
    by_row = [dict(zip(s["rows"].tolist(), s["images"], strict=True)) for s in seen]
    shared = by_row[0].keys() & by_row[1].keys()
    assert len(shared) > 150
    assert all(torch.equal(by_row[0][row], by_row[1][row]) for row in shared)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_to_raw(kind: str, workers: int, channels: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, 200, 16).astype(np.uint8)
    lighter = np.arange(40, dtype=np.uint8)
    images = np.broadcast_to(ramp[None, :, None, None] + lighter[:, None, None, None], (40, 16, 16, channels)).copy()
    labels = np.arange(40, dtype=np.int64) % 4
    pictures = Pictures({"train": (images, labels), "test": (images[:8], labels[:8])}, 4)
    data = config(store="jpeg", val_fraction=0)
    store = write_store(pictures, data, tmp_path / "store", kind)  # type: ignore[arg-type]
    seen = joined(list(evaluation(store, data, "train", workers=workers)))
    assert seen["images"].shape == (40, channels, 16, 16)
    difference = seen["images"].int() - torch.from_numpy(images).permute(0, 3, 1, 2).int()
    assert difference.abs().max() <= 5


# --------------------------------------------------------------------------- mixing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment", ["mixup", "cutmix"])
def test_the_partner_is_a_row_that_trains_in_its_own_view(stores: Stores, kind: str, augment: str) -> None:
    data = DataConfig.model_validate({"augment": {"crop": 2, "flip": True, augment: 1.0}})
    alone = DataConfig.model_validate({"augment": {"crop": 2, "flip": True}})
    images = PICTURES.splits["train"][0]
    trained = carve(PICTURES.splits["train"][1], data).train
    views = make_views(images[trained], trained, 1, ViewScheme.of(alone, PICTURES.info))
    views_of = {row: torch.from_numpy(view).permute(2, 0, 1).float() for row, view in zip(trained, views, strict=True)}
    found = 0
    for batch in list(train(stores(kind), data).epoch(1))[:4]:
        assert batch.labels_b is not None
        assert batch.lam is not None
        for image, row, lam in zip(batch.images.float(), batch.rows.tolist(), batch.lam, strict=True):
            if augment == "mixup":
                rest = image - lam * views_of[row]
                fits = [r for r, view in views_of.items() if ((1 - lam) * view - rest).abs().max() < 0.51]
            else:
                own = (views_of[row] == image).all(dim=0)
                fits = [r for r, view in views_of.items() if (own | (view == image).all(dim=0)).all()]
                assert own.float().mean() >= lam - 1e-6
            found += len(fits) > 0
    assert found == 48


def test_labels_of_both_partners_come_with_the_share(stores: Stores) -> None:
    batch = next(train(stores("torch"), config("mixup")).epoch(0))
    assert batch.labels_b is not None
    assert batch.lam is not None
    assert batch.labels_b.dtype == torch.int64
    assert batch.lam.dtype == torch.float32
    assert ((batch.lam >= 0) & (batch.lam <= 1)).all()


def test_without_mixing_there_is_no_partner(stores: Stores) -> None:
    batch = next(train(stores("torch"), config("crop and flip")).epoch(0))
    assert batch.labels_b is None
    assert batch.lam is None


# --------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_sees_each_sample_once(stores: Stores, kind: str, split: str, world: int) -> None:
    data = config("everything", val_fraction=0.2)
    labels = stores(kind).labels("test" if split == "test" else "train")
    carved = carve(labels, data)
    expected = {"train": carved.train, "val": carved.val, "test": test_rows(labels, data)}[split]
    loaders = [evaluation(stores(kind), data, split, rank=rank, world=world) for rank in range(world)]
    batches = [batch for loader in loaders for batch in loader]
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == expected.tolist()
    assert {loader.samples for loader in loaders} == {len(expected)}
    assert [len(list(loader)) for loader in loaders] == [len(loader) for loader in loaders]
    images = PICTURES.splits["test" if split == "test" else "train"][0]
    for batch in batches:
        plain = eval_views(images[batch.rows.numpy()], 12)
        assert torch.equal(batch.images, torch.from_numpy(plain).permute(0, 3, 1, 2))
        assert torch.equal(batch.labels, torch.from_numpy(labels[batch.rows.numpy()]))
        assert batch.lam is None


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_runs_again_and_again_in_the_same_order(stores: Stores, kind: str) -> None:
    loader = evaluation(stores(kind), config(), "test")
    same(list(loader), list(loader))


@pytest.mark.parametrize("kind", KINDS)
def test_more_ranks_than_samples(stores: Stores, kind: str) -> None:
    data = config(limit_test=3)
    rows = [[b.rows.tolist() for b in evaluation(stores(kind), data, "test", rank=r, world=5)] for r in range(5)]
    assert sum(len(batch) for batches in rows for batch in batches) == 3
    assert rows[3:] == [[], []]


def test_no_validation_rows_is_an_empty_loader(stores: Stores) -> None:
    loader = evaluation(stores("torch"), config(val_fraction=0), "val")
    assert (loader.samples, len(loader), list(loader)) == (0, 0, [])


# --------------------------------------------------------------------------- life of a loader


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment", ["crop and flip", "mixup"])
@pytest.mark.parametrize("way", ["close", "loader.close", "forgotten", "exhausted", "error in the consumer"])
def test_an_epoch_left_at_any_point_leaves_no_thread(stores: Stores, kind: str, augment: str, way: str) -> None:
    loader = train(stores(kind), config(augment))
    list(loader.epoch(0))
    before = threading.active_count()
    for taken in (0, 1, loader.steps_per_epoch - 2, loader.steps_per_epoch):
        batches = loader.epoch(1)
        for _ in range(loader.steps_per_epoch if way == "exhausted" else taken):
            next(batches)
        if way == "close":
            batches.close()
        elif way == "loader.close":
            loader.close()
        elif way == "exhausted":
            assert next(batches, None) is None
        elif way == "error in the consumer" and taken < loader.steps_per_epoch:
            with pytest.raises(ZeroDivisionError):
                batches.throw(ZeroDivisionError())
        del batches
        assert threading.active_count() == before, taken


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_one_of_two_readers_ends_both(stores: Stores, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = train(stores(kind), config("mixup"))
    list(loader.epoch(0))
    before = threading.active_count()
    monkeypatch.setattr("kdscale.data.loader.make_views", lambda *given, **named: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        next(loader.epoch(0))
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_run_side_by_side(stores: Stores, kind: str) -> None:
    data = config("crop and flip")
    expected = list(train(stores(kind), data).epoch(0))
    seen = []
    for batch in train(stores(kind), data).epoch(0):
        seen.append(batch)
        assert len(list(evaluation(stores(kind), data, "val"))) == 3
    same(seen, expected)


def test_a_start_beyond_the_last_step_is_an_empty_epoch(stores: Stores) -> None:
    loader = train(stores("torch"), config())
    assert list(loader.epoch(0, loader.steps_per_epoch)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[211], [-1]])
def test_rows_that_the_data_does_not_have_are_refused(stores: Stores, kind: str, rows: list[int]) -> None:
    next(train(stores(kind), config()).epoch(0))  # opens the reader
    reader = stores(kind).readers["train", 1]
    with pytest.raises(DataError, match=r"were asked of (a split of )?211"):
        next(reader.read(np.array(rows, np.int64), 1, lambda images, rows: images))


@needs_ffcv
def test_a_store_for_ffcv_without_ffcv_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(made_up(), DataConfig(), tmp_path / "store", "ffcv")
    monkeypatch.setattr("kdscale.data.loader.ffcv_problem", lambda: "libturbojpeg.so.0 is missing")
    with pytest.raises(DataError, match=r"converted for FFCV, .*libturbojpeg.* data\.loader: torch"):
        next(train(store, config()).epoch(0))


def test_a_batch_larger_than_the_data_is_refused(stores: Stores) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: 64 is more than the 50 rows that train.*data\.limit"):
        train(stores("torch"), config(limit=50), batch_size=64)


def test_a_batch_that_cannot_be_divided_is_refused(stores: Stores) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: 12 cannot be divided among 5 processes"):
        train(stores("torch"), config(), world=5)


# --------------------------------------------------------------------------- what the planner asks


def test_the_loader_is_ffcv_where_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdscale.data.loader.ffcv_problem", lambda: None)
    assert [resolve_loader(DataConfig(loader=name)) for name in ("auto", "ffcv", "torch")] == ["ffcv", "ffcv", "torch"]


def test_without_ffcv_auto_is_torch_and_asking_for_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdscale.data.loader.ffcv_problem", lambda: "libopencv_core.so: cannot open")
    assert resolve_loader(DataConfig()) == "torch"
    with pytest.raises(ConfigError, match=r"data\.loader: ffcv cannot be used here: libopencv_core\.so"):
        resolve_loader(DataConfig(loader="ffcv"))


def test_the_view_scheme_names_what_decides_pixels_and_nothing_else() -> None:
    info = PICTURES.info
    base = view_scheme(config("crop and flip"), info)
    assert view_scheme(config("cutout"), info) != base
    for change in ({"view_seed": 1}, {"size": 40}, {"store_size": info.size - 1}, {"store": "jpeg"}):
        assert view_scheme(config("crop and flip", loader="torch", **change), info) != base, change
    same = ({"limit": 5}, {"loader": "torch"}, {"split_seed": 3}, {"val_fraction": 0.5}, {"root": "/tmp"})
    for change in (*same, {"size": info.size}, {"store_size": info.size}):
        assert view_scheme(config("crop and flip", **change), info) == base, change
    assert view_scheme(config("plain", view_seed=1), info) == view_scheme(config("plain"), info)  # nothing is drawn


@needs_ffcv
def test_jpegs_decoder_is_part_of_the_view_scheme() -> None:
    schemes = [view_scheme(config(store="jpeg", loader=loader), PICTURES.info) for loader in ("torch", "ffcv")]
    assert schemes[0] != schemes[1]
