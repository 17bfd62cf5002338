#!/usr/bin/env python
"""MLflow: bring what is missing to the server, or open the runs table, filtered and sorted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from kdscale.trackers.command import Sweep

EPILOG = """\
examples:
  python launch/track.py sync                          every sweep: what a server missed while it was away
  python launch/track.py sync bench --uri https://mlflow.lab
  python launch/track.py sync --follow                 on a login node, while jobs run that do not reach the server
  python launch/track.py ui bench                      links to the sweep's tables; serves them until Ctrl-C

Training never waits for a server: metrics lie in runs/stages/*/metrics.jsonl, and each is shipped once.
Credentials are read from MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN, and are never written anywhere.
exit codes: 0 done, 1 a server does not answer, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/track.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="sync|ui")
    text = "ship what is missing; run it as often as you like"
    bring = verbs.add_parser("sync", help=text, description=text)
    bring.add_argument("sweeps", nargs="*", metavar="SWEEP", help="name, digest prefix or folder (default: all)")
    bring.add_argument("--follow", action="store_true", help="go on, once a minute, until Ctrl-C")
    text = "print links to ready tables of a sweep, and serve them"
    look = verbs.add_parser("ui", help=text, description=text)
    look.add_argument("sweeps", nargs="?", metavar="SWEEP", help="default: the latest")
    look.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    look.add_argument("--port", type=int, default=5000, help="default: %(default)s, or a free one")
    for verb in (bring, look):
        verb.add_argument("--uri", help="another server or sqlite:///FILE than the sweep was planned with")
        verb.add_argument("--experiment", help="another experiment than planned")
        verb.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run one verb; returns the exit code."""
    options = parse(arguments)
    from kdscale.errors import ConfigError, KDScaleError
    from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
    from kdscale.pipeline.names import resolve
    from kdscale.trackers import command

    def say(text: str) -> None:
        print(text, flush=True)

    def sweep_of(folder: SweepFolder | StageFolder, name: str) -> command.Sweep:
        if not isinstance(folder, SweepFolder):
            raise ConfigError(f"{name} is a stage; tracking is about sweeps (`python launch/runs.py ls` lists them)")
        alive = lambda path: StageFolder(path).claimant() is not None  # noqa: E731
        return command.Sweep(root.path, folder.path, alive, launched=folder.launcher() is not None)

    def sweeps(names: list[str]) -> list[command.Sweep]:
        found = [resolve(name, root) for name in names] if names else list(reversed(root.sweeps()))
        return [sweep_of(folder, str(folder)) for folder in found]

    try:
        root = Root.find(options.runs)
        if options.verb == "sync":
            return _bring(options, lambda: sweeps(options.sweeps), say)
        name = options.sweeps or "latest"
        sweep = sweep_of(resolve(name, root), name)
        to = sweep.destination(options.uri, options.experiment)
        if to is None:
            raise ConfigError(f"{name}: tracking.uri is off; `launch/track.py sync {name} --uri ...` ships it")
        place = command.Place(options.host, command.free_port(options.host, options.port))
        server = command.show(sweep, to, place, say)
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if server is None or command.serve(server, place, say) else 1


def _bring(options: argparse.Namespace, sweeps: Callable[[], list[Sweep]], say: Callable[[str], None]) -> int:
    from kdscale.trackers import command

    if options.follow:
        command.follow(sweeps, options.uri, options.experiment, say)
    return 0 if command.sync(sweeps(), options.uri, options.experiment, say) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
