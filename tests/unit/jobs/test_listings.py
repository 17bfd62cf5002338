"""What `--list` says to somebody who chooses."""

from __future__ import annotations

import pytest

from kdscale import plugins
from kdscale.errors import ConfigError, PluginError
from kdscale.jobs.listings import WIDTH, plugins_of


@pytest.mark.parametrize("kind", ["losses", "modifiers"])
def test_the_table_has_a_row_for_each_and_fits(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plugins_of([kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    starts = {line.split()[0] for line in lines if line[:1].strip()}
    assert set(plugins.available(kind)) <= starts


@pytest.mark.parametrize("kind", ["losses", "modifiers"])
def test_what_is_read_from_a_file_is_what_its_class_says(kind: str) -> None:
    for name in plugins.available(kind):
        cls, one = plugins.load(kind, name), plugins.entry(kind, name)
        features = cls.needs_features if kind == "modifiers" else "features" in cls.needs
        assert (one.features, one.taps) == (("yes", "yes") if features else ("no", "no")), name
        assert (one.relational == "yes") == getattr(cls, "relational", False), name
        if kind == "losses":
            assert (one.cacheable == "-") == (not cls.needs_teacher), name
            assert (one.cacheable == "no") == cls.needs_input_grad, name
            assert (one.cacheable == "pooled") == features, name


def test_one_is_told_with_its_options_and_whole_source(capsys: pytest.CaptureFixture[str]) -> None:
    plugins_of(["losses", "rkd"])
    said = " ".join(capsys.readouterr().out.split())
    assert "eq. 3-8; weights of 25 and 50 from the common CIFAR-100 benchmark" in said
    assert "distance 25.0 weight of the distances" in said
    assert "launch/sweep.py kdscale:methods/rkd.yaml" in said


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(PluginError, match=r"no losses plug-in rkdd; did you mean rkd\?"):
        plugins_of(["losses", "rkdd"])
    for words in (["loses"], ["models", "wrn"], ["losses", "rkd", "kd"]):
        with pytest.raises(ConfigError, match=r"say one of losses, modifiers"):
            plugins_of(words)


def test_other_kinds_are_listed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    plugins_of(["models"])
    said = capsys.readouterr().out
    assert all(name in said for name in [*plugins.available("models"), "timm:NAME"])
