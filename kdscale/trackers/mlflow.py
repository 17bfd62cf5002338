"""The only file that knows MLflow: one experiment of one store, and the few things that are asked of it.

MLflow costs 1.4 s to import and is imported inside functions, in the shipping process and in `launch/track.py` only.
"""

from __future__ import annotations

import getpass
import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdscale.trackers import views
from kdscale.trackers.destination import Destination
from kdscale.trackers.shape import RunShape, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

__all__ = ["Known", "Point", "RunGone", "Server", "ServerAway", "prepare_environment"]

MOST_METRICS = 1000
MOST_TAGS = 100
"""What MLflow takes in one request."""
REQUEST_TIMEOUT_S = 5
KEY = "kdscale.key"
Point = tuple[str, float, float, int]
"""Metric, value, unix seconds, step."""


class ServerAway(Exception):
    """The store does not answer, or answers with an error; what was asked may or may not have happened."""


class RunGone(Exception):
    """The run that was written to is not there any more, or deleted."""


@dataclass(frozen=True)
class Known:
    """A run as the server has it."""

    run_id: str
    key: str
    deleted: bool
    status: str
    owner: str
    """Folder name of the sweep that it was made for."""
    params: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    """Newest step of each metric."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Newest value of each metric."""


def prepare_environment() -> None:
    """Settings that MLflow reads from the environment: give up soon, retry never, tell nobody.

    MLflow's own retries wait for minutes and repeat requests that create runs (mlflow#8238); the next pass is our
    retry. What the user has set stays.
    """
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT_S),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


