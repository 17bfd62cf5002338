"""Plug-ins by file name, what their files tell without an import, and a user's own classes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdscale import plugins
from kdscale.config.schema import PluginsConfig
from kdscale.errors import PluginError

NETS = """
from torch import nn
from birds.layers import block
from . import deep
class TinyNet(nn.Module):
    pass
VALUE = 3
"""


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's package of networks."""
    package = tmp_path / "birds"
    (package / "deep").mkdir(parents=True)
    for name, text in (
        ("__init__", ""), ("nets", NETS), ("layers", "block = 1\n"), ("other", "x = 1\n"),
        ("deep/__init__", "from . import er\n"),
        ("deep/er", "y = 1\n"), ("broken", "1 / 0\n"),
    ):  # fmt: skip
        (package / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "birds"]:
        del sys.modules[name]


def test_an_unknown_plugin_names_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"resnet_cifr; did you mean resnet_cifar\?"):
        plugins.load("models", "resnet_cifr")
    with pytest.raises(PluginError, match="no kind of plug-in loss; there are: losses"):
        plugins.available("loss")


EVERY = [(kind, name) for kind in ("losses", "modifiers", "models") for name in plugins.available(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_options_read_from_the_file_are_those_of_the_class(kind: str, name: str) -> None:
    known = plugins.options(kind, name)
    assert known is not None, "options of kdscale's own plug-ins stand in their file"
    cls = plugins.load(kind, name)
    if kind == "models":
        parameters = inspect.signature(cls).parameters.values()
        real = {p.name: plugins.REQUIRED if p.default is p.empty else p.default for p in parameters}
    else:
        fields = cls.Config.model_fields
        real = {key: plugins.REQUIRED if field.is_required() else field.default for key, field in fields.items()}
    assert known.keys() == real.keys()
    for key, value in known.items():
        assert value is plugins.UNREADABLE or value == real[key], key


@pytest.mark.parametrize("name", plugins.available("losses"))
def test_needing_a_teacher_is_read_from_the_file(name: str) -> None:
    assert plugins.needs_teacher(name) == plugins.load("losses", name).needs_teacher


# --------------------------------------------------------------------------- a user's own


def test_a_users_class_is_imported_where_it_is_allowed(birds: Path) -> None:
    assert plugins.user_class("birds.nets:TinyNet", ["birds"], [birds]).__name__ == "TinyNet"


@pytest.mark.parametrize(
    ("text", "allow", "said"),
    [
        ("birds.nets:TinyNet", [], r"birds may not be imported; add it to plugins\.allow: \[birds\]"),
        ("birds.nests:TinyNet", ["birds"], "No module named 'birds.nests'; looked in plugins.path"),
        ("birds.nets:TinyNt", ["birds"], r"nets.py has no class TinyNt; did you mean TinyNet\?"),
        ("birds.nets:VALUE", ["birds"], "is a int, not a class"),
        ("birds.broken:Net", ["birds"], "importing birds.broken fails: ZeroDivisionError"),
        ("birds.nets:", ["birds"], "say package.module:Class"),
    ],
)
def test_what_is_no_class_of_the_user(text: str, allow: list[str], said: str, birds: Path) -> None:
    with pytest.raises(PluginError, match=said):
        plugins.user_class(text, allow, [birds])


def hash_of_tiny_net(birds: Path) -> Any:
    return plugins.revision("models", "birds.nets:TinyNet", PluginsConfig(path=[birds], allow=["birds"]))


@pytest.mark.parametrize(
    ("file", "counts"),
    [("nets", True), ("layers", True), ("deep/__init__", True), ("deep/er", True), ("other", False)],
)
def test_a_class_is_its_file_and_what_that_imports_of_its_package(file: str, counts: bool, birds: Path) -> None:
    before = hash_of_tiny_net(birds)
    assert hash_of_tiny_net(birds) == before
    path = birds / "birds" / f"{file}.py"
    path.write_text(path.read_text() + "z = 2\n")
    assert (hash_of_tiny_net(birds) != before) == counts


def test_line_ends_do_not_count(birds: Path) -> None:
    before = hash_of_tiny_net(birds)
    path = birds / "birds" / "layers.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert hash_of_tiny_net(birds) == before


@pytest.mark.parametrize("kind", ["losses", "strategies"])
def test_revisions_of_kdscales_own(kind: str) -> None:
    for name in plugins.available(kind):
        assert plugins.revision(kind, name, PluginsConfig()) == plugins.load(kind, name).revision
    assert plugins.revision("models", "timm:vit_tiny_patch16_224", PluginsConfig()) == 1


# --------------------------------------------------------------------------- a user's own losses


LOSSES = """
from kdscale.api import Loss
class Focal(Loss):
    pass
class Lonely(Loss):
    needs_teacher = False
"""


@pytest.fixture
def losses(birds: Path) -> PluginsConfig:
    (birds / "birds" / "losses.py").write_text(LOSSES)
    return PluginsConfig(path=[birds], allow=["birds"])


def test_a_users_loss_is_loaded_as_a_class_of_its_kind(losses: PluginsConfig) -> None:
    assert plugins.load("losses", "birds.losses:Focal", losses).__name__ == "Focal"
    with pytest.raises(PluginError, match=r"birds.losses:Focal is none of the modifiers: derive it from .*Modifier"):
        plugins.load("modifiers", "birds.losses:Focal", losses)
    with pytest.raises(PluginError, match="birds may not be imported"):
        plugins.load("losses", "birds.losses:Focal")
    with pytest.raises(PluginError, match="datasets are kdscale's own"):
        plugins.load("datasets", "birds.losses:Focal", losses)


def test_whether_a_users_loss_listens_is_read_from_its_file(losses: PluginsConfig) -> None:
    assert plugins.needs_teacher("birds.losses:Focal", losses.path)
    assert not plugins.needs_teacher("birds.losses:Lonely", losses.path)
    assert plugins.needs_teacher("birds.losses:Lonely", [])
    assert not [name for name in sys.modules if name.partition(".")[0] == "birds"]
