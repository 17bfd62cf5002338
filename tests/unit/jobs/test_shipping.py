"""Who ships, by `tracking.ship`, where metrics go and what kind of machine runs the jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdscale import atomic
from kdscale.errors import ConfigError
from kdscale.jobs.shipping import check_tracking, ship_the_end, shipper_of_job, shipper_of_launcher
from kdscale.jobs.stage_job import DONE, INTERRUPTED
from kdscale.pipeline.artifacts import StageFolder
from tests.fake_runs import FakeSweep, plan
from tests.mlflow_server import free_port

SERVER = "http://127.0.0.1:9"


def tracking(**said: Any) -> dict[str, Any]:
    return {"uri": None, "experiment": "kdscale", "ship": "auto"} | said


@pytest.mark.parametrize(
    ("said", "on_cluster"), [(tracking(ship="never"), False), (tracking(ship="job"), True), (tracking(uri="off"), True)]
)
def test_the_launcher_leaves_it(said: dict[str, Any], on_cluster: bool, tmp_path: Path) -> None:
    assert shipper_of_launcher(tmp_path, tmp_path, said, print, on_cluster=on_cluster) is None


def test_with_sqlite_no_job_of_a_cluster_writes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.ship: job needs a server"):
        check_tracking(tmp_path, tracking(ship="job"), on_cluster=True)
    check_tracking(tmp_path, tracking(ship="job"), on_cluster=False)
    check_tracking(tmp_path, tracking(ship="job", uri=SERVER), on_cluster=True)


@pytest.mark.parametrize("ship", ["login", "never"])
def test_a_job_leaves_it_to_others(tmp_path: Path, ship: str) -> None:
    stage = planned(tmp_path, tracking(uri=SERVER, ship=ship))
    assert shipper_of_job(tmp_path, stage, 0) is None


def test_a_job_leaves_sqlite_and_other_ranks_out(tmp_path: Path) -> None:
    assert shipper_of_job(tmp_path / "one", planned(tmp_path / "one", tracking()), 0) is None
    assert shipper_of_job(tmp_path / "two", planned(tmp_path / "two", tracking(uri=SERVER)), 1) is None


def test_a_job_whose_node_gets_no_answer_says_so_once_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    shipper = shipper_of_job(tmp_path, planned(tmp_path, tracking(uri=nobody)), 0)
    assert shipper is not None
    assert ship_the_end(shipper, DONE, 0) == 0
    assert "the login node ships" in caplog.text
    assert caplog.text.count(nobody) == 1


def test_a_job_that_comes_back_does_not_wait_for_a_server(tmp_path: Path) -> None:
    shipper = shipper_of_job(tmp_path, planned(tmp_path, tracking(uri=SERVER, ship="job")), 0)
    assert shipper is not None
    assert ship_the_end(shipper, INTERRUPTED, 0) == 0
    assert shipper._process is not None
    assert shipper._process.returncode is not None


def planned(root: Path, said: dict[str, Any]) -> StageFolder:
    """A stage of a sweep that is tracked as said."""
    sweep: FakeSweep = plan(root, "fake")
    document = atomic.read_json(sweep.folder / "plan.json")
    atomic.write_json(sweep.folder / "plan.json", document | {"tracking": said})
    stage = next(iter(sweep.stages.values()))
    stage.start()
    folder = StageFolder(stage.folder)
    text = (folder.path / "stage.yaml").read_text().replace("sweep: fake", f"sweep: {sweep.folder.name}")
    (folder.path / "stage.yaml").write_text(text)
    return folder
