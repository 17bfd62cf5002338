"""`launch/runs.py` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.errors import ConfigError
from kdscale.jobs.housekeeping import seconds
from kdscale.jobs.lineage import Family, uses
from kdscale.pipeline.artifacts import Root
from tests.fake_sweeps import Fake, fill, finish

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    fake = Fake(Root(tmp_path), axes={"seed": ["0", "1"]})
    for folder in fake.all():
        finish(folder, 0.9 if folder.name != "data" else None)
        if folder.name != "data":
            fill(folder.checkpoints / "step_00001000" / "x", 1000)
            fill(folder.snapshot("last"), 100)
    return fake


class Runs:
    def __init__(self, root: Root) -> None:
        self._root = root

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run a verb; returns what it printed, errors on stderr included."""
        command = [sys.executable, str(ROOT / "launch" / "runs.py"), *arguments, "--runs", str(self._root.path)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
            env={"PATH": "", "COLUMNS": "140"},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def runs(fake: Fake) -> Runs:
    return Runs(fake.root)


class TestLs:
    def test_sweeps_then_their_stages(self, runs: Runs) -> None:
        assert runs("ls").splitlines()[1].split()[:1] == ["birds"]
        stages = runs("ls", "birds").splitlines()
        assert len(stages) == 5
        assert stages[2].startswith("teacher-")
        assert " 0.9000 " in stages[2]

    def test_as_json(self, runs: Runs) -> None:
        document = json.loads(runs("ls", "--stages", "--json"))
        assert document["schema"] == 1
        assert {(row["state"], row["sweeps"], row["pinned"]) for row in document["rows"]} == {("done", 1, False)}

    def test_an_empty_root(self, tmp_path: Path) -> None:
        assert "holds nothing yet" in Runs(Root(tmp_path / "none"))("ls")


class TestGc:
    def test_dry_run_deletes_nothing(self, runs: Runs, fake: Fake) -> None:
        assert "3.0 kB  in all" in runs("gc", "--dry-run")
        assert fake.folder("teacher").checkpoints.exists()
        assert "freed 3.0 kB" in runs("gc")
        assert not fake.folder("teacher").checkpoints.exists()
        assert "nothing to free" in runs("gc")

    def test_networks_are_deleted_only_with_a_yes(self, runs: Runs, fake: Fake) -> None:
        for folder in fake.all():
            path = folder.path / "state.json"
            path.write_text(json.dumps({**folder.state(), "updated": 5.0}))
        os.utime(fake.sweep.plan_file, (5, 5))
        assert "this deletes 3 finished networks: say --yes, or --keep-students" in runs("gc", "--older", "14d", code=2)
        assert len(fake.root.stages()) == 4
        runs("gc", "--older", "14d", "--yes")
        assert fake.root.stages() == []

    @pytest.mark.parametrize(
        ("text", "expected"), [("14d", 14 * 86400), ("12h", 43200), ("30m", 1800), ("1.5d", 129600)]
    )
    def test_ages(self, text: str, expected: float) -> None:
        assert seconds(text) == expected

    @pytest.mark.parametrize("text", ["14", "d", "-1d", "1 fortnight"])
    def test_what_is_no_age_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="for example 14d"):
            seconds(text)


class TestPinAndRm:
    def test_a_pin_protects_what_it_was_made_from(self, runs: Runs, fake: Fake) -> None:
        runs("pin", "birds:student[s0]", "--reason", "the paper's")
        text = runs("rm", "birds:teacher", "--reason", "x", code=1)
        assert (
            "(the paper's), and with it what it was made from. Unpin it first: python launch/runs.py pin student-"
            in text
        )
        runs("pin", "birds:student[s0]", "--off")
        runs("rm", "birds:teacher", "--reason", "x")
        assert fake.root.stage(fake.trials[0]["stages"]["teacher"]) is None

    def test_a_pinned_sweep_is_its_last_stages(self, runs: Runs, fake: Fake) -> None:
        runs("pin", "birds")
        assert [f.name for f in fake.root.stages() if f.pinned()] == ["student", "student"]

    def test_rm_says_what_was_made_from_it(self, runs: Runs, fake: Fake) -> None:
        text = runs("rm", "birds:teacher", "--reason", "wrong split")
        assert "made from it, and still there: student-" in text
        assert len(fake.root.stages()) == 3

    def test_rm_with_dependants(self, runs: Runs, fake: Fake) -> None:
        runs("rm", "birds:teacher", "--reason", "wrong split", "--dependants")
        assert [f.name for f in fake.root.stages()] == ["data"]
        assert "taken out: wrong split" in runs("gc", "--dry-run")

    def test_rm_of_a_sweep_keeps_its_stages(self, runs: Runs, fake: Fake) -> None:
        assert "its stages stay" in runs("rm", "birds", "--reason", "a try")
        assert (fake.root.sweeps(), len(fake.root.stages())) == ([], 4)

    def test_rm_of_a_live_sweep_is_refused(self, runs: Runs, fake: Fake) -> None:
        with fake.sweep.launching():
            assert "is running: python launch/cancel.py birds first" in runs("rm", "birds", "--reason", "x", code=1)

    def test_a_reason_is_demanded(self, runs: Runs) -> None:
        assert "--reason" in runs("rm", "birds:teacher", code=2)


class TestWhy:
    def test_of_a_stage(self, runs: Runs, fake: Fake) -> None:
        text = runs("why", "birds:teacher")
        assert "done   top-1 0.9000" in text
        assert f"made from   {fake.folder('data').path.name}" in text
        assert "in a sweep  birds:teacher   2 of 2 trials, made: not made yet" in text
        assert text.count(fake.folder("student", "0").path.name) == 1

    def test_of_a_sweep(self, runs: Runs) -> None:
        lines = runs("why", "birds").splitlines()
        assert lines[0].endswith("python launch/sweep.py configs/birds.yaml")
        assert " made        birds:student[s1]   not made yet" in lines

    def test_says_in_what_it_differs_from_the_nearest(self, runs: Runs, fake: Fake) -> None:
        for seed, rate in (("0", 0.1), ("1", 0.05)):
            folder = fake.folder("student", seed)
            definition = folder.definition()
            spec = {"name": "student", "engine": {"processes": int(seed)}, "train": {"lr": rate, "epochs": 10}}
            folder.define({**definition, "spec": spec})
        other = fake.folder("student", "0").path.name
        assert f"differs     from {other} (done) in train.lr 0.1 -> 0.05\n" in runs("why", "birds:student[s1]")

    def test_an_unknown_name(self, runs: Runs) -> None:
        assert "did you mean birds?" in runs("why", "bird", code=2)


class TestFamily:
    def test_ancestors_and_descendants(self, fake: Fake) -> None:
        family = Family(fake.root)
        student, teacher, data = (fake.folder(*n).digest12 for n in (("student", "0"), ("teacher",), ("data",)))
        assert family.ancestors([student]) == {student, teacher, data}
        assert {f.name for f in family.descendants(data)} == {"teacher", "student"}
        assert family.descendants(student) == []

    def test_uses_name_the_stage_as_each_sweep_does(self, fake: Fake) -> None:
        Fake(fake.root, name="other")
        (use,) = uses(fake.folder("student", "1"), fake.root)
        assert (use.name, use.trials) == ("birds:student[s1]", 1)
