"""Every plug-in keeps the promises that the rest of kdscale builds on; a new file is visited by being there."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from kdscale import plugins
from kdscale.api import Loss, Modifier, PluginConfig, Strategy
from kdscale.config.macro_sources import cited
from kdscale.config.schema import PluginsConfig
from kdscale.contract.checks import Check, Skipped
from kdscale.contract.losses import LOSS_CHECKS, LossSubject
from kdscale.contract.models import MODEL_CHECKS, ModelSubject
from kdscale.contract.modifiers import MODIFIER_CHECKS, ModifierSubject
from kdscale.contract.probes import LAYOUTS
from kdscale.contract.strategies import STRATEGY_CHECKS, TEACHER, StrategySubject
from tests.bibtex import parsed

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["losses", "modifiers", "strategies", "models", "datasets", "teachers"]
EVERY = [(kind, path.stem) for kind in KINDS for path in sorted((ROOT / "kdscale" / kind).glob("[!_]*.py"))]
BASES: dict[str, type] = {
    "losses": Loss, "modifiers": Modifier, "strategies": Strategy, "models": torch.nn.Module, "datasets": object,
    "teachers": object,
}  # fmt: skip
WITH_SOURCE = {"losses", "modifiers", "models"}
FITNET = {"name": "fitnet", "regressor": "none", "taps": {"student": ["stage2"], "teacher": ["stage2"]}}


def names(kind: str) -> list[str]:
    return [name for k, name in EVERY if k == kind]


def module_of(kind: str, name: str) -> ModuleType:
    return importlib.import_module(f"kdscale.{kind}.{name}")


def test_the_list_of_plugins_is_the_list_of_files() -> None:
    for kind in KINDS:
        assert sorted(plugins.available(kind)) == names(kind)


@pytest.mark.parametrize(("kind", "name"), EVERY)
class TestEveryPlugin:
    def test_offers_one_public_class_of_its_kind(self, kind: str, name: str) -> None:
        public = module_of(kind, name).__all__
        assert len(public) == 1
        assert plugins.load(kind, name).__name__ == public[0]
        assert issubclass(plugins.load(kind, name), BASES[kind])

    def test_is_described(self, kind: str, name: str) -> None:
        line = dict(plugins.describe(kind))[name]
        assert line.strip(), "the first line of the module's docstring describes it in --list"
        assert inspect.getdoc(plugins.load(kind, name))

    def test_names_its_source(self, kind: str, name: str) -> None:
        if kind in WITH_SOURCE:
            assert "Source:" in (module_of(kind, name).__doc__ or ""), "where its formula or architecture comes from"

    def test_has_entries_for_a_bibliography_or_says_why_not(self, kind: str, name: str) -> None:
        said = module_of(kind, name).__doc__ or ""
        entries = parsed(plugins.bibtex(kind, name))
        source = re.search(r"Source:(.*?)(?=\n[A-Z]\w+:|\Z)", said, re.S)
        assert source, "Source: where it comes from; none, and why, where there is no paper"
        assert bool(entries) != bool(re.search(r"\s*none;|has no publication", source[1]))
        numbers = re.findall(r"arXiv:(\d+\.\d+)", source[1])
        assert sorted(numbers) == sorted(e["eprint"] for e in entries.values() if "eprint" in e)
        for key, entry in entries.items():
            assert {"author", "title", "year"} <= entry.keys()
            assert entry.keys() & {"booktitle", "journal", "institution", "howpublished", "eprint"}, "a venue"
            assert ("eprint" in entry) == (entry.get("archivePrefix") == "arXiv")
            surname = re.match(r"[a-z]+", key)
            assert surname
            assert entry["author"].lower().replace(" ", "").startswith(surname[0])
            assert key[len(surname[0]) :].startswith(entry["year"])

    def test_has_a_revision(self, kind: str, name: str) -> None:
        if kind not in {"datasets", "teachers"}:  # identified by their fingerprint
            assert plugins.load(kind, name).revision >= 1

    def test_has_a_test_of_its_name(self, kind: str, name: str) -> None:
        folder = ROOT / "tests" / "unit" / kind
        if kind in {"losses", "modifiers", "strategies"}:
            assert (folder / f"test_{name}.py").exists()
        else:  # one parametrised test may visit all models, or all data sets
            words = re.compile(rf"\b({name}|{plugins.load(kind, name).__name__})\b")
            assert any(words.search(path.read_text()) for path in folder.rglob("test_*.py"))

    def test_its_options_all_have_defaults(self, kind: str, name: str) -> None:
        config = getattr(plugins.load(kind, name), "Config", None)
        if config is not None:
            assert issubclass(config, PluginConfig)
            config()


def test_a_key_means_one_paper() -> None:
    found: dict[str, dict[str, str]] = {}
    texts = [plugins.bibtex(kind, name) for kind, name in EVERY]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        texts += (yaml.safe_load(path.read_text()).get("cite") or {}).values()
    texts += [entry for macro in ("chain", "dense", "grow") for entry in cited(macro, ["a", "b", "c"]).values()]
    for text in texts:
        for key, entry in parsed(text).items():
            assert found.setdefault(key, entry) == entry, f"{key} differs between two files"


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in EVERY if k in {"losses", "modifiers", "strategies"}])
def test_a_shipped_config_uses_it(kind: str, name: str) -> None:
    used: set[str] = set()
    for path in (ROOT / "configs").rglob("*.yaml"):
        used |= set(_plugin_names(yaml.safe_load(path.read_text())))
    assert name in used | {"distill"}, f"no file under configs/ uses {kind}/{name}"


def _plugin_names(node: Any) -> list[str]:
    """The values of `name:` and `strategy:` anywhere in a config."""
    if isinstance(node, dict):
        own = [v for k, v in node.items() if k in {"name", "strategy"} and isinstance(v, str)]
        return own + [n for v in node.values() for n in _plugin_names(v)]
    return [n for v in node for n in _plugin_names(v)] if isinstance(node, list) else []


# --------------------------------------------------------------------------- the contract, which users' own keep too


def hold(check: Check[Any], subject: Any) -> None:
    try:
        check.run(subject)
    except Skipped as why:
        pytest.skip(str(why))


def source_of(kind: str, name: str) -> Path:
    return ROOT / "kdscale" / kind / f"{name}.py"


def promise(check: Check[Any]) -> str:
    return check.promise


@pytest.mark.parametrize("check", LOSS_CHECKS, ids=promise)
@pytest.mark.parametrize("name", names("losses"))
def test_every_loss_keeps_the_contract(name: str, check: Check[LossSubject]) -> None:
    hold(check, LossSubject(plugins.load("losses", name), source_of("losses", name), dtype=torch.float64))


@pytest.mark.parametrize("name", names("losses"))
def test_every_loss_takes_the_first_layout_of_taps(name: str) -> None:
    assert LossSubject(plugins.load("losses", name), source_of("losses", name)).features == LAYOUTS[0]


@pytest.mark.parametrize("check", MODIFIER_CHECKS, ids=promise)
@pytest.mark.parametrize("name", names("modifiers"))
def test_every_modifier_keeps_the_contract(name: str, check: Check[ModifierSubject]) -> None:
    hold(check, ModifierSubject(plugins.load("modifiers", name), source_of("modifiers", name)))


STAGES: dict[str, dict[str, Any]] = {
    "distill": {},
    "one": {
        "options": {"branches": 2, "split_at": "stage2"},
        "stage": {"teachers": {}, "passes": {"main": [{"name": "ce"}]}},
        "trained": ("head", "stage3"),
    },
    "iakd": {"stage": {"passes": {"main": [{"name": "ce"}]}}},
    "split_head": {
        "stage": {
            "student": TEACHER | {"split_head": {"split_at": "stage2", "channels": 2, "size": 4}},
            "passes": {"main": [FITNET]},
        },
        "trained": ("stage2",),
    },
}
"""Strategies with the stage that each is for."""


@pytest.mark.parametrize("check", STRATEGY_CHECKS, ids=promise)
@pytest.mark.parametrize("name", names("strategies"))
def test_every_strategy_keeps_the_contract(name: str, check: Check[StrategySubject]) -> None:
    cls = plugins.load("strategies", name)
    hold(check, StrategySubject(cls, source_of("strategies", name), name, **STAGES[name]))


ARGUMENTS: dict[str, dict[str, Any]] = {"resnet_cifar": {"depth": 8}, "wrn": {"depth": 10, "widen": 1}}


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=promise)
@pytest.mark.parametrize("name", names("models"))
def test_every_model_keeps_the_contract(name: str, check: Check[ModelSubject]) -> None:
    cls, options = plugins.load("models", name), ARGUMENTS.get(name, {})
    hold(
        check,
        ModelSubject(cls, source_of("models", name), name, PluginsConfig(), options, per_pixel=name == "segmentation"),
    )
