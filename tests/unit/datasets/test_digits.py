"""Digits come with scikit-learn, and are the same whether it is imported or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdscale.config.schema import DataConfig
from kdscale.datasets import digits
from kdscale.datasets.digits import Digits
from kdscale.errors import DataError


def test_they_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    dataset, theirs = Digits(DataConfig(name="digits")), sklearn.load_digits()
    sources = [dataset.open("train"), dataset.open("test")]
    images = np.concatenate([source.images for source in sources])[..., 0]
    np.testing.assert_array_equal(np.round(images / 255 * 16), theirs.images)
    np.testing.assert_array_equal(np.concatenate([source.labels for source in sources]), theirs.target)
    assert [len(source) for source in sources] == [dataset.info.train_rows, dataset.info.test_rows]
    train = sources[0].images / 255
    assert (train.mean(), train.std()) == pytest.approx((dataset.info.mean[0], dataset.info.std[0]), abs=1e-4)


def test_scikit_learn_is_not_imported() -> None:
    code = (
        "import sys; from kdscale.config.schema import DataConfig; from kdscale.datasets.digits import Digits;"
        "Digits(DataConfig(name='digits')).open('test'); assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_scikit_learn_the_error_says_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install scikit-learn"):
        Digits(DataConfig(name="digits", root=tmp_path)).fingerprint()
