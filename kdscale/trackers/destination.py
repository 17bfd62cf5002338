"""Where a sweep's metrics go: the default database, a file, a server, or nowhere. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kdscale.atomic import write_text
from kdscale.errors import ConfigError

__all__ = ["Destination", "destination", "root_id"]


@dataclass(frozen=True, slots=True)
class Destination:
    """One experiment of one MLflow store."""

    uri: str
    """sqlite:///ABSOLUTE/FILE or http(s)://HOST; never with credentials in it."""
    experiment: str
    artifacts: Path | None
    """Folder of the artifacts; None where the server keeps them."""
    lock: Path
    """Whoever ships holds this file: one writer at a time on the machine, or on the shared file system."""

    @property
    def database(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:") else None

    @property
    def id(self) -> str:
        """Short and stable: what has been shipped is recorded for each destination apart."""
        return hashlib.sha256(f"{self.uri}\n{self.experiment}".encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return self.uri


def destination(root: Path, uri: str | None, experiment: str) -> Destination | None:
    """Resolve `tracking.uri`; None when it is `off`.

    Args:
        root: The runs folder.
        uri: None for the default, ROOT/mlflow.db; relative sqlite files lie in the working directory.
        experiment: Name of the MLflow experiment.

    Raises:
        ConfigError: For a scheme that MLflow or kdscale cannot use, and for credentials in the address.
    """
    root = root.absolute()
    if uri is None:
        uri = f"sqlite:///{root / 'mlflow.db'}"
    if uri == "off":
        return None
    _check(uri)
    if not uri.startswith("sqlite:"):
        return Destination(uri.rstrip("/"), experiment, None, root / ".tracking.lock")
    file = Path(uri.removeprefix("sqlite:///")).absolute()
    artifacts = root / "mlartifacts" if file == root / "mlflow.db" else file.with_name(f"{file.stem}-artifacts")
    return Destination(f"sqlite:///{file}", experiment, artifacts, file.with_name(f".{file.name}.lock"))


def root_id(root: Path) -> str:
    """Identity of a runs folder, made on first use; it moves with the folder.

    Two people may train the same stage and ship it to the same server: their runs must stay two. Call it with the
    destination's lock held.
    """
    path = root / ".tracking-id"
    if not path.exists():
        write_text(path, secrets.token_hex(6) + "\n")
    return path.read_text().strip()


def _check(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise ConfigError(
            f"tracking.uri: holds credentials for {parts.hostname}, and it is written to disk. Take them out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    if parts.scheme == "sqlite":
        if not uri.startswith("sqlite:///") or uri == "sqlite:///":
            raise ConfigError(f"tracking.uri: {uri} names no file; write sqlite:///FILE")
    elif parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(
            f"tracking.uri: {os.fspath(uri)} is none of http(s)://HOST, sqlite:///FILE and off "
            "(MLflow no longer takes plain folders)"
        )
