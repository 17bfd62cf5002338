"""Macros come to ordinary stages, which everything else in a config can address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.config.load import load
from kdscale.config.macros import expanded
from kdscale.config.merging import Layer
from kdscale.config.schema import StageSpec
from kdscale.config.show import json_schema, show_config
from kdscale.errors import ConfigError
from tests.unit.config.conftest import Loading

NETWORKS = """
  networks:
    r20: {model: resnet_cifar, depth: 20}
    r14: {model: resnet_cifar, depth: 14}
    r8: {model: resnet_cifar, depth: 8}
"""
CHAIN = f"""
chain:{NETWORKS}
  losses: [{{name: ce, weight: rest}}, {{name: kd, weight: 0.3, temperature: 5}}]
  selector: best
  cache: {{views: 2}}
data: {{val_fraction: 0.1}}
"""
DENSE = f"""
dense:{NETWORKS}
  losses: [{{name: ce, weight: 0.5}}, {{name: kd, weight: 0.5}}]
"""
GROW = f"""
params: {{lam: 0.4, gam: 0.1}}
grow:{NETWORKS}
  path: [r20, r8, r14]
  losses:
    - {{name: ce, weight: rest}}
    - {{name: kd, id: kd_teacher, teacher: teacher, weight: lam}}
    - {{name: kd, id: kd_previous, teacher: previous, weight: gam}}
