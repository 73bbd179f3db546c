"""Compiled loops on torch's own threads.

torch's CPU operators use OpenMP, whose threads keep spinning for a while after each. Threads of another pool would
compete with them for the cores, so our loops run on the same threads: `GOMP_parallel` of the library that torch loaded
calls a loop once in each thread, and the loop takes its share of the rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqat.cpu.cache import kept_on_disk

# Sums may be reordered and fused with products, but NaN and Inf are respected.
FAST = {"reassoc", "contract", "nsz", "arcp"}
NUM_ARGUMENTS = 20  # at most, per loop
SERIAL_ELEMENTS = 2**14  # elements per thread; fewer are not worth waking one


def available() -> bool:
    """Whether compiled loops can run: numba is installed, torch uses GNU OpenMP, and torch.compile is not tracing (it
    fuses the plain operators itself).
    """
    return not torch.compiler.is_compiling() and _installed()


@cache
def _installed() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return openmp() is not None


@cache
def openmp() -> ctypes.CDLL | None:
    """The OpenMP library of torch's threads; None if it is not GNU's."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not found:
        return None
    library = ctypes.CDLL(str(found[0]))  # already loaded, so this is the same one
    library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    library.GOMP_parallel.restype = None
    return library


class Loop:
    """A compiled loop over rows, shared among torch's threads.

    Args:
        body: a numba `cfunc` of one pointer, to 64-bit integers: the number of rows, then the arguments. It processes
            the rows that :func:`sqat.cpu.arguments.share` assigns to it.
    """

    def __init__(self, body: Any) -> None:
        self.body = body  # keeps its code alive

    def __call__(self, num_rows: int, *arguments: Tensor | int | float, elements: int) -> None:
        """Run over rows 0 … num_rows - 1.

        Args:
            arguments: tensors, passed as addresses (the caller ensures that they are contiguous), and numbers.
            elements: the total amount of work, which determines the number of threads.
        """
        threads = min(torch.get_num_threads(), num_rows) if elements >= SERIAL_ELEMENTS else 1
        packed = [x.data_ptr() if isinstance(x, Tensor) else _bits(x) for x in arguments]
        data = np.zeros(NUM_ARGUMENTS, np.int64)
        data[: 1 + len(packed)] = num_rows, *packed
        library = openmp()
        assert library is not None
        library.GOMP_parallel(self.body.address, data.ctypes.data, threads, 0)


def _bits(number: int | float) -> int:
    return int(np.float64(number).view(np.int64)) if isinstance(number, float) else number


def compiled_loop(body: Callable[[Any], None]) -> Loop:
    """Compile a loop and make it callable."""
    from numba import cfunc, types

    signature = types.void(types.CPointer(types.int64))
    with kept_on_disk() as keep:
        return Loop(cfunc(signature, cache=keep, nopython=True, fastmath=FAST, error_model="numpy")(body))


class Call:
    """A compiled function bound to its arguments, which are converted once, so that a call takes a microsecond.

    Args:
        function: from :func:`compiled`.
        arguments: contiguous arrays, passed as addresses and kept alive, and numbers.
    """

    def __init__(self, function: Callable[[Any], None], *arguments: np.ndarray | int | float) -> None:
        self._function, self._kept = function, arguments
        self.data = np.zeros(NUM_ARGUMENTS, np.int64)  # may change between calls
        packed = [x.ctypes.data if isinstance(x, np.ndarray) else _bits(x) for x in arguments]
        self.data[: len(packed)] = packed

    def __call__(self) -> None:
        self._function(self.data)


def compiled(body: Callable[[Any], None]) -> Callable[[Any], None]:
    """Compile a function of an array of 64-bit integers that runs in the thread that calls it.

    It uses less optimisation than numba's default, which took a quarter longer to compile and ran no faster; the first
    answer of a model waits for it.
    """
    from numba import config, njit, types

    signature = types.void(types.int64[::1])
    with kept_on_disk() as keep:
        before, config.OPT = config.OPT, type(config.OPT)(2)
        try:
            compiled_body: Callable[[Any], None] = njit(signature, cache=keep, fastmath=FAST, error_model="numpy")(body)
            return compiled_body
        finally:
            config.OPT = before
