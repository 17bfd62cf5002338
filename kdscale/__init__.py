"""kdscale: knowledge distillation at scale, from one YAML file to a cluster.

Nothing heavy is imported here: `import kdscale` must stay cheap for the command line.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
