"""Every plug-in keeps the promises that the rest of kdscale builds on; a new file is visited by being there."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from kdscale import plugins
from kdscale.api import Batch, Loss, Modifier, Outputs, PluginConfig, Shapes, Strategy
from kdscale.config.macro_sources import cited
from tests.bibtex import parsed

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["losses", "modifiers", "strategies", "models", "datasets", "teachers"]
EVERY = [(kind, path.stem) for kind in KINDS for path in sorted((ROOT / "kdscale" / kind).glob("[!_]*.py"))]
BASES: dict[str, type] = {
    "losses": Loss, "modifiers": Modifier, "strategies": Strategy, "models": torch.nn.Module, "datasets": object,
    "teachers": object,
}  # fmt: skip
WITH_SOURCE = {"losses", "modifiers", "models"}
SIZE, CLASSES = 6, 5


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


# --------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Probe(Outputs):
    """An answer whose gradients can be looked at."""

    leaves: list[Tensor] = field(default_factory=list)
    """Behind the logits, and each feature."""


def probe(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Probe, Probe, Batch]:
    """A student's and a teacher's answers to one batch: logits, two maps and a pooled feature on each side."""
    rng = torch.Generator().manual_seed(seed)

    def outputs() -> Probe:
        shapes = [(SIZE, CLASSES), (SIZE, 4, 6, 6), (SIZE, 8, 3, 3), (SIZE, 8)]
        drawn = [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
        pixels, slopes = (torch.rand(n, 64, generator=rng, dtype=torch.float64).to(dtype) for n in (SIZE, CLASSES))
        pixels.requires_grad_()
        return Probe(drawn[0] + pixels @ slopes.T, drawn[1:], pixels, drawn)

    labels = torch.randint(0, CLASSES, (SIZE,), generator=rng)
    images = torch.zeros(SIZE, 1, 8, 8, dtype=torch.uint8)
    return outputs(), outputs(), Batch(images, labels, torch.arange(SIZE), view=0)


def build(name: str, dtype: torch.dtype = torch.float64) -> Loss:
    """A loss with its default options for what `probe` answers."""
    plugin = plugins.load("losses", name)
    student, teacher, _ = probe()
    shapes = Shapes(
        classes=CLASSES,
        student=[tuple(f.shape[1:]) for f in student.features],
        teacher=[tuple(f.shape[1:]) for f in teacher.features],
        train_rows=100,
    )
    torch.manual_seed(0)
    loss: Loss = plugin(plugin.Config(), shapes)
    return loss.to(dtype)


def row(outputs: Outputs, i: int) -> Outputs:
    return Outputs(outputs.logits[i : i + 1], [f[i : i + 1] for f in outputs.features])


@pytest.mark.parametrize("name", names("losses"))
class TestEveryLoss:
    def test_returns_a_value_a_sample_if_and_only_if_it_says_so(self, name: str) -> None:
        loss = build(name)
        assert loss(*probe()).shape == ((SIZE,) if loss.per_sample else ())
        assert not (loss.per_sample and loss.relational)

    def test_a_sample_alone_has_the_value_it_has_in_the_batch(self, name: str) -> None:
        loss = build(name)
        if not loss.per_sample:
            pytest.skip("its value belongs to the batch")
        if loss.needs_input_grad:
            pytest.skip("a sample is no part of the graph that it can be differentiated by: its own test looks")
        student, teacher, batch = probe()
        loss(student, teacher, batch)  # a stateful loss starts its state
        loss.eval()
        together = loss(student, teacher, batch)
        for i in range(SIZE):
            only = replace(
                batch, images=batch.images[i : i + 1], labels=batch.labels[i : i + 1], rows=batch.rows[i : i + 1]
            )
            torch.testing.assert_close(loss(row(student, i), row(teacher, i), only)[0], together[i])

    def test_gradients_reach_the_student_and_never_the_teacher(self, name: str) -> None:
        student, teacher, batch = probe()
        build(name)(student, teacher, batch).sum().backward()
        grads = [t.grad for t in student.leaves if t.grad is not None]
        assert grads
        assert all(torch.isfinite(g).all() for g in grads)
        assert sum(float(g.abs().sum()) for g in grads) > 0
        assert all(t.grad is None for t in teacher.leaves)

    def test_stays_finite_and_in_float32_on_bf16_outputs(self, name: str) -> None:
        student, teacher, batch = probe(dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = build(name, torch.float32)(student, teacher, batch)
        values.sum().backward()
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert all(torch.isfinite(t.grad).all() for t in student.leaves if t.grad is not None)

    def test_declares_what_it_needs(self, name: str) -> None:
        loss = build(name)
        student, teacher, batch = probe()
        if not loss.needs_teacher:
            torch.testing.assert_close(loss(student, None, batch), loss(student, teacher, batch))
        if "features" not in loss.needs:
            without = loss(replace(student, features=[]), replace(teacher, features=[]), batch)
            torch.testing.assert_close(without, loss(student, teacher, batch))
        if "labels" not in loss.needs:
            other = replace(batch, labels=(batch.labels + 1) % CLASSES)
            torch.testing.assert_close(loss(student, teacher, other), loss(student, teacher, batch))
