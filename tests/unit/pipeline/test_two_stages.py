"""configs/pipelines of methods with a stage before: what is shared, how long each trains, and what it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdscale.config.load import load
from kdscale.nn.schedules import weight_schedule
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage

PIPELINES = Path(__file__).resolve().parents[3] / "configs" / "pipelines"
Trial = dict[str, PlannedStage]


def planned(name: str, folder: Path) -> tuple[Plan, dict[str, Trial]]:
    """The plan, and each trial's stages by the trial's axis values."""
    plan = make_plan(load(PIPELINES / f"{name}.yaml"), Root(folder / "runs"))
    return plan, {
        " ".join(trial.axes.values()): {stage: plan.stages[digest] for stage, digest in trial.stages.items()}
        for trial in plan.trials
    }


def spec_of(stage: PlannedStage) -> dict[str, Any]:
    found: dict[str, Any] = stage.definition["spec"]
    return found


def test_the_papers_ledger_of_iterations_comes_out_of_the_plan(tmp_path: Path) -> None:
    plan, trials = planned("fsp_paper", tmp_path)
    nets = {
        label: {stage.digest for name, stage in trial.items() if name.startswith(("init", "net"))}
        for label, trial in trials.items()
    }
    steps = {label: sum(plan.stages[digest].cost.steps for digest in digests) for label, digests in nets.items()}
    assert steps == {
        "full cifar10": 192_000, "fresh cifar10": 63_000, "hints cifar10": 98_000, "copied cifar10": 84_000,
        "shuffled cifar10": 126_000, "full cifar100": 192_000, "fresh cifar100": 63_000, "hints cifar100": 98_000,
        "copied_32k cifar100": 95_000,
    }  # fmt: skip
    ensemble = trials["copied cifar10"]["ensemble"]
    assert (ensemble.cost.steps, spec_of(ensemble)["train"]["epochs"]) == (0, 0)


def test_the_papers_learning_rates_fall_where_it_says(tmp_path: Path) -> None:
    trials = planned("fsp_paper", tmp_path)[1]
    stages = [("full", "net1"), ("copied", "net1"), ("shuffled", "init2"), ("hints", "init1")]
    trains = [spec_of(trials[f"{first} cifar10"][name])["train"] for first, name in stages]
    falls = [
        [train.get("lr", 0.1), *(200 * epoch for epoch in (*train["milestones"], train["epochs"]))] for train in trains
    ]
    assert falls == [
        [0.1, 32_000, 48_000, 64_000],
        [0.1, 11_000, 16_000, 21_000],
        [0.001, 11_000, 16_000, 21_000],
        [0.0001, 25_000, 35_000],
    ]


@pytest.mark.parametrize(("name", "task"), [("fsp", ""), ("fsp_paper", " cifar10")])
def test_one_first_stage_is_copied_and_shuffled_ones_are_each_nets_own(name: str, task: str, tmp_path: Path) -> None:
    trials = planned(name, tmp_path)[1]
    copied, shuffled = trials[f"copied{task}"], trials[f"shuffled{task}"]
    nets = ("net1", "net2", "net3")
    assert {copied[net].parents["init_from"] for net in nets} == {(copied["init1"].digest, "last")}
    assert [shuffled[net].parents["init_from"][0] for net in nets] == [shuffled[f"init{i}"].digest for i in (1, 2, 3)]
    assert [spec_of(shuffled[f"init{i}"])["passes"]["main"][0]["shuffle"] for i in (1, 2, 3)] == [1, 2, 3]
    for trial in (copied, shuffled):
        assert len({trial[net].digest for net in nets}) == 3
        assert trial["teacher"].digest == copied["teacher"].digest
        assert {role for role in trial["ensemble"].parents if role.startswith("net")} == set(nets)


def test_the_papers_teacher_is_the_first_of_its_full_networks(tmp_path: Path) -> None:
    full = planned("fsp_paper", tmp_path)[1]["full cifar10"]
    assert full["teacher"].digest == full["net1"].digest


def test_soft_targets_begin_at_four_and_end_at_one(tmp_path: Path) -> None:
    trials = planned("fitnet", tmp_path)[1]
    for label in ("before", "none"):
        student = trials[label]["student"]
        _, kd = spec_of(student)["passes"]["main"]
        weight = weight_schedule(kd["weight"], student.cost.steps)
        ends = [kd["temperature"] ** 2 * weight(step) for step in (0, student.cost.steps - 1)]
        assert ends == pytest.approx([4, 1])


@pytest.mark.parametrize(
    ("name", "first", "trains"),
    [
        ("fitnet", "init", {"stem", "stage1", "stage2"}),
        ("ab", "init", {"stem", "stage1", "stage2", "stage3"}),
        ("pad", "init", {"stem", "stage1", "stage2", "stage3", "head"}),
    ],
)
def test_one_first_stage_trains_its_part_for_all_and_every_trial_has_one_budget(
    name: str, first: str, trains: set[str], tmp_path: Path
) -> None:
    plan, trials = planned(name, tmp_path)
    [digest] = {trial[first].digest for trial in trials.values()}
    silent = [key.split(".") for key in plan.stages[digest].definition["frozen"]]
    assert {"stem", "stage1", "stage2", "stage3", "head"} - {part for _, _, part, *_ in silent} == trains
    epochs = set()
    for trial in trials.values():
        begun = any(digest == parent for parent, _ in trial["student"].parents.values())
        epochs.add(trial["student"].cost.epochs + begun * trial[first].cost.epochs)
    assert epochs == {13}


def test_the_paraphrasers_stage_trains_nothing_of_its_network(tmp_path: Path) -> None:
    plan, trials = planned("ft", tmp_path)
    [digest] = {trial["paraphraser"].digest for trial in trials.values()}
    assert spec_of(plan.stages[digest])["train_only"] == []
    starts = {label: trial["student"].parents.get("terms.ft") for label, trial in trials.items()}
    assert starts == {"before": (digest, "last#ft"), "beside": None, "attention": (digest, "last#ft")}


def test_prime_aware_starts_from_the_best_of_the_plain_stage(tmp_path: Path) -> None:
    trials = planned("pad", tmp_path)[1]
    init = trials["plain"]["init"].digest
    starts = {label: trial["student"].parents.get("init_from") for label, trial in trials.items()}
    assert starts == {"dimension": (init, "best"), "sample": (init, "best"), "plain": (init, "best"), "cold": None}


def test_all_split_students_start_from_one_teacher_and_send_the_same_bytes(tmp_path: Path) -> None:
    trials = planned("split", tmp_path)[1]
    assert len({trial["teacher"].digest for trial in trials.values()}) == 1
    students = {label: trial["student"] for label, trial in trials.items()}
    teacher = trials["naive"]["teacher"].digest
    assert all(student.parents["init_from"] == (teacher, "last") for student in students.values())
    assert len({student.digest for student in students.values()}) == 3
    wires = [student.definition["wire"] for student in students.values()]
    assert wires[1:] == wires[:-1]
    assert (wires[0]["bytes"], wires[0]["input_bytes"]) == (2 * 7 * 7, 28 * 28)
    assert wires[0]["device_flops"] < 0.1 * trials["naive"]["teacher"].cost.flops
    assert "wire" not in trials["naive"]["teacher"].definition
