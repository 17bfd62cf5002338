"""launch/data.py as a user calls it: convert once, check honestly, draw what training sees."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdscale.config.schema import AugmentConfig, DataConfig
from kdscale.data.views import ViewScheme, make_views
from kdscale.datasets.fashion_scenes import FashionScenes
from kdscale.datasets.synthetic import Synthetic
from kdscale.report.view_sheet import describe_views, view_sheet

SMALL = ["data.options.train_rows=60", "data.options.test_rows=30", "data.options.size=16", "data.loader=torch"]


@pytest.fixture
def data(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script's main."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    spec = importlib.util.spec_from_file_location("launch_data", root / "launch" / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_help_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['data.py', 'show', '--help']\n"
        "try: runpy.run_path('launch/data.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'numba', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, stdout=subprocess.DEVNULL)


def test_writing_converts_once_and_check_lists_it(data: Any, tmp_path: Path, capsys: Any) -> None:
    runs = ["--runs", str(tmp_path)]
    assert data(["check", "synthetic", *SMALL, *runs]) == 0
    assert "none yet" in capsys.readouterr().out
    assert data(["write", "synthetic", *SMALL, *runs]) == 0
    assert "converting synthetic" in capsys.readouterr().out
    assert data(["write", "synthetic", *SMALL, *runs]) == 0
    assert "converting" not in capsys.readouterr().out
    assert len(list(tmp_path.glob("stages/data-*"))) == 1
    assert data(["check", "synthetic", *SMALL, *runs]) == 0
    text = capsys.readouterr().out
    assert "60 labels, 6 of each class" in text
    assert "torch, raw, 16 px" in text


def test_a_damaged_conversion_is_named(data: Any, tmp_path: Path, capsys: Any) -> None:
    runs = ["--runs", str(tmp_path)]
    data(["write", "synthetic", *SMALL, *runs])
    (victim,) = tmp_path.glob("stages/*/store/train.images.npy")
    victim.write_bytes(b"")
    data(["check", "synthetic", *SMALL, *runs])
    assert "DAMAGED" in capsys.readouterr().out


def test_data_that_cannot_be_fetched_leaves_nothing_behind(
    data: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdscale.datasets import mnist

    nowhere = replace(mnist._PUBLICATION, urls=("http://127.0.0.1:9",))
    monkeypatch.setattr(mnist, "_PUBLICATION", nowhere)
    assert data(["write", "mnist", "--runs", str(tmp_path / "runs")]) == 1
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_image_that_cannot_be_read_fails_the_conversion_by_name(data: Any, tmp_path: Path, capsys: Any) -> None:
    for name in ("train/ant/a.png", "train/bee/b.png", "val/ant/c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    broken = tmp_path / "images" / "train" / "bee" / "b.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    call = ["write", "image_folder", f"data.root={tmp_path / 'images'}", "data.size=32", "data.loader=torch"]
    call += ["--runs", str(tmp_path / "runs")]
    assert data(call) == 1
    assert "bee/b.png: cannot be decoded" in capsys.readouterr().err
    broken.write_bytes(whole)
    assert data(call) == 0, "mended, the same command goes through"


def test_missing_data_is_exit_1_and_names_the_places(data: Any, tmp_path: Path, capsys: Any) -> None:
    assert data(["check", "cifar100", f"data.root={tmp_path}"]) == 1
    text = capsys.readouterr().out
    assert f"data.root {tmp_path}" in text
    assert "WRONG" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["check", "sythetic"], "did you mean synthetic?"),
        (["check", "nowhere.yaml"], "nowhere.yaml"),
        (["show", "synthetic", "--stage", "studnt"], "--stage studnt: no such stage"),
    ],
)
def test_usage_errors_are_exit_2_in_one_line(data: Any, capsys: Any, arguments: list[str], text: str) -> None:
    assert data(arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_show_draws_one_line_a_sample_and_one_column_a_view(data: Any, tmp_path: Path) -> None:
    out = tmp_path / "views.png"
    arguments = ["--samples", "3", "--views", "2", "--first-view", "5", "--out", str(out)]
    assert data(["show", "synthetic", *SMALL, "data.augment.mixup=0.4", *arguments]) == 0
    with Image.open(out) as wide:
        assert wide.width > 3 * 96
        assert wide.height > 3 * 96


def test_what_is_drawn_is_what_the_loaders_make() -> None:
    data = DataConfig(
        name="synthetic",
        options={"size": 100, "train_rows": 40},
        augment=AugmentConfig(crop=8, flip=True),
        val_fraction=0,
    )
    dataset = Synthetic(data)
    sheet = np.asarray(view_sheet(dataset, data, samples=2, views=range(3, 4)).convert("L"))
    rows = np.array([0, 5])  # two of ten classes, evenly spread
    source = dataset.open("train")
    images = np.stack([source[row][0] for row in rows.tolist()])
    expected = make_views(images, rows, 3, ViewScheme.of(data, dataset.info))[:, :, :, 0]
    for view in expected:
        windows = np.lib.stride_tricks.sliding_window_view(sheet, view.shape)
        near = (windows[:, :, 0, :8] == view[0, :8]).all(axis=2)
        places = np.argwhere(near)
        assert any((windows[y, x] == view).all() for y, x in places), "the view stands in the sheet, pixel for pixel"


def test_classes_of_pixels_are_laid_over_what_is_drawn() -> None:
    data = DataConfig(name="fashion_scenes", options={"canvas": 32, "train_rows": 20, "test_rows": 4}, val_fraction=0)
    sheet = np.asarray(view_sheet(FashionScenes(data), data, samples=2, views=[0]).convert("RGB"), int)
    coloured = sheet.max(axis=2) - sheet.min(axis=2) > 60
    assert coloured.mean() > 0.1


def test_a_view_is_described_in_words() -> None:
    data = DataConfig(name="synthetic", size=32, augment=AugmentConfig(crop=4, flip=True, mixup=0.2))
    assert describe_views(data, Synthetic(data).info) == "32 px · crop 4 · flip · mixup 0.2 · view_seed 0"
    assert "no augmentation" in describe_views(DataConfig(), Synthetic(DataConfig()).info)
