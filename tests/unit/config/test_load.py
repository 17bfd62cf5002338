"""Files under files, relative paths, and a stage's sections over the top level's."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.config.load import Sweep, load, parse_reference, resolve_stages
from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError
from tests.unit.config.conftest import Loading


def stages(sweep: Sweep) -> dict[str, StageSpec]:
    return resolve_stages(sweep.trials[0])


# --------------------------------------------------------------------------- files


def test_a_file_lies_over_what_it_extends(load_text: Loading, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.yaml").write_text("extends: root.yaml\ntrain: {lr: 0.2, epochs: 2}\n")
    (tmp_path / "deep" / "root.yaml").write_text("train: {lr: 0.3, epochs: 3, momentum: 0.3}\n")
    (tmp_path / "other.yaml").write_text("train: {epochs: 4}\n")

    sweep = load_text("extends: [deep/base.yaml, other.yaml]\ntrain: {gamma: 0.5}\n")

    train = sweep.trials[0].experiment.train
    assert (train.lr, train.epochs, train.momentum, train.gamma) == (0.2, 4, 0.3, 0.5)
    assert sweep.sources["train.lr"] == "deep/base.yaml:2"
    assert sweep.sources["train.momentum"] == "deep/root.yaml:1"
    assert sweep.sources["train.epochs"] == "other.yaml:1"
    assert sweep.sources["train.gamma"] == "x.yaml:15"


def test_shipped_configs_load_by_their_name() -> None:
    assert list(stages(load("kdscale:quickstart.yaml"))) == ["teacher", "assistant", "student"]


def test_every_shipped_config_that_has_stages_loads(root: Path) -> None:
    for path in sorted((root / "configs").rglob("*.yaml")):
        if "stages:" in path.read_text():
            assert load(path).trials, path


def test_the_users_config_lies_under_everything(
    load_text: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "kdscale.yaml").write_text(
        "tracking: {uri: off}\ntrain: {lr: 0.9, epochs: 9}\ndata: {root: mine}\n"
    )

    experiment = load_text("train: {lr: 0.5}\n").trials[0].experiment

    assert (experiment.tracking.uri, experiment.train.lr, experiment.train.epochs) == ("off", 0.5, 9)
    assert experiment.data.root == tmp_path / "home" / "mine"
    other = tmp_path / "other.yaml"
    other.write_text("train: {epochs: 8}\n")
    assert load("x.yaml", user_config=other).trials[0].experiment.train.epochs == 8


def test_paths_start_from_the_file_and_on_the_command_line_from_here(load_text: Loading, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.yaml").write_text(
        "data: {root: pixels}\nplugins: {path: [., ../code], allow: [birds]}\n"
        "stages: {teacher: {student: {weights: w.pt, class_names: names.txt}}}\n"
        "sweep: {stages.student.student.weights: [a.pt, b.pt]}\n"
    )
    (tmp_path / "deep" / "names.txt").write_text("crow\n\n jay \n")
    for name in ("deep/w.pt", "deep/a.pt", "deep/b.pt", "c.pt"):
        (tmp_path / name).touch()

    sweep = load_text("extends: deep/base.yaml\n")
    other = load_text("extends: deep/base.yaml\n", "stages.teacher.student.weights=c.pt", "data.root=~/x")

    spec = stages(sweep)["teacher"]
    assert spec.data.root == tmp_path / "deep" / "pixels"
    assert spec.plugins.path == [tmp_path / "deep", tmp_path / "code"]
    assert spec.student.weights == tmp_path / "deep" / "w.pt"
    assert spec.student.class_names == ["crow", "jay"]
    assert [resolve_stages(t)["student"].student.weights for t in sweep.trials] == [
        tmp_path / "deep" / "a.pt", tmp_path / "deep" / "b.pt"
    ]  # fmt: skip
    assert stages(other)["teacher"].student.weights == tmp_path / "c.pt"
    assert stages(other)["teacher"].data.root == Path.home() / "x"


def test_a_class_map_in_a_file_is_taken_in(load_text: Loading, tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("2 0\n1\n")
    sweep = load_text("", "stages.teacher.student.class_map=map.txt")
    assert stages(sweep)["teacher"].student.class_map == [2, 0, 1]


def test_the_order_of_layers(load_text: Loading, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {lr: 1, momentum: 0.1, gamma: 0.1, weight_decay: 0.1, epochs: 1}\n")
    text = """
extends: base.yaml
train: {momentum: 0.2, gamma: 0.2, weight_decay: 0.2, epochs: 2}
sweep:
  train.weight_decay: [0.4]
  train.epochs: [4]
  m: {p: {train: {gamma: 0.3, weight_decay: 0.3, epochs: 3}}}
"""
    train = load_text(text, "train.epochs=5").trials[0].experiment.train
    assert (train.lr, train.momentum, train.gamma, train.weight_decay, train.epochs) == (1, 0.2, 0.3, 0.4, 5)


# --------------------------------------------------------------------------- stages


def test_sections_merge_over_the_top_levels_key_by_key(load_text: Loading) -> None:
    text = """
