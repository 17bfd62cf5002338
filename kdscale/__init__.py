"""kdscale: knowledge distillation at scale, from one YAML file to a cluster.

    import kdscale as kd
    kd.load("kdscale:quickstart.yaml", "seed=0").run().wait().best("val/top1").model()

Nothing heavy is imported here: `import kdscale` must stay cheap for the command line. What it offers to Python
(docs/python.md) is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdscale.library.distilling import distill
    from kdscale.library.loading import load
    from kdscale.library.records import TeacherCache
    from kdscale.library.runs import runs

__all__ = ["TeacherCache", "__version__", "distill", "load", "runs"]

__version__ = "0.1.0"

_PLACES = {"TeacherCache": "records", "distill": "distilling", "load": "loading", "runs": "runs"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kdscale' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"kdscale.library.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
