"""Plans of small sweeps on synthetic data, from the YAML on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from kdscale.api import DatasetInfo
from kdscale.config.load import load
from kdscale.config.schema import StudentConfig
from kdscale.errors import ConfigError, KDScaleError
from kdscale.nn.build import build_network
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage, label_of

ROWS, HELD_OUT, BATCH, EPOCHS = 720, 0.1, 32, 3
SMALL: dict[str, Any] = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
EXPERIMENT: dict[str, Any] = {
    "name": "plan",
    "data": {
        "name": "synthetic", "val_fraction": HELD_OUT, "augment": {"flip": True},
        "options": {"train_rows": ROWS, "size": 16},
    },
    "train": {"epochs": EPOCHS, "batch_size": BATCH, "precision": "fp32"},
    "engine": {"processes": 1},
    "stages": {
        "teacher": {"student": {"model": "resnet_cifar", "depth": 8}, "losses": [{"name": "ce"}]},
        "ta": {
            "student": SMALL | {"widths": [8, 8, 16]},
            "teachers": {"t": {"from": "teacher"}},
            "losses": [{"name": "ce"}, {"name": "kd"}],
        },
        "student": {"student": SMALL, "teachers": {"t": {"from": "ta"}}, "losses": [{"name": "ce"}, {"name": "kd"}]},
    },
}  # fmt: skip

Planning = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planning:
    """Plan the experiment, with keys set in its YAML (a dotted path each) and on the command line."""

    def make(*overrides: str, root: Path | None = None, fresh: tuple[str, ...] = (), **changes: Any) -> Plan:
        document = copy.deepcopy(EXPERIMENT)
        for path, value in changes.items():
            *parents, last = path.split("__")
            at = document
            for parent in parents:
                at = at.setdefault(parent, {})
            at[last] = value
        config = tmp_path / "plan.yaml"
        config.write_text(yaml.safe_dump(document, sort_keys=False))
        return make_plan(load(config, overrides), Root(root or tmp_path / "runs"), fresh=fresh)

    return make


def only(of: Plan, name: str) -> PlannedStage:
    [found] = [stage for stage in of.stages.values() if stage.name == name]
    return found


def digests(of: Plan) -> dict[str, str]:
    """Of a plan of one trial."""
    return {stage.name: stage.digest for stage in of.stages.values()}


def names(of: Plan) -> list[str]:
    return sorted(stage.name for stage in of.stages.values())


# --------------------------------------------------------------------------- unique stages, order


def test_parents_come_first_and_know_their_depth(plan: Planning, tmp_path: Path) -> None:
    found = plan()
    seen: set[str] = set()
    for digest, stage in found.stages.items():
        assert {parent for parent, _ in stage.parents.values()} <= seen
        seen.add(digest)
    assert {s.name: s.depth for s in found.stages.values()} == {"data": 0, "teacher": 1, "ta": 2, "student": 3}
    assert only(found, "student").parents == {
        "t": (only(found, "ta").digest, "last"),
        "data": (only(found, "data").digest, "store"),
    }
    assert not (tmp_path / "runs").exists()  # planning writes nothing


def test_what_trials_share_is_planned_once(plan: Planning) -> None:
    found = plan("stages.student.losses.kd.temperature=2,4,8")
    assert len(found.trials) == 3
    assert names(found) == ["data", "student", "student", "student", "ta", "teacher"]
    assert len({trial.stages["ta"] for trial in found.trials}) == 1


@pytest.mark.parametrize(("pinned", "count"), [(0, 1), (None, 2)])
def test_a_pinned_seed_is_one_stage_for_all_seeds(plan: Planning, pinned: int | None, count: int) -> None:
    changes = {} if pinned is None else {"stages__teacher__seed": pinned}
    found = plan("seed=range(2)", **changes)
    assert names(found).count("teacher") == count
    assert names(found).count("student") == 2
    assert names(found).count("data") == 1
    assert [trial.label for trial in found.trials] == ["s0", "s1"]


def test_equal_stages_of_other_names_are_one(plan: Planning) -> None:
    again = EXPERIMENT["stages"]["student"]
    found = plan(stages__copy=again)
    assert found.trials[0].stages["copy"] == found.trials[0].stages["student"]
    assert len(found.stages) == 4


def test_labels() -> None:
    assert label_of({"method": "crd", "seed": "3"}) == "crd · s3"
    assert label_of({}) == "only"


# --------------------------------------------------------------------------- digests


def test_digests_do_not_depend_on_where_or_how_it_runs(plan: Planning, tmp_path: Path) -> None:
    expected = digests(plan())
    assert digests(plan()) == expected
    assert digests(plan(root=tmp_path / "elsewhere")) == expected
    for same in (
        {"name": "another"},
        {"engine__processes": 2},
        {"train__log_every_steps": 3, "train__checkpoint_every_steps": 5, "train__keep_checkpoints": 4},
        {"train__momentum": 0.9, "data__split_seed": 0},  # the defaults, said aloud
        {"tracking": {"uri": "off"}, "resources": {"time_min": 7}, "limits": {"parallel": 1}},
    ):
        assert digests(plan(**same)) == expected, same
    torch_loader = digests(plan(data__loader="torch"))  # converts for itself, trains the same
    assert {**torch_loader, "data": expected["data"]} == expected


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"stages__student__train": {"lr": 0.05}}, {"student"}),
        ({"stages__ta__losses": [{"name": "kd"}]}, {"ta", "student"}),
        ({"stages__teacher__student": {"model": "resnet_cifar", "depth": 14}}, {"teacher", "ta", "student"}),
        ({"seed": 1}, {"teacher", "ta", "student"}),
        ({"train__bn": "sync"}, {"teacher", "ta", "student"}),
        ({"data__view_seed": 1}, {"teacher", "ta", "student"}),
        ({"stages__student__teachers": {"t": {"from": "ta@best"}}}, {"student"}),
        ({"data__options": {"train_rows": ROWS, "size": 16, "seed": 1}}, {"data", "teacher", "ta", "student"}),
    ],
)
def test_what_decides_numbers_changes_the_digest_and_those_after_it(
    plan: Planning, changes: dict[str, Any], changed: set[str]
) -> None:
    before, after = digests(plan()), digests(plan(**changes))
    assert {name for name in before if before[name] != after[name]} == changed


# --------------------------------------------------------------------------- snapshots


def test_every_stage_keeps_what_somebody_takes(plan: Planning) -> None:
    found = plan(
        stages__student__teachers={"t": {"from": "ta@epoch:2"}, "u": {"from": "teacher@acc:0.5"}},
        stages__student__losses=[{"name": "kd", "teacher": "t"}, {"name": "kd", "id": "kd2", "teacher": "u"}],
    )
    assert only(found, "ta").definition["keep"] == ["best", "epoch:2", "last"]
    assert only(found, "teacher").definition["keep"] == ["acc:0.5", "best", "last"]


def test_without_validation_rows_there_is_no_best(plan: Planning) -> None:
    assert only(plan(data__val_fraction=0), "ta").definition["keep"] == ["last"]
    with pytest.raises(
        ConfigError, match=r"stages\.student\.teachers\.t\.from: ta@best: ta has no validation .* use @last"
    ):
        plan(data__val_fraction=0, stages__student__teachers={"t": {"from": "ta@best"}})


def test_an_epoch_that_is_never_reached(plan: Planning) -> None:
    with pytest.raises(ConfigError, match=r"stages\.student\.teachers\.t\.from: ta@epoch:4: ta trains for 3 epochs"):
        plan(stages__student__teachers={"t": {"from": "ta@epoch:4"}})


# --------------------------------------------------------------------------- refusals


def test_a_cycle(plan: Planning) -> None:
    with pytest.raises(ConfigError, match=r"cycle: (student -> ta -> student|ta -> student -> ta)"):
        plan(stages__ta__teachers={"t": {"from": "student"}})


def test_a_batch_that_does_not_divide(plan: Planning) -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 32 does not divide by 3 processes x accumulation 1"):
        plan(engine__processes=3)
    with pytest.raises(ConfigError, match=r"does not divide by 1 processes x accumulation 5"):
        plan(train__accumulation=5)


def test_a_batch_that_is_larger_than_the_data(plan: Planning) -> None:
    with pytest.raises(
        ConfigError, match=r"stages\.teacher\.train\.batch_size: 649 is more than the 648 training rows"
    ):
        plan(train__batch_size=649)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stages__student__teachers": {"t": {"from": "teecher"}}}, r"teecher"),
        ({"stages__student__losses": [{"name": "kd", "teacher": "u"}]}, r"stages\.student.*\bu\b"),
        ({"stages__teacher__losses": [{"name": "kd"}]}, r"stages\.teacher\.losses\.kd: kd needs a teacher"),
        ({"stages__student__losses": [{"name": "kd", "temprature": 2}]}, r"temprature.*temperature"),
        ({"stages__student__losses": [{"name": "kdd"}]}, r"kdd"),
        ({"stages__student__student": {"model": "resnet_cifar", "depth": 9}}, r"stages\.student.*depth"),
    ],
)  # fmt: skip
def test_what_could_not_work_is_refused_with_its_key_path(plan: Planning, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(KDScaleError, match=text):
        plan(**changes)


# --------------------------------------------------------------------------- networks and costs


NET = '''
from torch import nn

class Net(nn.Module):
    """One convolution, one linear layer, and a layer that no loss reaches."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.unused = nn.Linear(7, 2)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
