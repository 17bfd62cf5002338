"""The files of `--list template` keep the contract, and train."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config.load import load
from kdscale.contract.named import find, results
from kdscale.errors import ConfigError, KDScaleError
from kdscale.jobs.inline import run_inline
from kdscale.jobs.listings import TEMPLATES, plugins_of
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.small_sweep import SMALL_DATA, untimed_metrics

CONFIG: dict[str, Any] = {
    "name": "mine",
    "plugins": {"path": ["."], "allow": ["mine"]},
    "data": SMALL_DATA | {"limit": 64, "limit_test": 50},
    "train": {"epochs": 1, "batch_size": 32, "precision": "fp32", "log_every_steps": 1},
    "engine": {"processes": 1},
    "tracking": {"uri": "off"},
    "stages": {
        "teacher": {"student": {"model": "mine.model:SmallNet"}, "losses": [{"name": "ce"}]},
        "student": {
            "student": {"model": "mine.model:SmallNet", "width": 4},
            "teachers": {"teacher": {"from": "teacher"}},
            "strategy": "mine.strategy:Mirrored",
            "options": {"share": 0.3},
            "losses": [
                {"name": "ce"},
                {"name": "kd", "modifiers": [{"name": "mine.modifier:Modest", "limit": 2}]},
                {"name": "mine.loss:Margin", "weight": 0.1},
            ],
        },
    },
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Path]:
    """A user's package made of the printed templates, each in a file named after its kind."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    for kind in TEMPLATES:
        plugins_of(["template", kind])
        (tmp_path / "mine" / f"{kind}.py").write_text(capsys.readouterr().out)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_keeps_the_contract(kind: str, mine: Path) -> None:
    found = find(f"mine.{kind}", [mine])
    assert found.kind == kind
    every = list(results(found, {}))
    assert [result for result in every if result.state == "FAIL"] == []
    assert sum(result.state == "ok" for result in every) >= 7


def test_a_sweep_of_two_steps_names_them_all(mine: Path) -> None:
    (mine / "kd.yaml").write_text(yaml.safe_dump(CONFIG))
    runs = Root(mine / "runs")
    plan = make_plan(load(mine / "kd.yaml", ["stages.student.losses.Margin.weight=0.2"]), runs)
    prepare_folders(runs, plan, retry_failed=False)
    assert set(run_inline(runs, plan, lambda line: None).values()) == {"done"}
    folder = runs.stage(plan.trials[0].stages["student"])
    assert folder is not None
    steps = [line for line in untimed_metrics(folder) if "train/term/Margin" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["train/term/Margin"] > 0 for line in steps)


def test_an_edit_of_a_users_loss_makes_another_stage(mine: Path) -> None:
    (mine / "kd.yaml").write_text(yaml.safe_dump(CONFIG))

    def digests() -> dict[str, str]:
        return make_plan(load(mine / "kd.yaml"), Root(mine / "runs")).trials[0].stages

    before = digests()
    path = mine / "mine" / "loss.py"
    path.write_text(path.read_text().replace(".square()", ".abs()"))
    after = digests()
    assert before["teacher"] == after["teacher"]
    assert before["student"] != after["student"]


@pytest.mark.parametrize("words", [["template"], ["template", "dataset"], ["template", "loss", "model"]])
def test_there_are_templates_of_four_kinds(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="say one of loss, modifier, strategy, model"):
        plugins_of(words)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "mine.loss:Margn",
            r"stages\.student\.losses\.Margn\.name: .*loss\.py has no class Margn; did you mean Margin\?",
        ),
        ("mine.model:SmallNet", r"stages\.student\.losses\.SmallNet\.name: .* is none of the losses"),
        ("yours.loss:Margin", r"stages\.student\.losses\.Margin\.name: .*yours may not be imported"),
    ],
)
def test_what_is_no_loss_is_told_with_its_key(name: str, said: str, mine: Path) -> None:
    student = {**CONFIG["stages"]["student"], "losses": [{"name": "ce"}, {"name": name}]}
    stages = {**CONFIG["stages"], "student": student}
    (mine / "kd.yaml").write_text(yaml.safe_dump({**CONFIG, "stages": stages}))
    with pytest.raises(KDScaleError, match=said):
        make_plan(load(mine / "kd.yaml"), Root(mine / "runs"))


def test_an_option_that_a_users_loss_does_not_know_is_told_with_the_nearest(mine: Path) -> None:
    (mine / "kd.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(ConfigError, match=r"losses\.Margin\.margn: .*did you mean margin\?"):
        make_plan(load(mine / "kd.yaml", ["stages.student.losses.Margin.margn=2"]), Root(mine / "runs"))


def test_a_users_loss_is_heard_in_macros_as_it_says(mine: Path) -> None:
    path = mine / "mine" / "loss.py"
    path.write_text(path.read_text().replace("needs_teacher = True", "needs_teacher = False"))
    nets = {f"r{n}": {"model": "mine.model:SmallNet", "width": n} for n in (8, 6, 4)}
    dense = {"networks": nets, "path": ["r8", "r6", "r4"], "losses": [{"name": "kd"}, {"name": "mine.loss:Margin"}]}
    stages = {"r8": {"losses": [{"name": "ce"}]}}
    (mine / "kd.yaml").write_text(yaml.safe_dump({**CONFIG, "stages": stages, "dense": dense}))
    spec = load(mine / "kd.yaml").trials[0].stages["r4"]
    assert [term.id for term in spec.terms] == ["kd_r8", "kd_r6", "Margin"]
