"""How the loops over pixels and draws are compiled.

Numba's cache on disk looks only at the file of the kernel that is called, never at those of the kernels
that it calls: so a kernel calls kernels of its own file only, or an edit would leave old code in use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["kernel"]

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile without the GIL on the first call, or take what an earlier process left on disk.

    Kernels carry `no_type_check`: a checker that wraps them would hide them from the compiler.
    """
    try:
        compiled: Any = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        compiled = numba.njit(nogil=True)(function)
    return cast(Function, compiled)
