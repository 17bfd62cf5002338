#!/usr/bin/env python
"""Take the tensors out of somebody's weights file and write them as safetensors.

A .pth file may hold more than tensors (argparse.Namespace, a whole pickled network), and unpickling such a
file runs its code. With --trust it is read in a child process without network, by a reader that puts inert
stand-ins in the place of everything that is no tensor.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    """Parse the command line and import one file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="import.py", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="weights file: .pt, .pth or .safetensors")
    parser.add_argument("--trust", action="store_true", help="read it although it holds more than tensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="what to write")
    parser.add_argument("--key", metavar="KEY", help="where its tensors lie (state_dict_ema, model.net ...)")
    options = parser.parse_args()

    from kdscale.errors import KDScaleError
    from kdscale.nn.untrusted import import_weights

    try:
        lines = import_weights(options.file, options.out, key=options.key, trust=options.trust)
    except (KDScaleError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