'''
CONV, HEAD = 2 * 16 * 16 * 5 * 9, 2 * 5 * 10
"""FLOPs of one image: a multiply-add is two; what is no matrix product is not counted, as torch has it."""


@pytest.fixture
def planned_net(plan: Planning, tmp_path: Path) -> Callable[..., PlannedStage]:
    def planned(**keys: Any) -> PlannedStage:
        (tmp_path / "planned_net.py").write_text(NET)
        found = plan(
            plugins={"path": [str(tmp_path)], "allow": ["planned_net"]},
            stages={"net": {"student": {"model": "planned_net:Net"}, "losses": [{"name": "ce"}], **keys}},
        )
        return only(found, "net")

    return planned


@pytest.fixture
def of_net(planned_net: Callable[..., PlannedStage]) -> PlannedStage:
    return planned_net()


def test_parameters_that_no_term_reaches_are_found(of_net: PlannedStage) -> None:
    assert of_net.definition["frozen"] == ["student.model.unused.weight", "student.model.unused.bias"]


def test_costs_are_those_of_the_network(of_net: PlannedStage) -> None:
    cost, steps = of_net.cost, EPOCHS * (648 // BATCH)
    assert cost.params == (9 + 1) * 5 + 2 * 5 + (7 * 2 + 2) + (5 * 10 + 10)
    assert cost.flops == CONV + HEAD
    assert (cost.steps, cost.epochs) == (steps, EPOCHS)
    assert cost.step_flops == 2 * CONV + 3 * HEAD  # nobody wants the gradient of images
    assert cost.train_flops == steps * BATCH * cost.step_flops
    assert cost.bytes >= 3 * 2 * 4 * cost.params  # three checkpoints of weights and momentum


@pytest.mark.parametrize(
    ("trained", "gradients"), [("conv", CONV + HEAD), ("norm", HEAD), ("head", HEAD)]
)  # of weights, and of what lies behind them
def test_what_is_frozen_costs_no_gradient_of_its_own(
    planned_net: Callable[..., PlannedStage], trained: str, gradients: int
) -> None:
    cost = planned_net(train_only=[trained]).cost
    assert cost.step_flops == CONV + HEAD + gradients


def test_teachers_cost_one_forward(plan: Planning) -> None:
    found = plan()
    student, ta = only(found, "student").cost, only(found, "ta").cost
    assert student.teacher_flops == ta.flops
    assert student.train_flops == student.steps * BATCH * (student.step_flops + ta.flops)


def test_a_conversion_costs_its_pixels(plan: Planning) -> None:
    assert only(plan(), "data").cost.bytes == (ROWS + 500) * 16 * 16


def test_a_stage_of_no_epochs_takes_no_steps(plan: Planning) -> None:
    stage = only(plan(stages__teacher__train={"epochs": 0}), "teacher")
    assert (stage.cost.steps, stage.cost.train_flops) == (0, 0)
    assert stage.definition["keep"] == ["last"]


# --------------------------------------------------------------------------- reuse


def finish(of: Plan, root: Root, name: str, weights: dict[str, str], consumed: dict[str, str]) -> None:
    stage = only(of, name)
    folder = root.create_stage(name, stage.digest)
    folder.write_state(state="done", weights=weights, consumed=consumed)


@pytest.fixture
def halfway(plan: Planning, tmp_path: Path) -> Root:
    """Data, teacher and assistant are done."""
    root, found = Root(tmp_path / "runs"), plan()
    finish(found, root, "data", {}, {})
    finish(found, root, "teacher", {"last": "aa", "best": "ab"}, {})
    finish(found, root, "ta", {"last": "ba", "best": "bb"}, {"t": "aa"})
    return root


def todo(of: Plan) -> list[str]:
    return [stage.name for stage in of.todo]


def test_what_is_done_is_not_done_again(plan: Planning, halfway: Root) -> None:
    assert todo(plan()) == ["student"]
    assert plan().document()["stages"][only(plan(), "ta").digest]["reused"]


def test_fresh_remakes_a_stage_and_what_was_made_from_it(plan: Planning, halfway: Root) -> None:
    assert todo(plan(fresh=("ta",))) == ["ta", "student"]
    assert todo(plan(fresh=("teacher",))) == ["teacher", "ta", "student"]
    assert "t (teacher) is made anew" in only(plan(fresh=("teacher",)), "ta").reuse.because
    with pytest.raises(ConfigError, match=r"--fresh tutor: no such stage \(there are: data, student, ta, teacher\)"):
        plan(fresh=("tutor",))


@pytest.mark.parametrize("held", [True, False])
def test_a_stage_whose_process_is_gone_is_lost_and_not_running(plan: Planning, halfway: Root, held: bool) -> None:
    folder = halfway.create_stage("student", only(plan(), "student").digest)
    claim = folder.claim({})
    folder.write_state(state="running")
    if not held:
        claim.release()
    found = only(plan(), "student").reuse
    assert (found.done, found.state) == (False, "running" if held else "lost")
    assert found.because == f"{found.state}, goes on from where it stopped"


def test_a_parent_with_other_weights_than_it_was_made_from(plan: Planning, halfway: Root) -> None:
    folder = halfway.stage(only(plan(), "teacher").digest)
    assert folder is not None
    folder.write_state(weights={"last": "cc", "best": "cd"})
    found = plan()
    assert todo(found) == ["ta", "student"]
    assert only(found, "ta").reuse.replace
    assert "other weights" in only(found, "ta").reuse.because


def test_a_snapshot_that_was_not_kept(plan: Planning, halfway: Root) -> None:
    found = plan(stages__student__teachers={"t": {"from": "ta@epoch:1"}})
    assert todo(found) == ["ta", "student"]
    assert "epoch:1 was not kept" in only(found, "ta").reuse.because


def test_a_snapshot_of_an_accuracy_is_missing_only_where_it_was_reached(plan: Planning, halfway: Root) -> None:
    folder = halfway.stage(only(plan(), "ta").digest)
    assert folder is not None
    folder.write_state(results={"best_top1": 0.8})
    assert todo(plan(stages__student__teachers={"t": {"from": "ta@acc:0.8"}})) == ["ta", "student"]
    assert todo(plan(stages__student__teachers={"t": {"from": "ta@acc:0.9"}})) == ["student"]  # it would not be again


def test_finished_stages_of_another_root(plan: Planning, halfway: Root, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("KDSCALE_REUSE", str(halfway.path))
    config = tmp_path / "plan.yaml"
    found = make_plan(load(config), Root.find(tmp_path / "mine"))
    assert todo(found) == ["student"]


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_what_published_weights_want_to_see_is_part_of_the_stage(plan: Planning, tmp_path: Path) -> None:
    """And not looked up again by whichever version of the library runs the stage."""
    student = StudentConfig(model="torchvision:squeezenet1_1")
    network = build_network(student, DatasetInfo(10, 1, 16, 8, 8, (0.5,), (0.5,), tuple("0123456789")), 16)
    save_file(network.model.state_dict(), tmp_path / "weights.safetensors")
    imported = {"model": student.model, "weights": str(tmp_path / "weights.safetensors")}
    found = plan(stages__teacher={"student": imported, "train": {"epochs": 0}, "losses": [{"name": "ce"}]})
    seen = only(found, "teacher").definition["spec"]["student"]["input"]
    assert seen == {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
