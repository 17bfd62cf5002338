"""The shipper against real SQLite stores, read back with plain SQL."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdscale.trackers.destination import destination
from kdscale.trackers.ledger import Ledger
from kdscale.trackers.mlflow import Server
from kdscale.trackers.shipper import Report, Shipper
from kdscale.trackers.spool import read_lines
from tests.fake_runs import STEPS, FakeStage, FakeSweep, plan
from tests.tracking_store import StoredRun, experiments, stored_runs

ONE: dict[str, list[str]] = {}
"""No axes: one trial."""


def ship(sweep: FakeSweep, **options: Any) -> Report:
    """One pass of a shipper that has just started."""
    to = destination(sweep.root, None, "kdscale")
    assert to is not None
    report = Shipper(sweep.root, to).ship(sweep.folder, **options)
    assert not report.problems
    return report


def shipper_of(sweep: FakeSweep) -> Shipper:
    to = destination(sweep.root, None, "kdscale")
    assert to is not None
    return Shipper(sweep.root, to)


def stored(sweep: FakeSweep, level: str = "") -> list[StoredRun]:
    return [run for run in stored_runs(sweep.root / "mlflow.db") if not level or run.level == level]


def the(sweep: FakeSweep, name: str) -> StoredRun:
    (run,) = [run for run in stored(sweep) if run.name == name]
    return run


def spooled(stage: FakeStage, metric: str) -> list[tuple[int, float]]:
    lines = read_lines((stage.folder / "metrics.jsonl").read_bytes())
    return [(line.step, line.metrics[metric]) for line in lines if metric in line.metrics]


def all_done(sweep: FakeSweep) -> FakeSweep:
    for stage in sweep.stages.values():
        stage.start().finish()
    return sweep


def assert_whole(sweep: FakeSweep) -> None:
    """Every run once, every step of every curve once, exactly as the spools have them."""
    runs = stored(sweep)
    assert len({run.tags["kdscale.key"] for run in runs}) == len(runs)
    assert not [(run.name, run.doubled()) for run in runs if run.doubled()]
    for stage in sweep.stages.values():
        (run,) = [run for run in runs if run.tags["kdscale.key"] == f"stage:{stage.digest}"]
        for metric in ("train/loss", "train/term/ce", "val/top1", "test/top1"):
            assert run.curve(metric) == spooled(stage, metric), (run.name, metric)


# --------------------------------------------------------------------------- what is there


def test_a_finished_sweep_is_a_parent_with_trials_groups_and_stages(runs: Path) -> None:
    sweep = all_done(plan(runs))
    report = ship(sweep)
    assert report.runs == 1 + 4 + 2 + 5
    assert_whole(sweep)
    (parent,) = stored(sweep, "sweep")
    assert parent.name == "bench"
    children = [run for run in stored(sweep) if run is not parent and run.level != "sweep"]
    assert {run.tags["mlflow.parentRunId"] for run in children} == {parent.id}
    assert sorted(run.name for run in stored(sweep, "trial")) == ["ce · s0", "ce · s1", "kd · s0", "kd · s1"]
    assert sorted(run.name for run in stored(sweep, "group")) == ["ce · mean", "kd · mean"]
    teacher = sweep.stage("teacher")
    assert {run.name for run in stored(sweep, "stage")} == {
        f"teacher {teacher.digest[:6]}", "student @ ce · s0", "student @ ce · s1", "student @ kd · s0",
        "student @ kd · s1",
    }  # fmt: skip
    assert {run.status for run in stored(sweep)} == {"FINISHED"}


def test_a_trial_is_complete_by_itself(runs: Path) -> None:
    sweep = all_done(plan(runs))
    ship(sweep)
    trial, student = the(sweep, "kd · s1"), sweep.stage("student", method="kd", seed="1")
    assert trial.params == {"method": "kd", "seed": "1"}
    assert {k: v for k, v in trial.tags.items() if not k.startswith("mlflow.")} == {
        "method": "kd", "seed": "1", "kdscale.level": "trial", "kdscale.state": "done", "kdscale.stage": "student",
        "kdscale.attempts": "1", "kdscale.digest": student.digest[:12], "kdscale.sweep": "bench",
        "kdscale.sweep_id": sweep.folder.name, "kdscale.key": trial.tags["kdscale.key"],
        "kdscale.root": (runs / ".tracking-id").read_text().strip(),
    }  # fmt: skip
    figures = trial.figures
    assert figures["final/top1"] == pytest.approx(student.top1, rel=1e-5)
    assert figures["model/params_m"] == 1.18
    assert figures["model/flops_g"] == 0.071
    assert figures["final/agreement"] == 0.95
    assert figures["teacher/top1"] == 0.871
    base = sweep.stage("student", method="ce", seed="1")
    assert figures["final/gain_over_ce"] == pytest.approx(student.top1 - base.top1, rel=1e-4)
    assert {"final/nll", "final/ece", "final/kl", "model/latency_ms", "cost/wall_s"} <= set(figures)
    assert trial.curve("val/top1") == spooled(student, "val/top1")
    assert "python launch/sweep.py" in trial.tags["mlflow.note.content"]
    config = Path(trial.artifacts.removeprefix("file://")) / "config.yaml"
    assert config.read_text().count("kind: train") == 2


def test_a_group_holds_mean_and_interval(runs: Path) -> None:
    sweep = all_done(plan(runs, axes={"method": ["kd"], "seed": ["0", "1", "2"]}))
    ship(sweep)
    values = [sweep.stage("student", seed=seed).top1 for seed in "012"]
    mean = sum(values) / 3
    half = 4.302653 * math.sqrt(sum((v - mean) ** 2 for v in values) / 2) / math.sqrt(3)  # t(0.975, 2)
    group = the(sweep, "kd · mean")
    assert group.params == {"method": "kd"}
    assert group.figures["final/top1_mean"] == pytest.approx(mean, rel=1e-5)
    assert group.figures["final/top1_ci95"] == pytest.approx(half, rel=1e-4)
    assert group.figures["n"] == 3
    assert group.figures["model/params_m"] == 1.18


def test_a_group_grows_with_its_seeds(runs: Path) -> None:
    sweep = plan(runs, axes={"seed": ["0", "1"]})
    sweep.stage("teacher").start().finish()
    ship(sweep, open_=True)
    assert not stored(sweep, "group")
    sweep.stage("student", seed="0").start().finish()
    ship(sweep, open_=True)
    (group,) = stored(sweep, "group")
    assert group.figures["n"] == 1
    assert "final/top1_ci95" not in group.figures
    assert group.status == "RUNNING"
    late = sweep.stage("student", seed="1")
    late.clock += 1000
    late.start().finish()
    ship(sweep)
    (group,) = stored(sweep, "group")
    assert group.figures["n"] == 2
    assert group.status == "FINISHED"
    assert group.tags["mlflow.runName"] == "mean"


def test_the_experiment_lands_on_training_and_has_views(runs: Path) -> None:
    sweep = plan(runs)
    ship(sweep)
    tags = experiments(runs / "mlflow.db")["kdscale"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert len([name for name in tags if name.startswith("mlflow.sharedViewState.")]) == 4


def test_what_waits_is_scheduled_while_somebody_goes_on(runs: Path) -> None:
    sweep = plan(runs)
    sweep.stage("teacher").start().train(100)
    ship(sweep, open_=True)
    assert {run.name: run.status for run in stored(sweep, "trial")}["kd · s0"] == "RUNNING"
    sweep.stage("teacher").finish()
    sweep.stage("student", method="ce", seed="0").start().train(10)
    ship(sweep, open_=True)
    status = {run.name: run.status for run in stored(sweep, "trial")}
    assert (status["ce · s0"], status["kd · s0"]) == ("RUNNING", "SCHEDULED")


def test_a_failed_stage_leaves_the_sweep_running_until_the_rest_is_done(runs: Path) -> None:
    sweep = plan(runs, axes={"method": ["ce", "kd"]})
    sweep.stage("teacher").start().finish()
    sweep.stage("student", method="ce").start().train(10).end("failed", reason="NonFiniteLoss: term kd")
    sweep.stage("student", method="kd").start().train(10)
    ship(sweep, open_=True)
    assert stored(sweep, "sweep")[0].status == "RUNNING"
    assert the(sweep, "ce").status == "FAILED"
    assert "NonFiniteLoss" in the(sweep, "student @ ce").tags["mlflow.note.content"]
    sweep.stage("student", method="kd").finish()
    ship(sweep)
    assert stored(sweep, "sweep")[0].status == "FAILED"


def test_a_stage_that_nobody_works_on_any_more_was_interrupted(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    sweep.stage("teacher").start().train(100)
    to = destination(runs, None, "kdscale")
    assert to is not None
    Shipper(runs, to, alive=lambda folder: False).ship(sweep.folder)
    (stage,) = stored(sweep, "stage")
    assert (stage.status, stage.tags["kdscale.state"]) == ("KILLED", "interrupted")


def test_a_run_is_reopened_when_its_stage_goes_on(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    teacher = sweep.stage("teacher").start().train(200).save()
    teacher.end("interrupted")
    ship(sweep)
    first = stored(sweep, "stage")
    teacher.start().train(20)
    ship(sweep, open_=True)
    (again,) = stored(sweep, "stage")
    assert (first[0].status, again.status) == ("KILLED", "RUNNING")
    assert again.id == first[0].id
    assert again.tags["kdscale.attempts"] == "2"
    teacher.finish()
    ship(sweep)
    assert [run.status for run in stored(sweep, "stage")] == ["FINISHED"]


def test_long_values_and_odd_names_are_taken(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    sweep.trials[0]["swept"] = {"stages.a.losses": [{"name": "kd", "why": "x" * 9000}]}
    content = json.loads((sweep.folder / "plan.json").read_text())
    content["trials"] = sweep.trials
    (sweep.folder / "plan.json").write_text(json.dumps(content))
    teacher = sweep.stage("teacher").start()
    assert teacher.spool is not None
    teacher.spool.log(1, {"train/term/a=b": 1.0, "train//x": 2.0, "/": 3.0, "../up": 4.0, "nan": float("nan")})
    teacher.spool.log(2, {"train/term/a=b": float("inf"), "nan": 5.0})
    ship(sweep)
    (stage,) = stored(sweep, "stage")
    assert {name for name, *_ in stage.points} == {"train/term/a_b", "train/x", "_", "up", "nan"}
    assert math.isnan(stage.curve("nan")[0][1])
    assert stage.curve("nan")[1] == (2, 5.0)
    (trial,) = stored(sweep, "trial")
    assert len(trial.params["stages.a.losses"]) == 250


def test_a_long_spool_goes_in_many_requests(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    teacher = sweep.stage("teacher").start()
    assert teacher.spool is not None
    for step in range(1, 701):
        teacher.spool.log(step, {f"train/term/{i}": step / (1 + i) for i in range(4)})
    ship(sweep)
    (stage,) = stored(sweep, "stage")
    assert len(stage.points) == 2800
    assert stage.curve("train/term/3") == spooled(teacher, "train/term/3")


# --------------------------------------------------------------------------- never twice


def test_passes_may_be_repeated(runs: Path) -> None:
    sweep = all_done(plan(runs))
    shipper = shipper_of(sweep)
    assert shipper.ship(sweep.folder).points > 0
    before = stored(sweep)
    assert shipper.ship(sweep.folder).points == 0
    assert ship(sweep).points == 0
    assert stored(sweep) == before


def test_a_stage_that_writes_steps_again_ships_each_once(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    teacher = sweep.stage("teacher").start().train(100).save().train(100)
    shipper = shipper_of(sweep)
    shipper.ship(sweep.folder, open_=True)  # steps up to 200 are there
    teacher.die()
    teacher.clock += 60
    teacher.start().train(60)  # 101 to 160 again, with other times
    shipper.ship(sweep.folder, open_=True)
    teacher.train(140)
    shipper.ship(sweep.folder, open_=True)
    teacher.finish()
    sweep.stage("student").start().finish()
    shipper.ship(sweep.folder)
    assert_whole(sweep)


def test_a_spool_that_was_cut_and_grew_past_its_old_end_between_passes(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    teacher = sweep.stage("teacher")
    teacher.clock += 0.125
    teacher.start().train(100).save().train(60)
    shipper = shipper_of(sweep)
    shipper.ship(sweep.folder, open_=True)
    teacher.die()
    teacher.clock += 0.375  # shorter lines: the place where reading stopped is now inside one
    teacher.start().finish()
    sweep.stage("student").start().finish()
    shipper.ship(sweep.folder)
    assert_whole(sweep)


def test_a_stage_that_starts_over_without_a_checkpoint(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    teacher = sweep.stage("teacher").start().train(160)
    shipper = shipper_of(sweep)
    shipper.ship(sweep.folder, open_=True)
    teacher.die().clock += 60
    teacher.start()
    shipper.ship(sweep.folder, open_=True)
    teacher.finish()
    sweep.stage("student").start().finish()
    shipper.ship(sweep.folder)
    assert_whole(sweep)


class Killed(BaseException):
    """Nothing below may catch it, as nothing catches SIGKILL."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """Dies at the n-th request to the store, before or after it was carried out; from then on nothing is recorded."""
    methods = ("create", "params", "points", "describe", "tag", "upload", "upload_text")
    real = {name: getattr(Server, name) for name in methods}
    save = Ledger.save

    def arm(at: int, after: bool) -> None:
        count = {"calls": 0}

        def wrapped(name: str) -> Callable[..., Any]:
            def call(self: Server, *args: Any) -> Any:
                count["calls"] += 1
                if count["calls"] == at and not after:
                    raise Killed
                answer = real[name](self, *args)
                if count["calls"] == at:
                    raise Killed
                return answer

            return call

        for name in methods:
            monkeypatch.setattr(Server, name, wrapped(name))
        monkeypatch.setattr(Ledger, "save", lambda self: None if 0 < at <= count["calls"] else save(self))

    return arm


def life(teacher: FakeStage, student: FakeStage) -> Iterator[None]:
    """Two stages that train, save, die and write some steps again; yields after each event."""
    teacher.start()
    for event in range(24):
        yield
        if event % 5 == 2:
            teacher.save()
        if event % 4 == 3:
            teacher.die().clock += 7
            teacher.start()
        if teacher.step < STEPS:
            teacher.train(20)
    teacher.finish()
    yield
    student.start().train(200)
    yield
    student.finish()
    yield from [None] * 8


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_request_loses_and_doubles_nothing(
    runs: Path, kill_at: Callable[[int, bool], None], after: bool
) -> None:
    sweep = plan(runs, axes={"seed": ["0"]})
    killed = 0
    for event, _ in enumerate(life(sweep.stage("teacher"), sweep.stage("student"))):
        kill_at(1 + event % 7, after)
        try:
            ship(sweep, open_=True)
        except Killed:
            killed += 1
    assert killed > 20
    kill_at(0, after)
    ship(sweep)
    assert_whole(sweep)
    assert len(stored(sweep)) == 5


def test_a_lost_or_outdated_ledger_is_read_back(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    teacher = sweep.stage("teacher").start().train(60).save()
    shipper_of(sweep).ship(sweep.folder, open_=True)
    ledger = teacher.folder / "tracking.json"
    old = ledger.read_bytes()
    teacher.train(100)
    ship(sweep, open_=True)
    teacher.die().clock += 9
    teacher.start().train(40)
    ledger.write_bytes(old)
    ship(sweep, open_=True)
    teacher.finish()
    ledger.write_text("{ damaged")
    ship(sweep, open_=True)
    ledger.unlink()
    (sweep.folder / "tracking.json").unlink()
    sweep.stage("student").start().finish()
    ship(sweep)
    assert_whole(sweep)


def test_a_lost_database_is_filled_again(runs: Path, migrated: Path) -> None:
    sweep = all_done(plan(runs))
    ship(sweep)
    before = {(run.name, run.status, len(run.points), tuple(sorted(run.params))) for run in stored(sweep)}
    to = destination(runs, f"sqlite:///{runs / 'other.db'}", "kdscale")
    assert to is not None
    (runs / "other.db").write_bytes(migrated.read_bytes())
    Shipper(runs, to).ship(sweep.folder)
    again = {(r.name, r.status, len(r.points), tuple(sorted(r.params))) for r in stored_runs(runs / "other.db")}
    assert again == before
    assert ship(sweep).points == 0, "each destination has a ledger of its own"


def test_a_run_deleted_on_the_server_stays_deleted(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    sweep.stage("teacher").start().train(100)
    ship(sweep, open_=True)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    client.delete_run(stored(sweep, "stage")[0].id)
    sweep.stage("teacher").finish()
    ship(sweep, open_=True)
    ship(sweep, open_=True)
    assert not stored(sweep, "stage")
    assert len(stored_runs(runs / "mlflow.db", deleted=True)) == 1


def test_a_run_made_twice_by_a_late_answer_is_kept_once(runs: Path) -> None:
    sweep = all_done(plan(runs, axes=ONE))
    to = destination(runs, None, "kdscale")
    assert to is not None
    ship(sweep)
    from kdscale.trackers.destination import root_id
    from kdscale.trackers.files import read_sweep
    from kdscale.trackers.shape import shapes_of

    server = Server(to, root_id(runs))
    for shape in shapes_of(read_sweep(runs, sweep.folder), open_=False):
        server.create(shape, None)
    assert len(stored(sweep)) == 8
    ship(sweep)
    assert len(stored(sweep)) == 4
    assert_whole(sweep)


def test_two_shippers_at_once(runs: Path) -> None:
    sweep = plan(runs, axes=ONE)
    teacher = sweep.stage("teacher").start()
    going = threading.Event()
    problems: list[str] = []

    def shipping() -> None:
        shipper = shipper_of(sweep)
        while not going.is_set():
            problems.extend(shipper.ship(sweep.folder, open_=True).problems)

    threads = [threading.Thread(target=shipping) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        teacher.train(40)
        if teacher.step == 120:
            teacher.save()
        if teacher.step == 200:
            teacher.die().clock += 5
            teacher.start()
    teacher.finish()
    sweep.stage("student").start().finish()
    going.set()
    for thread in threads:
        thread.join()
    assert not problems
    ship(sweep)
    assert_whole(sweep)


# --------------------------------------------------------------------------- several sweeps, several places


def test_a_shared_stage_is_one_run_below_the_sweep_that_ran_it_first(runs: Path) -> None:
    first = plan(runs, "first", ONE)
    first.stage("teacher").start().train(100)
    ship(first, open_=True)
    second = plan(runs, "second", {"method": ["kd"]})
    second.stage("teacher").attempts = first.stage("teacher").attempts
    for stage in (first.stage("teacher").finish(), second.stage("student", method="kd").start().finish()):
        assert stage.folder.exists()
    note = the(first, f"teacher {first.stage('teacher').digest[:6]}").tags["mlflow.note.content"]
    ship(second)
    teachers = [run for run in stored(first, "stage") if run.tags["kdscale.stage"] == "teacher"]
    assert len(teachers) == 1
    assert teachers[0].tags["kdscale.sweep"] == "first"
    assert teachers[0].tags["mlflow.parentRunId"] == the(first, "first").id
    assert teachers[0].status == "FINISHED", "whoever comes by brings it up to date"
    assert teachers[0].tags["mlflow.note.content"] == note, "but its words are those of its own sweep"
    (trial,) = [run for run in stored(first, "trial") if run.tags["kdscale.sweep"] == "second"]
    assert trial.figures["teacher/top1"] == 0.871
    ship(first)
    assert_whole(FakeSweep(runs, first.folder, {d: s for d, s in first.stages.items() if s.name == "teacher"}, []))


def test_two_peoples_runs_of_one_stage_stay_two(runs: Path, tmp_path: Path) -> None:
    mine = all_done(plan(runs, axes=ONE))
    hers = all_done(plan(tmp_path / "hers", axes=ONE))
    for sweep in (mine, hers):
        to = destination(sweep.root, f"sqlite:///{runs / 'mlflow.db'}", "kdscale")
        assert to is not None
        Shipper(sweep.root, to).ship(sweep.folder)
    assert len(stored(mine)) == 8
    assert len({run.tags["kdscale.root"] for run in stored(mine)}) == 2


def test_a_stage_of_a_read_only_root_is_reused_but_not_shipped(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = plan(tmp_path / "lab", axes=ONE)
    theirs.stage("teacher").start().finish()
    monkeypatch.setenv("KDSCALE_REUSE", str(theirs.root))
    sweep = plan(runs, axes=ONE)
    sweep.stage("student").start().finish()
    ship(sweep)
    assert [run.tags["kdscale.stage"] for run in stored(sweep, "stage")] == ["student"]
    (trial,) = stored(sweep, "trial")
    assert (trial.status, trial.figures["teacher/top1"]) == ("FINISHED", 0.871)
    assert not (theirs.stage("teacher").folder / "tracking.json").exists()


def test_problems_with_the_store_are_reported_not_raised(tmp_path: Path) -> None:
    sweep = all_done(plan(tmp_path / "runs", axes=ONE))
    (tmp_path / "runs" / "mlflow.db").write_bytes(b"this is no database, and it is long enough to be looked at" * 20)
    to = destination(sweep.root, None, "kdscale")
    assert to is not None
    report = Shipper(sweep.root, to).ship(sweep.folder)
    assert len(report.problems) == 1
    assert "not a database" in report.problems[0]


# --------------------------------------------------------------------------- one stage alone


def test_a_job_ships_its_own_stage_and_the_rest_comes_later(runs: Path) -> None:
    sweep = plan(runs)
    for stage in sweep.stages.values():
        stage.start().train(100).save()
    teacher = sweep.stage("teacher", method="kd")
    ship(sweep, stage=teacher.folder, open_=True)
    levels = [run.level for run in stored_runs(runs / "mlflow.db")]
    assert sorted(levels) == ["stage", "sweep"]
    student = sweep.stage("student", method="kd", seed="1")
    ship(sweep, stage=student.folder, open_=True)
    ship(sweep)
    runs_then = stored_runs(runs / "mlflow.db")
    assert [run.level for run in runs_then].count("stage") == len(sweep.stages)
    assert all(run.doubled() == [] for run in runs_then)
