"""Which data sets are on this machine, and where the others were looked for."""

from __future__ import annotations

from collections.abc import Iterator

from kdscale import plugins
from kdscale.doctor.findings import Finding
from kdscale.errors import DataError

__all__ = ["examine_data_sets"]


def examine_data_sets() -> Iterator[Finding]:
    """Look for each data set, without touching the network and without hashing what is there."""
    for name in plugins.available("datasets"):
        try:
            yield _look_for(name)
        except DataError as error:
            yield Finding("data", name, "note", "needs data.root", str(error))
        except Exception as error:  # noqa: BLE001 - a broken torch breaks every import; the doctor goes on
            yield Finding("data", name, "broken", f"cannot be looked for ({type(error).__name__}: {error})")


def _look_for(name: str) -> Finding:
    from kdscale.config.schema import DataConfig
    from kdscale.data.sources import PublishedFiles

    dataset = plugins.load("datasets", name)(DataConfig(name=name), download=False)
    files = getattr(dataset, "files", None)
    if not isinstance(files, PublishedFiles):
        rows = dataset.info.train_rows
        return Finding("data", name, "ok", "made up as it is read" if name == "synthetic" else f"{rows:,} images")
    if files.is_here():
        folders = sorted({str(path.parent) for path in files.locate().values()})
        return Finding("data", name, "ok", f"found {', '.join(folders)}", details={"folders": folders})
    try:
        files.locate()
    except DataError as error:
        how = "downloaded when first used" if files.publication.urls else "nothing to download"
        return Finding("data", name, "note", f"not here (3 places looked at, --data shows them; {how})", str(error))
    raise AssertionError("unreachable: what is not here and may not be downloaded is not found")
