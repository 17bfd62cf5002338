"""One word to take up whatever a path or a name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load"]


def load(what: str | Path, *overrides: str, runs: str | Path | None = None) -> Any:
    """Load a config, an exported network, or a finished stage's network.

    Args:
        what: a YAML file, `kdscale:NAME` of a shipped one or a bundle (.zip): an `Experiment`. A folder that
            launch/export.py wrote: its network. Else a stage's name, such as `bench:student[crd,s1]` or `3f21ab`: its
            network, as `TrainedStage.model` gives it.
        overrides: KEY=VALUE texts, of a config alone.
        runs: the folder for results; default $KDSCALE_RUNS, else ./runs.

    Raises:
        ConfigError: one line that names the place and the nearest valid word.
    """
    from kdscale.errors import ConfigError

    text, place = str(what), None if runs is None else Path(runs).expanduser()
    if text.startswith("kdscale:") or Path(text).suffix in (".yaml", ".yml", ".zip"):
        from kdscale.library.experiment import Experiment

        return Experiment(text, overrides, place)
    if overrides:
        raise ConfigError(f"{text} is no config (.yaml): there is nothing that {overrides[0]} could override")
    if (Path(text).expanduser() / "model.json").is_file():
        from kdscale.library.exported import exported_network

        return exported_network(Path(text).expanduser())
    from kdscale.library.runs import runs as look

    return look(place).stage(text).model()
