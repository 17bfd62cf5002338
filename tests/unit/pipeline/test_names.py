"""A name means one thing, whatever way it is written, or is an error that lists what it could mean."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.errors import ConfigError
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.names import digest_in, name_of, names_in, resolve

AXES = {"seed": ["0", "1"], "method": ["ce", "kd", "crd"], "student": ["mine48", "mine96"]}


def digest_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def plan_of(axes: Mapping[str, Sequence[str]], shared: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """All trials over the axes; `shared` says which axes each stage depends on."""
    trials, stages = [], {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        own = {name: digest_of(name, [chosen[a] for a in of]) for name, of in shared.items()}
        stages |= {digest: {"name": name} for name, digest in own.items()}
        trials.append({"axes": chosen, "label": "", "stages": own, "swept": {}})
    return {"schema": 1, "axes": {a: list(v) for a, v in axes.items()}, "trials": trials, "stages": stages}


BENCH = plan_of(AXES, {"teacher": [], "init": ["student"], "student": ["seed", "method", "student"]})
BENCH["stages"]["da" * 32] = {"name": "data"}


def write(root: Root, name: str, digest: str, plan: Mapping[str, Any], when: float = 0) -> SweepFolder:
    sweep = root.create_sweep(name, digest)
    sweep.plan_file.write_text(json.dumps(plan))
    os.utime(sweep.plan_file, (when, when))
    for stage_digest, entry in plan["stages"].items():
        root.create_stage(entry["name"], stage_digest)
    return sweep


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    root = Root(tmp_path_factory.mktemp("runs"))
    write(root, "birds", "9c11" + "0" * 60, BENCH, when=5)
    return root


def student(seed: str, method: str, width: str) -> str:
    return digest_of("student", [seed, method, width])


class TestStages:
    @pytest.mark.parametrize(
        "text",
        [
            "birds:student[crd,mine96,s1]", "birds:student[s1,mine96,crd]", "birds:student[ mine96 , 1, crd ]",
            "birds:student[seed=1,method=crd,mine96]", "birds-9c11:student[crd,mine96,s1]",
            "9c11:student[crd,mine96,s1]", "latest:student[crd,mine96,seed=s1]",
        ],
    )  # fmt: skip
    def test_by_axis_values_in_any_order(self, root: Root, text: str) -> None:
        found = resolve(text, root)
        assert isinstance(found, StageFolder)
        assert found.digest == student("1", "crd", "mine96")

    def test_any_subset_that_is_unique_will_do(self, root: Root) -> None:
        assert resolve("birds:init[mine48]", root).path.name.endswith(digest_of("init", ["mine48"])[:12])
        assert resolve("birds:init[mine48,s1,kd]", root).path == resolve("birds:init[mine48]", root).path
        assert resolve("birds:teacher", root).path.name.endswith(digest_of("teacher", [])[:12])

    def test_a_conversion_is_in_no_trial_but_has_a_name(self, root: Root) -> None:
        assert resolve("birds:data", root).path.name == "data-" + "da" * 6

    def test_several_are_listed_with_names_that_work(self, root: Root) -> None:
        with pytest.raises(ConfigError, match="could be any of") as caught:
            resolve("birds:student[crd,mine96]", root)
        names = str(caught.value).partition("any of ")[2].split(", ")
        assert len(names) == 2
        assert {resolve(n, root).path.name[-12:] for n in names} == {
            student(s, "crd", "mine96")[:12] for s in ("0", "1")
        }

    @pytest.mark.parametrize("form", ["{digest}", "{short}", "student-{digest12}", "student-{short}", "{upper}"])
    def test_by_digest(self, root: Root, form: str) -> None:
        digest = student("0", "kd", "mine48")
        text = form.format(digest=digest, short=digest[:6], digest12=digest[:12], upper=digest[:8].upper())
        assert resolve(text, root).path.name == f"student-{digest[:12]}"

    def test_by_a_name_that_only_one_has(self, root: Root) -> None:
        assert resolve("teacher", root).path.name.startswith("teacher-")
        with pytest.raises(ConfigError, match="could be any of student-"):
            resolve("student", root)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("birds:student[crd,mine95,s1]", "no trial has 'mine95'; did you mean mine96?"),
            ("birds:student[crd,ce]", "no trial has all these values; the values are ce, crd, kd, mine48"),
            ("birds:teecher", "birds has no stage 'teecher'; did you mean teacher?"),
            ("bird:teacher", "nothing .* is called 'bird'; did you mean birds?"),
            ("birds:student[crd", "after the colon comes STAGE"),
            ("zzz", "its sweeps are birds"),
            ("runs/stages/x", "there is no such file or folder"),
            ("birds:", "after the colon comes STAGE"),
        ],
    )
    def test_errors_say_what_there_is(self, root: Root, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
            resolve(text, root)

    def test_a_planned_one_without_folder_says_so(self, tmp_path: Path) -> None:
        root = Root(tmp_path)
        sweep = root.create_sweep("x", "0" * 64)
        sweep.plan_file.write_text(json.dumps(BENCH))
        with pytest.raises(ConfigError, match=r"planned .* nothing has been made of it yet"):
            resolve("x:teacher", root)

    def test_a_digest_that_two_share_is_an_error(self, tmp_path: Path) -> None:
        root = Root(tmp_path)
        for i, name in enumerate(["a", "b"]):
            root.create_stage(name, f"abcdef{i}" + "0" * 57)
        with pytest.raises(ConfigError, match="a-abcdef000000, b-abcdef100000"):
            resolve("abcdef", root)
        assert resolve("abcdef1", root).path.name.startswith("b-")


class TestSweeps:
    @pytest.mark.parametrize("text", ["birds", "birds-9c11", "birds-9c110000", "9c1100", "latest"])
    def test_by_name_or_digest(self, root: Root, text: str) -> None:
        found = resolve(text, root)
        assert isinstance(found, SweepFolder)
        assert found.name == "birds"

    def test_two_of_one_name_need_their_digests(self, tmp_path: Path) -> None:
        root = Root(tmp_path)
        old = write(root, "x", "aa" * 32, BENCH, when=1)
        new = write(root, "x", "bb" * 32, BENCH, when=2)
        with pytest.raises(ConfigError, match="x-bbbbbbbb, x-aaaaaaaa"):
            resolve("x", root)
        assert resolve("latest", root).path == new.path
        axes = BENCH["trials"][0]["axes"]
        name = name_of(old, "student", axes)
        assert name == "x-aaaaaaaa:student[s0,ce,mine48]"
        assert resolve(name, root).path.name[-12:] == student("0", "ce", "mine48")[:12]

    def test_a_name_with_dashes_is_not_a_prefix_of_another(self, tmp_path: Path) -> None:
        root = Root(tmp_path)
        write(root, "birds", "aa" * 32, BENCH)
        write(root, "birds-bench", "bb" * 32, BENCH)
        assert resolve("birds", root).path.name == "birds-aaaaaaaa"
        assert resolve("birds-bench", root).path.name == "birds-bench-bbbbbbbb"

    def test_an_empty_root_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds no sweeps"):
            resolve("latest", Root(tmp_path))


class TestPaths:
    def test_a_folder_or_any_file_in_it(self, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
        stage = resolve("birds:teacher", root)
        assert resolve(str(stage.path), root).path == stage.path
        assert resolve(f"{stage.path}/logs", root).path == stage.path
        monkeypatch.chdir(stage.path)
        assert resolve("./state.json", root).path == stage.path
        assert isinstance(resolve(str(root.sweeps()[0].plan_file), root), SweepFolder)

    def test_a_stage_of_another_root_is_read_only(self, root: Root, tmp_path: Path) -> None:
        stage = resolve("birds:teacher", root)
        other = resolve(str(stage.path), Root(tmp_path))
        assert isinstance(other, StageFolder)
        assert not other.writable


class TestNames:
    def test_no_more_values_than_decide(self) -> None:
        names = names_in(BENCH, "b")
        assert names[digest_of("teacher", [])] == "b:teacher"
        assert names[digest_of("init", ["mine48"])] == "b:init[mine48]"
        assert names[student("1", "crd", "mine96")] == "b:student[s1,crd,mine96]"
        assert names["da" * 32] == "b:data"

    def test_equal_values_of_two_axes_are_told_apart(self) -> None:
        plan = plan_of({"lr": ["0.1", "0.2"], "wd": ["0.1", "0.2"]}, {"student": ["lr", "wd"]})
        names = names_in(plan, "b")
        assert names[digest_of("student", ["0.1", "0.2"])] == "b:student[lr=0.1,wd=0.2]"
        for digest, name in names.items():
            assert digest_in(plan, name.removeprefix("b:")) == digest

    def test_values_may_be_lists(self) -> None:
        plan = plan_of({"widths": ["[16, 32]", "[32, 64]"], "seed": ["0"]}, {"student": ["widths"]})
        assert digest_in(plan, "student[s0,[32, 64]]") == digest_of("student", ["[32, 64]"])

    @given(st.data())
    def test_every_name_leads_back(self, data: st.DataObject) -> None:
        word = st.sampled_from(["0", "1", "s0", "kd", "0.1"])
        axes = data.draw(
            st.dictionaries(
                st.sampled_from(["seed", "lr", "method"]),
                st.lists(word, min_size=1, max_size=3, unique=True),
                min_size=1,
            )
        )
        of = {name: data.draw(st.lists(st.sampled_from(sorted(axes)), unique=True)) for name in ("teacher", "student")}
        plan = plan_of(axes, of)
        kept = data.draw(st.lists(st.sampled_from(plan["trials"]), min_size=1, unique_by=repr))
        plan["trials"] = kept
        plan["stages"] = {d: plan["stages"][d] for t in kept for d in t["stages"].values()}
        for digest, name in names_in(plan, "b").items():
            assert digest_in(plan, name.removeprefix("b:")) == digest

    def test_a_thousand_trials_are_named(self) -> None:
        axes = {
            "seed": [str(i) for i in range(10)],
            "a": [f"a{i}" for i in range(10)],
            "b": [f"b{i}" for i in range(10)],
        }
        plan = plan_of(axes, {"student": list(axes)})
        assert len(names_in(plan, "b")) == 1000


def test_caches_that_no_axis_tells_apart_have_names_that_can_be_pasted() -> None:
    plan = plan_of({"seed": ["0"]}, {"teacher": [], "student": []})
    plan["stages"] |= {"ab" * 32: {"name": "teacher-cache"}, "cd" * 32: {"name": "teacher-cache"}}
    names = names_in(plan, "birds")
    assert names["ab" * 32] == "birds:teacher-cache-ababab"
    assert names["cd" * 32] == "birds:teacher-cache-cdcdcd"
    for digest, name in names.items():
        assert digest_in(plan, name.partition(":")[2]) == digest
    with pytest.raises(ConfigError, match="could be any of birds:teacher-cache-ababab, birds:teacher-cache-cdcdcd"):
        digest_in(plan, "teacher-cache", "birds")