class Server:
    """One experiment, made if it is not there. Calls raise ServerAway where the store does not do its part."""

    def __init__(self, destination: Destination, root_id: str) -> None:
        """Connect; with SQLite this makes or migrates the database, so hold the destination's lock.

        Raises:
            ServerAway: When it cannot be reached or used.
        """
        self._root_id = root_id
        with _Translated():
            prepare_environment()
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            if destination.database is not None:
                destination.database.parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=destination.uri)
            experiment = _experiment(self._client, destination)
            self.experiment_id = str(experiment.experiment_id)
            self._furnish(experiment.tags)

    def _furnish(self, tags: Mapping[str, str]) -> None:
        """Give the experiment its views, once for each version of them."""
        if tags.get("kdscale.views") == views.VERSION:
            return
        now_ms = round(time.time() * 1000)
        wanted = {view.tag: view.listed(now_ms) for view in views.for_everybody() if not view.is_in(tags)}
        wanted |= {name: text for name, text in views.EXPERIMENT_TAGS.items() if name not in tags}
        for name, text in (wanted | {"kdscale.views": views.VERSION}).items():
            self._client.set_experiment_tag(self.experiment_id, name, text)

    def show(self, wanted: Iterable[views.View]) -> None:
        """Make views reachable by their links."""
        with _Translated():
            for view in wanted:
                self._client.set_experiment_tag(self.experiment_id, view.tag, view.state())

    def runs(self, condition: Mapping[str, str]) -> list[Known]:
        """Runs of this runs folder whose tags are as given, oldest first, deleted ones included."""
        from mlflow.entities import ViewType

        tags = {"kdscale.root": self._root_id, **condition}
        text = " and ".join(f"""tags."{name}" = '{value}'""" for name, value in tags.items())
        found: list[Known] = []
        token: str | None = None
        with _Translated():
            while True:
                page = self._client.search_runs(
                    [self.experiment_id], text, ViewType.ALL, 1000, ["attributes.start_time ASC"], token
                )
                found += [_known(run) for run in page]
                token = page.token
                if not token:
                    return found

    def create(self, shape: RunShape, parent_id: str | None) -> str:
        """Make the run with all that identifies it, in one request; returns its id."""
        tags = {KEY: shape.key, "kdscale.root": self._root_id, **shape.once, **_origin(parent_id), **shape.tags}
        with _Translated():
            started = None if shape.started is None else round(shape.started * 1000)
            return str(self._client.create_run(self.experiment_id, started, tags, shape.name).info.run_id)

    def params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log params; MLflow never lets them change."""
        from mlflow.entities import Param

        with _Translated():
            for chunk in _chunks([Param(name, value) for name, value in params.items()], MOST_TAGS):
                self._client.log_batch(run_id, params=chunk)

    def points(self, run_id: str, points: Iterable[Point]) -> None:
        """Log metrics with their own times and steps, in order."""
        from mlflow.entities import Metric

        with _Translated():
            for chunk in _chunks(points, MOST_METRICS):
                metrics = [Metric(name, value, round(at * 1000), step) for name, value, at, step in chunk]
                self._client.log_batch(run_id, metrics=metrics)

    def describe(self, run_id: str, tags: Mapping[str, str], status: Status, ended: float | None) -> None:
        """Set tags and status."""
        self.tag(run_id, tags)
        with _Translated():
            if status in {"RUNNING", "SCHEDULED"}:
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, None if ended is None else round(ended * 1000))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        with _Translated():
            for chunk in _chunks([RunTag(name, value) for name, value in tags.items()], MOST_TAGS):
                self._client.log_batch(run_id, tags=chunk)

    def upload(self, run_id: str, path: Path) -> None:
        """Store a file as an artifact of the run."""
        with _Translated():
            self._client.log_artifact(run_id, str(path))

    def upload_text(self, run_id: str, text: str, name: str) -> None:
        """Store a text as an artifact of the run."""
        with _Translated():
            self._client.log_text(run_id, text, name)

    def remove(self, run_id: str) -> None:
        """Delete a run (MLflow keeps it restorable)."""
        with _Translated():
            self._client.delete_run(run_id)


def _origin(parent_id: str | None) -> dict[str, str]:
    tags = {"mlflow.source.name": "launch/sweep.py", "mlflow.source.type": "LOCAL", "mlflow.user": getpass.getuser()}
    return tags | ({"mlflow.parentRunId": parent_id} if parent_id else {})


def _experiment(client: MlflowClient, destination: Destination) -> Experiment:
    found = client.get_experiment_by_name(destination.experiment)
    if found is None:
        place = None if destination.artifacts is None else destination.artifacts.as_uri()
        return client.get_experiment(client.create_experiment(destination.experiment, artifact_location=place))
    if found.lifecycle_stage != "active":
        raise ServerAway(
            f"experiment {destination.experiment!r} was deleted there: restore it, or set tracking.experiment"
        )
    return found


def _known(run: Run) -> Known:
    metrics: Sequence[Any] = run.data._metric_objs  # the only place where a search's answer says the steps
    return Known(
        run_id=str(run.info.run_id),
        key=str(run.data.tags.get(KEY, "")),
        deleted=run.info.lifecycle_stage != "active",
        status=str(run.info.status),
        owner=str(run.data.tags.get("kdscale.sweep_id", "")),
        params=run.data.params,
        steps={m.key: int(m.step) for m in metrics},
        values={m.key: float(m.value) for m in metrics},
    )


def _chunks(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class _Translated:
    """Turns whatever MLflow, requests and SQLAlchemy raise into ServerAway and RunGone; keeps warnings quiet."""

    def __enter__(self) -> None:
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._quiet.__exit__(kind, error, trace)
        if error is None or isinstance(error, (ServerAway, RunGone)) or not isinstance(error, Exception):
            return
        if isinstance(error, ImportError):
            raise ServerAway(f"mlflow cannot be imported ({error}): pip install 'kdscale[mlflow]'") from error
        code = getattr(error, "error_code", "")
        if code == "RESOURCE_DOES_NOT_EXIST" or "deleted state" in str(error) or "not active" in str(error):
            raise RunGone(str(error)) from error
        raise ServerAway(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The cause in a few words; the libraries' own texts bury it under addresses and pools."""
    chain, names = [], set()
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        names |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    if "ConnectionError" in names or "Timeout" in names:
        told = [c.strerror.lower() for c in chain if isinstance(c, OSError) and c.strerror]
        if told:
            return str(told[-1])
        if names & {"Timeout", "TimeoutError"}:
            return f"no answer within {os.environ.get('MLFLOW_HTTP_REQUEST_TIMEOUT', REQUEST_TIMEOUT_S)} s"
        return "no connection"
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
