"""The scripts that sbatch gets, word for word, and which stages share one.

python -m tests.unit.jobs.test_sbatch      writes them anew: read the difference
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from kdscale.config.load import load
from kdscale.errors import ConfigError
from kdscale.jobs.slurm.bounds import within_limits
from kdscale.jobs.slurm.profile import Profile, load_profile
from kdscale.jobs.slurm.sbatch import PASSED_ON
from kdscale.jobs.slurm.submit import scripts
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.machine import Site
from kdscale.pipeline.plan import make_plan

GOLDEN = Path(__file__).parents[2] / "golden" / "sbatch"
NET = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
CHAIN = {
    "name": "chain",
    "data": {"name": "synthetic", "options": {"train_rows": 64, "test_rows": 32, "size": 16}},
    "train": {"epochs": 1, "batch_size": 32},
    "stages": {
        "teacher": {"student": NET, "losses": [{"name": "ce"}]},
        "student": {"student": NET, "teachers": {"t": {"from": "teacher"}}, "losses": [{"name": "kd"}]},
    },
}
SITE = {
    "account": "lab", "partition": "gpu", "qos": "long", "constraint": "a100|h100", "exclude": "bad1", "gpus": "gres",
    "gpu_type": "a100", "setup": ["module load gcc"], "signal_delay_s": 90, "srun_args": ["--mpi=none"],
    "sbatch": {"reservation": "lab"}, "precision": "bf16", "array_parallel": 4, "hang_after_min": 10,
}  # fmt: skip
CASES: dict[str, tuple[dict[str, object], list[str]]] = {
    "plain": ({}, []),
    "array": ({}, ["stages.student.seed=range(3)"]),
    "corresponding": ({}, ["seed=range(3)"]),
    "site": (
        SITE,
        ["resources={nodes: 2, processes_per_node: 2, gpus_per_process: 1, cpus_per_process: 8, time_min: 240, "
         "time_floor_min: 60, mem_gb: 64}", "train.precision=auto"],
    ),
    "short": ({}, ["resources.time_min=1"]),
    "packed": (
        {}, ["seed=range(5)", "resources={pack: 2, cpus_per_process: 3, gpus_per_process: 1, mem_gb: 4}",
             "engine.processes=2", "stages.student.resources.pack=3"],
    ),
    "packs_of_corresponding": ({}, ["seed=range(5)", "resources.pack=2"]),
}  # fmt: skip


def text_of(name: str) -> str:
    profile, overrides = CASES[name]
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "chain.yaml"
        config.write_text(yaml.safe_dump(CHAIN))
        site = Profile.model_validate(profile)
        root = Root(Path(place) / "runs")
        plan = make_plan(load(str(config), overrides), root, site=Site(site.precision))
        text = "\n".join(scripts(root, plan, site))
        return _numbered(text.replace(place, "PLACE").replace(sys.executable, "PYTHON"))


def _numbered(text: str) -> str:
    """Digests by the order in which they come: what they are is compared elsewhere, and changes with `NUMERICS`."""
    found: dict[str, str] = {}
    return re.sub(r"\b[0-9a-f]{12,}\b", lambda one: found.setdefault(one[0], f"DIGEST{len(found) + 1}"), text)


@pytest.fixture(autouse=True)
def _nothing_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PASSED_ON, "TORCH_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_that_of_the_file(name: str) -> None:
    assert text_of(name) == (GOLDEN / f"{name}.txt").read_text()


GPUS = "resources={gpus_per_process: 2, time_min: 90}"


def bounded(tmp_path: Path, *overrides: str, **profile: int) -> Profile:
    config = tmp_path / "chain.yaml"
    config.write_text(yaml.safe_dump(CHAIN))
    plan = make_plan(load(str(config), ["engine.processes=1", *overrides]), Root(tmp_path / "runs"))
    return within_limits(Profile.model_validate(profile), plan)


def test_a_sweep_that_may_take_more_gpu_hours_than_it_allows_itself_is_refused(tmp_path: Path) -> None:
    """Data, and three teachers with a student each, of two GPUs for an hour and a half: 21; in packs of three, 7."""
    with pytest.raises(ConfigError, match=r"limits\.gpu_hours: 20, and this sweep may take 21\.0, which is 1\.0 more"):
        bounded(tmp_path, "seed=range(3)", GPUS, "limits.gpu_hours=20")
    bounded(tmp_path, "seed=range(3)", GPUS, "limits.gpu_hours=21")
    bounded(tmp_path, "seed=range(3)", GPUS, "resources.pack=3", "limits.gpu_hours=7")


def test_the_sweep_and_the_site_bound_how_many_run_at_once(tmp_path: Path) -> None:
    assert bounded(tmp_path).array_parallel is None
    assert bounded(tmp_path, "limits.parallel=3").array_parallel == 3
    assert bounded(tmp_path, "limits.parallel=3", array_parallel=2).array_parallel == 2


def test_a_profile_says_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("partiton: gpu\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: partiton: .*partition"):
        load_profile(str(path))


@pytest.mark.parametrize("wrong", ["retry_after_min: []", "retry_after_min: [0]", "hang_after_min: -1", "poll_s: 1"])
def test_a_profile_with_a_wrong_value_is_refused(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{wrong}\n")
    with pytest.raises(ConfigError, match=wrong.partition(":")[0]):
        load_profile(str(path))


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text(text_of(case))
