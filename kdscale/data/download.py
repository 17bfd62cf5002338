"""One file from the network: to a side path, checksum, rename; tried again, then from the next mirror.

Jobs of a cluster never download: their nodes may have no network, and a hundred of them would ask at once. They call
`forbid_downloads` before anything else.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kdscale import atomic
from kdscale.data.packages import md5_of
from kdscale.errors import DataError

__all__ = ["fetch", "forbid_downloads"]

_TIMEOUT_S = 20.0
_ATTEMPTS = 3
_CHUNK = 1 << 18


PREPARE = "`python launch/sweep.py CONFIG --cluster PROFILE --prepare` on the login node fetches what is missing"


class _Forbidden(urllib.request.BaseHandler):
    """Stands where urllib would open a connection: kdscale's own downloads and torch.hub's pass through it."""

    handler_order = 0  # before the handlers that open connections

    def _refuse(self, request: urllib.request.Request) -> NoReturn:
        raise DataError(f"{request.full_url}: a job never downloads; {PREPARE}")

    http_open = https_open = ftp_open = _refuse


def forbid_downloads() -> None:
    """From now on whatever this process would download is a DataError, whether there is a network or not."""
    urllib.request.install_opener(urllib.request.build_opener(_Forbidden))


class _Failed(Exception):
    """A mirror did not give the file."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


def fetch(urls: Sequence[str], file: str, md5: str, folder: Path) -> Path:
    """Download `file` into `folder`, whole and checked, unless it is there already; returns its path.

    Two processes that want it at once download it once: the second waits for the first.

    Args:
        urls: mirrors, addresses of folders that hold `file`; tried in order.
        file: its name there and here.
        md5: published checksum.
        folder: made when it does not exist.

    Raises:
        DataError: no mirror gave it; the text has each address with its error.
        OSError: `folder` cannot be written.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file
    with FileLock(folder / f".{file}.lock"):
        if target.is_file() and md5_of(target) == md5:
            return target
        errors = []
        for url in urls:
            try:
                return _from_mirror(url.rstrip("/") + "/" + file, md5, target)
            except _Failed as error:
                errors.append(str(error))
        raise DataError("; ".join(errors))


def _from_mirror(url: str, md5: str, target: Path) -> Path:
    from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

    again = retry(
        retry=retry_if_exception(lambda error: isinstance(error, _Failed) and error.may_pass),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(multiplier=0.25, max=5),
        reraise=True,
    )
    again(_once)(url, md5, target)
    return target


def _once(url: str, md5: str, target: Path) -> None:
    with atomic.aside(target) as side:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                _copy(answer, side, url, int(answer.headers.get("Content-Length") or 0))
        except urllib.error.HTTPError as error:
            error.close()
            raise _Failed(f"{url}: {error}", may_pass=error.code >= 500) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise _Failed(f"{url}: {error}", may_pass=True) from error
        if (found := md5_of(side)) != md5:  # a connection cut short looks like this too
            raise _Failed(f"{url}: MD5 {found}, published {md5} ({side.stat().st_size} bytes came)", may_pass=True)


def _copy(answer: http.client.HTTPResponse, side: Path, url: str, size: int) -> None:
    """Copy the answer with a progress bar on stderr (a terminal's; a log gets the finished line only)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, side.open("wb") as out:
        task = progress.add_task(f"download {url}", total=size or None)
        while chunk := answer.read(_CHUNK):
            out.write(chunk)
            progress.advance(task, len(chunk))
