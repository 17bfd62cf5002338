"""The bibliography of a sweep: entries of what it used, each once, and comments on what has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import kdscale
from kdscale.config.load import load
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.report.citations import bibliography, entries_of
from kdscale.report.records import SweepRecord
from tests.bibtex import parsed
from tests.fake_report_runs import takd


def told(tmp_path: Path, stages: dict[str, dict[str, Any]], **plan: Any) -> SweepRecord:
    """A sweep whose stages are of these specs; a stage that is not named has none."""
    folder = takd(tmp_path)
    sweep = SweepRecord(folder)
    for stage in sweep.trained:
        assert stage.folder is not None
        definition = {"digest": stage.digest}
        if stage.name in stages:
            definition |= {"spec": {"name": stage.name, "student": {"model": "resnet_cifar"}, **stages[stage.name]}}
        (stage.folder / "stage.yaml").write_text(yaml.safe_dump(definition))
    sweep = SweepRecord(folder)
    sweep.plan |= plan
    return sweep


def every_stage(**spec: Any) -> dict[str, dict[str, Any]]:
    return {name: spec for name in ("teacher", "assistant", "student")}


def test_what_is_used_is_cited_once_sorted_by_key(tmp_path: Path) -> None:
    losses = [{"name": "ce"}, {"name": "kd", "modifiers": [{"name": "zscore"}]}]
    sweep = told(tmp_path, every_stage(passes={"main": losses}, data={"name": "cifar100"}))
    entries = parsed(bibliography([sweep, sweep]))
    assert list(entries) == [
        "he2016deep", "hinton2015distilling", "kdscale", "krizhevsky2009learning", "sun2024logit",
    ]  # fmt: skip
    assert entries["hinton2015distilling"]["eprint"] == "1503.02531"


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"train": {"label_smoothing": 0.1}}, "szegedy2016rethinking"),
        ({"passes": {"main": [{"name": "ce", "label_smoothing": 0.1}]}}, "szegedy2016rethinking"),
        ({"data": {"augment": {"mixup": 0.2}}}, "zhang2018mixup"),
        ({"data": {"augment": {"cutmix": 1.0}}}, "yun2019cutmix"),
    ],
)
def test_smoothed_and_mixed_labels_are_cited_where_they_are_used(tmp_path: Path, spec: Any, key: str) -> None:
    spec = {"passes": {"main": [{"name": "ce"}]}} | spec
    others = {"szegedy2016rethinking", "zhang2018mixup", "yun2019cutmix"} - {key}
    found = parsed(bibliography([told(tmp_path, every_stage(**spec))]))
    assert key in found
    assert not others & found.keys()


def test_teachers_without_a_network_and_ensembles_are_cited(tmp_path: Path) -> None:
    teachers = {"a": {"from": "x"}, "b": {"from": "y"}, "all": {"mean": ["a", "b"]}, "v": {"virtual": {}}}
    found = parsed(bibliography([told(tmp_path, every_stage(teachers=teachers))]))
    assert {"ba2014do", "hinton2015distilling", "yuan2020revisiting"} <= found.keys()


def test_an_imported_network_is_cited_without_a_loss(tmp_path: Path) -> None:
    spec = {"passes": {"main": [{"name": "kd"}]}, "train": {"epochs": 0}}
    assert "hinton2015distilling" not in parsed(bibliography([told(tmp_path, every_stage(**spec))]))


def test_a_users_own_is_cited_from_its_file_or_named_in_a_comment(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/nets.py").write_text(
        'BIBTEX = "@misc{birds2026, title = {Birds}, author = {Me}}"\nimport nothing'
    )
    (tmp_path / "birds/others.py").write_text("")
    own = {"path": [str(tmp_path)], "allow": ["birds"]}
    models = {"teacher": "birds.nets:TinyNet", "assistant": "birds.others:Net", "student": "timm:vit_tiny"}
    stages = {name: {"student": {"model": model}, "plugins": own} for name, model in models.items()}
    text = bibliography([told(tmp_path, stages)])
    assert parsed(text)["birds2026"]["title"] == "Birds"
    assert "% birds.others:Net (models) has no entry: its file sets no BIBTEX" in text.splitlines()
    assert "% timm:vit_tiny (models) has no entry here: cite what its library names" in text.splitlines()


def test_a_stage_that_left_nothing_is_named(tmp_path: Path) -> None:
    text = bibliography([told(tmp_path, {})])
    assert "% quickstart:teacher left no stage.yaml: what it uses is not known" in text
    assert list(parsed(text)) == ["kdscale"]


def test_a_recipe_is_cited_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    cite = {"takd": "@misc{mine, title = {Mine}}", "broken": "@misc{other, title = {Ot"}
    text = bibliography([told(tmp_path, {}, cite=cite)])
    assert {"mine", "kdscale"} == parsed(text).keys()
    assert "% quickstart: cite.broken: its BibTeX cannot be read: entry other is not closed" in text


@pytest.mark.parametrize(
    ("pipeline", "keys"),
    [
        ("takd", {"mirzadeh2020improved"}),
        ("dgkd", {"son2021densely"}),
        ("gskd", {"gskd2019growing"}),
        ("rekd", {"yuan2020revisiting"}),
        ("dekd", {"yuan2020revisiting"}),
        ("tfkd_self", {"yuan2020revisiting", "furlanello2018born"}),
        ("compression", {"bucila2006model"}),
        ("vit_to_cnn", {"touvron2021training"}),
        ("blkd", set()),
    ],
)
def test_a_shipped_recipe_cites_its_paper(pipeline: str, keys: set[str]) -> None:
    cite = load(f"kdscale:pipelines/{pipeline}.yaml").trials[0].experiment.cite
    assert {key for entry in cite.values() for key in parsed(entry)} == keys


def test_a_plan_keeps_what_its_trials_cite(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    chain = "{networks: {a: &net {model: resnet_cifar, depth: 8}, b: *net, c: *net}, losses: [{name: kd}]}"
    patches = "{method: {one: {}, other: {cite: {mine: '@misc{mine, title = {Mine}}'}}}}"
    config.write_text(f"data: {{name: synthetic}}\nchain: {chain}\nsweep: {patches}\n")
    plan = make_plan(load(config), Root(tmp_path / "runs"))
    assert {key for entry in plan.document()["cite"].values() for key in parsed(entry)} == {
        "mirzadeh2020improved",
        "mine",
    }


def test_a_config_takes_a_macros_entry_back_or_replaces_it(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("extends: kdscale:pipelines/takd.yaml\ncite: {takd: '@misc{mine, title = {Mine}}'}")
    assert load(config).trials[0].experiment.cite == {"takd": "@misc{mine, title = {Mine}}"}


def test_the_citation_file_has_the_version_of_the_package(root: Path) -> None:
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == kdscale.__version__


@given(st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), unique=True), st.text(r"ab {}\@,=", max_size=20))
def test_entries_are_split_as_they_stand(keys: list[str], value: str) -> None:
    value = re.sub(r"\\*", "", value)
    balanced = all(value[:n].count("{") >= value[:n].count("}") for n in range(len(value) + 1))
    text = "\n".join(f"@misc{{{key}, title = {{{value}}}}}" for key in keys)
    if balanced and value.count("{") == value.count("}"):
        assert entries_of(text) == {key: f"@misc{{{key}, title = {{{value}}}}}" for key in keys}
    elif keys:
        with pytest.raises(ValueError, match="entry"):
            entries_of(text + "@")


@pytest.mark.parametrize("text", ["words", "@misc{a, title = {b}", "@misc a", "@misc{a, t = {}} more", "@misc{,}"])
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="entry"):
        entries_of(text)