train: {lr: 0.2, milestones: [0.3, 0.6, 0.9]}
data: {augment: {crop: 4, flip: true}, size: 32}
"""
    sweep = load_text(
        text,
        "stages.student.train={momentum: 0.5, milestones: [0.5]}",
        "stages.student.data.augment.crop=2",
        "stages.student.resources.time_min=5",
        "stages.student.engine.processes=2",
    )
    teacher, student = stages(sweep).values()
    assert (teacher.train.lr, teacher.train.milestones) == (0.2, [0.3, 0.6, 0.9])
    assert (student.train.lr, student.train.momentum, student.train.milestones) == (0.2, 0.5, [0.5])
    assert (student.data.augment.crop, student.data.augment.flip, student.data.size) == (2, True, 32)
    assert (student.resources.time_min, student.engine.processes) == (5, 2)
    assert (teacher.resources.time_min, teacher.engine.processes) == (60, "auto")


def test_another_data_set_of_a_stage_has_no_options_of_the_top_levels(load_text: Loading) -> None:
    sweep = load_text("data: {name: synthetic, options: {classes: 4}}\n", "stages.student.data.name=digits")
    assert stages(sweep)["teacher"].data.options == {"classes": 4}
    assert stages(sweep)["student"].data.options == {}


def test_seeds_are_inherited_unless_pinned(load_text: Loading) -> None:
    sweep = load_text("", "seed=3")
    assert {name: spec.seed for name, spec in stages(sweep).items()} == {"teacher": 0, "student": 3}


def test_losses_are_the_one_pass_main(load_text: Loading) -> None:
    passes = "{general: [{name: ce}], wise: [{name: kd, weight: 1 - lam}]}"
    spec = stages(load_text("params: {lam: 0.25}\n", "stages.student.losses=", f"stages.student.passes={passes}"))[
        "student"
    ]
    assert {name: [(t.id, t.weight) for t in terms] for name, terms in spec.passes.items()} == {
        "general": [("ce", 1.0)], "wise": [("kd", 0.75)]
    }  # fmt: skip
    assert list(stages(load_text())["student"].passes) == ["main"]


def test_init_from_in_both_forms(load_text: Loading) -> None:
    short = load_text("", "stages.student.init_from=teacher@epoch:2", "stages.student.init_skip=[head]")
    long = load_text("", "stages.student.init_from={from: teacher@epoch:2, skip: [head]}")
    assert stages(short)["student"].init_from == stages(long)["student"].init_from
    assert stages(short)["student"].init_from.from_ == "teacher@epoch:2"  # type: ignore[union-attr]


def test_a_stage_is_taken_out_by_null(load_text: Loading) -> None:
    sweep = load_text("", "stages.student=null")
    assert list(stages(sweep)) == ["teacher"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("a", "last", "")), ("a@best", ("a", "best", "")), ("a@epoch:0", ("a", "epoch:0", "")),
        ("a@acc:0.9", ("a", "acc:0.9", "")), ("a#head", ("a", "last", "head")), ("a@last#head", ("a", "last", "head")),
    ],
)  # fmt: skip
def test_references(text: str, parts: tuple[str, str, str]) -> None:
    assert parse_reference(text) == parts


@pytest.mark.parametrize(
    "text", ["", "@best", "a@", "a@epoch", "a@epoch:x", "a@epoch:-1", "a@acc:2", "a@acc:0", "a@first", "a@²"]
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError, match="say STAGE"):
        parse_reference(text)


# --------------------------------------------------------------------------- networks and parts taken from other stages


def test_a_stage_without_a_network_has_that_of_the_stage_it_starts_or_starts_from(load_text: Loading) -> None:
    before = "stages.init={init_skip: [], losses: [{name: ce}]}"
    after = "stages.tuned={init_from: 'teacher@best', losses: [{name: ce}]}"
    found = stages(load_text("data: {val_fraction: 0.1}\n", before, "stages.student.init_from=init", after))
    assert found["init"].student == found["student"].student
    assert found["tuned"].student == found["teacher"].student


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.x={losses: [{name: ce}]}"], r"stages\.x\.student: is missing: a stage has its own"),
        (["stages.x={losses: [{name: ce}]}", "stages.student.init_from=x", "stages.teacher.init_from=x"],
         r"stages\.x\.student: is missing, and the networks around it differ"),
        (["stages.student.losses.kd.init_from=teacher"], r"kd\.init_from: teacher has no term kd"),
        (["stages.student.losses.kd.init_from=teacher#ce"], r"kd\.init_from: teacher's term ce is ce, whose parts"),
        (["stages.student.losses.kd.init_from=teacher@epoch:1"], r"after the last epoch only; say teacher#kd"),
        (["stages.student.losses.kd.init_from=techer"], r"kd\.init_from: techer is no stage; did you mean teacher"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_from_another_stage(load_text: Loading, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_text("", *overrides)
