"""What may not grow with the number of trials, counted: looks at a folder, dry runs, files, calls of sbatch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale import atomic
from kdscale.config.load import load
from kdscale.jobs.prepare import prepare_folders
from kdscale.jobs.slurm import follow
from kdscale.jobs.slurm.follow import Follower
from kdscale.jobs.slurm.notes import jobs_of_stages
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.queue import Queue
from kdscale.jobs.slurm.submit import Submission
from kdscale.pipeline import dry_run
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan

FEW, MANY, ARRAY_LIMIT = 8, 40, 25
NET = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
EXPERIMENT: dict[str, Any] = {
    "name": "scale",
    "data": {"name": "synthetic", "options": {"train_rows": 720, "size": 16}},
    "train": {"epochs": 1, "batch_size": 32, "precision": "fp32"},
    "stages": {
        "teacher": {"seed": 0, "student": NET, "losses": [{"name": "ce"}]},
        "student": {
            "student": NET, "teachers": {"teacher": {"from": "teacher"}}, "losses": [{"name": "ce"}, {"name": "kd"}]
        },
    },
}  # fmt: skip
SBATCH = """#!/bin/sh
if [ -e {full} ]; then echo "$(cat {full})" >&2; exit 1; fi
echo x >> {calls}
echo "Submitted batch job $(wc -l < {calls})"
"""

Planning = Callable[[int, Root], Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planning:
    config = tmp_path / "scale.yaml"
    config.write_text(yaml.safe_dump(EXPERIMENT))
    return lambda trials, root: make_plan(load(config, [f"seed=range({trials})"]), root)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scheduler that takes everything and runs nothing; returns the file with a line for each call of sbatch."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    queue = f"""#!/bin/sh
[ -e {calls} ] || exit 0
for job in $(seq $(wc -l < {calls})); do
    echo "$job|PENDING||N/A|None"
    for task in $(seq 0 {ARRAY_LIMIT}); do echo "${{job}}_$task|PENDING||N/A|None"; done
done
"""
    limit = f"#!/bin/sh\necho MaxArraySize = {ARRAY_LIMIT + 1}\n"
    for name, text in {
        "sbatch": SBATCH.format(calls=calls, full=tmp_path / "full"),
        "squeue": queue,
        "scontrol": limit,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return calls


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, of: Callable[..., str]) -> Counter[str]:
    """Calls of a function from now on, by what `of` makes of their arguments."""
    found: Counter[str] = Counter()
    real = getattr(module, name)

    def call(*args: Any, **options: Any) -> Any:
        found[of(*args)] += 1
        return real(*args, **options)

    monkeypatch.setattr(module, name, call)
    return found


def test_each_network_is_run_dry_once_whatever_the_trials(
    plan: Planning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_seen", {})
    runs = counted(monkeypatch, dry_run, "_run", lambda spec, *_: spec.name)
    assert len(plan(MANY, Root(tmp_path / "runs")).stages) == MANY + 2
    assert runs == {"teacher": 1, "student": 1}


def test_a_root_is_listed_as_often_for_many_stages_as_for_few(
    plan: Planning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at runs/stages costs as much as it has folders: one for each stage would be their square."""
    looks = []
    for trials in (FEW, MANY):
        root = Root(tmp_path / f"runs{trials}")
        with monkeypatch.context() as patch:
            listed = counted(patch, os, "scandir", lambda path=".": Path(path).name)
            planned = plan(trials, root)
            prepare_folders(root, planned, retry_failed=False)
            assert all(root.stage(digest) is not None for digest in planned.stages)
        looks.append(listed["stages"])
    assert looks[0] == looks[1] <= 4


def test_new_folders_are_flushed_together_and_not_written_again(
    plan: Planning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush may take as long as a shared disk is slow, and each file's own would be paid for every stage."""
    for trials in (FEW, MANY):
        root = Root(tmp_path / f"runs{trials}")
        planned = plan(trials, root)
        with monkeypatch.context() as patch:
            flushed = counted(patch, os, "fsync", lambda handle: "file")
            together = counted(patch, atomic, "sync_file_system", lambda folder: "all")
            written = counted(patch, atomic, "write_bytes", lambda path, _: path.name)
            prepare_folders(root, planned, retry_failed=False)
            assert (flushed.total(), together.total(), written.total()) == (1, 1, 0)
            prepare_folders(root, planned, retry_failed=False)
            assert (flushed.total(), together.total(), written.total()) == (1, 1, 0)
        folders = [root.stage(digest) for digest in planned.stages]
        assert [folder.state()["state"] for folder in folders if folder] == ["waiting"] * (trials + 2)
        assert [folder.definition()["digest"] for folder in folders if folder] == list(planned.stages)
        assert not (root.path / "stages" / ".new").exists()


def test_an_array_is_one_call_and_one_note(
    plan: Planning, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path / "runs")
    planned = plan(MANY, root)
    prepare_folders(root, planned, retry_failed=False)
    written = counted(monkeypatch, atomic, "write_bytes", lambda path, _: path.name)
    submitted = Submission(root, planned, Profile(), lambda text: None).submit()
    arrays = -(-MANY // ARRAY_LIMIT)
    assert submitted == MANY + 2
    assert len(calls.read_text().splitlines()) == len(list((root.path / "jobs").glob("*.json"))) == arrays + 2
    assert written["state.json"] == MANY + 2
    assert sorted(jobs_of_stages(root)) == sorted(planned.stages)
    assert len(set(jobs_of_stages(root).values())) == MANY + 2


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
        "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates policy",
    ],
)
def test_what_a_full_queue_does_not_take_waits(plan: Planning, calls: Path, tmp_path: Path, said: str) -> None:
    """Above 10,000 jobs (MaxJobCount's default), or a user's limit: no error, and nothing is submitted twice."""
    root, lines = Root(tmp_path / "runs"), list[str]()
    planned = plan(FEW, root)
    prepare_folders(root, planned, retry_failed=False)
    submission = Submission(root, planned, Profile(), lines.append)
    (tmp_path / "full").write_text(said)
    assert submission.submit() == 0
    assert len(lines) == 1
    assert "the queue is full" in lines[0]
    (tmp_path / "full").unlink()
    assert submission.submit() == FEW + 2
    assert submission.submit() == 0


def test_what_another_launcher_submits_meanwhile_is_neither_lost_nor_submitted_again(
    plan: Planning, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs are noted after the scheduler was asked, and so are missing from the answer."""
    root, said = Root(tmp_path / "runs"), list[str]()
    planned = plan(FEW, root)
    prepare_folders(root, planned, retry_failed=False)
    look = follow.look

    def look_and_be_late() -> Queue:
        answer = look()
        Submission(root, planned, Profile(), lambda text: None).submit()
        return answer

    monkeypatch.setattr(follow, "look", look_and_be_late)
    Follower(Submission(root, planned, Profile(), said.append)).look_after()
    assert said == []
    assert len(calls.read_text().splitlines()) == 3, "data, teacher, students"
    assert {folder.state()["state"] for folder in root.stages()} == {"queued"}