"""


def stages(load_text: Loading, text: str, *overrides: str) -> dict[str, StageSpec]:
    return load_text(text, *overrides, whole=True).trials[0].stages


def taught(spec: StageSpec) -> dict[str, str | None]:
    return {role: ref.from_ for role, ref in spec.teachers.items()}


def terms(spec: StageSpec) -> dict[str, tuple[str | None, Any]]:
    return {term.id: (term.teacher, term.weight) for term in spec.terms}


# --------------------------------------------------------------------------- what each expands to


def test_in_a_chain_each_learns_from_the_one_before(load_text: Loading) -> None:
    found = stages(load_text, CHAIN)
    assert {name: taught(spec) for name, spec in found.items()} == {
        "r20": {}, "r14": {"teacher": "r20@best"}, "r8": {"teacher": "r14@best"},
    }  # fmt: skip
    assert terms(found["r20"]) == {"ce": (None, 1.0)}
    assert terms(found["r14"]) == terms(found["r8"]) == {"ce": (None, 0.7), "kd": (None, 0.3)}
    assert {name: spec.student.arguments["depth"] for name, spec in found.items()} == {"r20": 20, "r14": 14, "r8": 8}
    cache = found["r8"].teachers["teacher"].cache
    assert cache is not None
    assert cache.views == 2


def test_in_a_dense_path_each_learns_from_all_before(load_text: Loading) -> None:
    found = stages(load_text, DENSE, "dense.drop=1")
    assert taught(found["r14"]) == {"r20": "r20"}
    assert taught(found["r8"]) == {"r20": "r20", "r14": "r14"}
    assert terms(found["r8"]) == {"ce": (None, 0.5), "kd_r20": ("r20", 0.5), "kd_r14": ("r14", 0.5)}
    assert {name: spec.drop for name, spec in found.items()} == {"r20": 0, "r14": 0, "r8": 1}


def test_guides_may_be_averaged(load_text: Loading) -> None:
    found = stages(
        load_text, DENSE, "dense.normalise=mean", "dense.losses.kd.weight=0.9", "dense.losses.ce.weight=rest"
    )
    assert terms(found["r14"]) == {"ce": (None, 0.1), "kd_r20": ("r20", 0.9)}
    assert terms(found["r8"]) == {"ce": (None, 0.1), "kd_r20": ("r20", 0.45), "kd_r14": ("r14", 0.45)}


def test_a_growing_student_learns_from_the_teacher_and_the_one_before(load_text: Loading) -> None:
    found = stages(load_text, GROW)
    assert taught(found["r8"]) == {"teacher": "r20"}
    assert terms(found["r8"]) == {"ce": (None, 0.6), "kd_teacher": ("teacher", 0.4)}
    assert taught(found["r14"]) == {"teacher": "r20", "previous": "r8"}
    assert terms(found["r14"]) == {
        "ce": (None, 0.5), "kd_teacher": ("teacher", 0.4), "kd_previous": ("previous", 0.1),
    }  # fmt: skip


def test_a_further_round_is_under_the_network_that_grew_last(load_text: Loading) -> None:
    found = stages(load_text, GROW, "grow.rounds=3")
    assert list(found) == ["r20", "r8", "r14", "r8_2", "r14_2", "r8_3", "r14_3"]
    assert taught(found["r8_2"]) == {"teacher": "r14"}
    assert taught(found["r14_2"]) == {"teacher": "r14", "previous": "r8_2"}
    assert taught(found["r14_3"]) == {"teacher": "r14_2", "previous": "r8_3"}
    assert terms(found["r14_2"]) == terms(found["r14"])


@given(st.integers(2, 8), st.integers(1, 3))
def test_the_number_of_stages_and_edges_is_known(length: int, rounds: int) -> None:
    networks = {f"n{i}": {"model": "resnet_cifar"} for i in range(length)}
    kd = {"name": "kd"}
    sections = {
        "chain": {"networks": networks, "losses": [kd]},
        "dense": {"networks": networks, "losses": [kd]},
        "grow": {
            "networks": networks, "rounds": rounds,
            "losses": [kd | {"teacher": "teacher"}, kd | {"id": "p", "teacher": "previous"}],
        },
    }  # fmt: skip
    edges = {"chain": length - 1, "dense": length * (length - 1) // 2, "grow": rounds * (2 * (length - 1) - 1)}
    for key, section in sections.items():
        made = expanded(Layer({key: section})).values["stages"]
        assert len(made) == (1 + rounds * (length - 1) if key == "grow" else length)
        assert sum(len(stage.get("teachers", {})) for stage in made.values()) == edges[key]


# --------------------------------------------------------------------------- what lies over it


def test_macro_keys_and_expanded_stages_are_overridden_and_swept_alike(load_text: Loading) -> None:
    own = "stages: {r20: {seed: 7}, r8: {train: {epochs: 3}}}\n"
    sweep = load_text(
        CHAIN + own, "chain.networks.r14.depth=32", "stages.r8.losses.kd.temperature=2", "stages.r8.train.lr=0.1,0.2",
        "chain.losses.kd.weight=0.4", whole=True,
    )  # fmt: skip
    assert sweep.axes == {"lr": ["0.1", "0.2"]}
    found = sweep.trials[1].stages
    assert found["r20"].seed == 7
    assert (found["r8"].train.epochs, found["r8"].train.lr) == (3, 0.2)
    assert found["r14"].student.arguments["depth"] == 32
    assert [found[name].terms[1].options["temperature"] for name in ("r14", "r8")] == [5, 2]
    assert terms(found["r8"]) == {"ce": (None, 0.6), "kd": (None, 0.4)}


def test_a_path_is_swept(load_text: Loading) -> None:
    trials = load_text(CHAIN, "chain.path=[r20,r8],[r20,r14,r8]", whole=True).trials
    assert [list(trial.stages) for trial in trials] == [["r20", "r8"], ["r20", "r14", "r8"]]


def test_what_is_said_of_a_network_waits_until_the_path_has_it(load_text: Loading) -> None:
    own = "stages: {r14: {train: {epochs: 3}}}\n"
    trials = load_text(CHAIN + own, "chain.path=[r20,r8],[r20,r14,r8]", whole=True).trials
    assert list(trials[0].stages) == ["r20", "r8"]
    assert trials[1].stages["r14"].train.epochs == 3


def test_null_takes_a_macro_out(load_text: Loading) -> None:
    own = "stages: {alone: {student: {model: resnet_cifar}, losses: [{name: ce}]}}\n"
    assert list(stages(load_text, CHAIN + own, "chain=null")) == ["alone"]


def test_the_first_may_be_a_stage_of_the_configs_own(load_text: Loading) -> None:
    own = "stages: {mine: {student: {model: resnet_cifar, depth: 32}, losses: [{name: ce}], seed: 4}}\n"
    found = stages(load_text, CHAIN + own, "chain.path=[mine,r8]")
    assert list(found) == ["r8", "mine"]
    assert taught(found["r8"]) == {"teacher": "mine@best"}


def test_two_macros_may_share_a_teacher_and_nothing_else(load_text: Loading) -> None:
    text = CHAIN + DENSE
    assert list(stages(load_text, text, "chain.path=[r20,r8]", "dense.path=[r20,r14]")) == ["r20", "r8", "r14"]
    with pytest.raises(ConfigError, match=r"dense\.path: another macro makes a different stage r14"):
        load_text(text, whole=True)


def test_the_record_of_a_sweep_loads_to_the_same_stages(load_text: Loading, tmp_path: Path) -> None:
    sweep = load_text(GROW, "stages.r14.losses.kd_previous.temperature=2", whole=True)
    again = tmp_path / "again.yaml"
    again.write_text(sweep.text)
    assert load(again).trials[0].stages == sweep.trials[0].stages


def test_every_value_says_which_key_of_the_macro_it_is_from(load_text: Loading) -> None:
    text = show_config(load_text(CHAIN, "stages.r8.losses.kd.temperature=2", whole=True))
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    assert lines["stages.r14.student.depth"].endswith("# x.yaml:5 (chain.networks.r14)")
    assert lines["stages.r14.losses.kd.temperature"].endswith("# x.yaml:8 (chain.losses.kd)")
    assert lines["stages.r8.losses.kd.temperature"].endswith("# command line")
    assert lines["stages.r14.teachers.teacher.from"].endswith("# x.yaml:9 (chain.selector)")
    assert lines["stages.r14.teachers.teacher.cache.views"].endswith("# x.yaml:10 (chain.cache)")


def test_the_schema_knows_the_macros() -> None:
    schema = json_schema()
    assert {"chain", "dense", "grow"} <= schema["properties"].keys()
    assert {"networks", "path", "losses", "rounds"} <= schema["$defs"]["GrowConfig"]["properties"].keys()
    assert "drop" in schema["$defs"]["DenseConfig"]["properties"]


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (CHAIN, ["chain.pth=[r20]"], "command line: chain.pth: unknown key; did you mean path?"),
        (CHAIN, ["chain.path=[r20,r88]"], "command line: chain.path: r88 is not in chain.networks; did you mean r8?"),
        (CHAIN, ["chain.path=[x,r8]"], "chain.path: x is not in chain.networks, nor a stage of this config"),
        (CHAIN, ["chain.path=[r20,r8,r20]"], "chain.path: r20 is named twice"),
        (CHAIN, ["chain.networks={r8: {model: wrn}}"], "chain.networks: a path has at least two networks"),
        (CHAIN, ["chain.losses.kd.teacher=r20"], "chain.losses.kd.teacher: the path says who teaches; leave it out"),
        (CHAIN, ["chain.losses.kd.weight=1.2"], "x.yaml:8 (chain.losses.ce): stages.r14.losses.ce.weight: 1 - (1.2)"),
        (CHAIN, ["chain.losses.kd.weight=rest"], "chain.losses.ce.weight: only one term takes the rest, not ce and kd"),
        (CHAIN, ["chain.losses.kd.weight={linear: [1, 0]}"], "chain.losses.ce.weight: the rest is left by numbers"),
        (CHAIN, ["chain.networks.r14.dept=9"], "(chain.networks.r14): stages.r14.student.dept: unknown key;"),
        (CHAIN, ["chain.selector=bst"], "(chain.selector): stages.r14.teachers.teacher.from: r20@bst: say STAGE"),
        (CHAIN, ["chain.losses.kd.temprature=9"], "(chain.losses.kd): stages.r14.losses.kd.temprature: unknown key"),
        (CHAIN, ["stages.r8.losses.kdd.weight=9"], "command line: stages.r8.losses has no item kdd; did you mean kd?"),
        (CHAIN, ["stages.r88.train.epochs=9"], "student: is missing: no stage is called r88; did you mean r8?"),
        (DENSE, ["dense.normalise=mean", "dense.losses.kd.weight={linear: [1, 0]}"], "losses.kd.weight: normalise"),
        (DENSE, ["stages.r8.drop=3"], "stages.r8.drop: 3 of 2 terms that hear a teacher would be dropped; drop fewer"),
        (DENSE, ["stages.r8.drop=2", "dense.losses.ce.weight=0"], "dropped, and nothing is left to learn from"),
        (GROW, ["params.gam=0.7"], "stages.r14.losses.ce.weight: 1 - (lam) - (gam) is -0.1 here (gam 0.7, lam 0.4)"),
        (GROW, ["grow.losses.kd_teacher.teacher=r20"], "grow.losses.kd_teacher.teacher: say teacher: teacher, or"),
        (GROW, ["grow.rounds=0"], "grow.rounds: input should be greater than 0"),
    ],
)  # fmt: skip
def test_errors_name_the_macros_key(text: str, overrides: list[str], said: str, load_text: Loading) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(text, *overrides, whole=True)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_may_be_all_that_a_drop_leaves(load_text: Loading) -> None:
    assert stages(load_text, DENSE, "stages.r8.drop=2")["r8"].drop == 2
