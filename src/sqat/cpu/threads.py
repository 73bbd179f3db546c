"""Compiled loops on torch's own threads.

torch's CPU operators use OpenMP, whose threads keep spinning for a while after each. Threads of another pool would
compete with them for the cores, so our loops run on the same threads: `GOMP_parallel` of the library that torch loaded
calls a loop once in each thread, and the loop takes its share of the rows.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqat.folders import default_cache, try_to_write

# Sums may be reordered and fused with products, but NaN and Inf are respected.
FAST = {"reassoc", "contract", "nsz", "arcp"}
NUM_ARGUMENTS = 20  # at most, per loop
SERIAL_ELEMENTS = 2**14  # elements per thread; fewer are not worth waking one

_lock = threading.Lock()  # numba's settings are global to all threads


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
    """A loop over rows, shared among torch's threads and compiled on its first call.

    Its `body` takes a pointer to 64-bit integers: the number of rows, then the arguments. It processes the rows that
    :func:`sqat.cpu.arguments.share` assigns to it.
    """

    def __init__(self, body: Callable[[Any], None]) -> None:
        self.body = body

    @cached_property
    def compiled(self) -> Any:
        from numba import types

        return compile_callback(self.body, types.CPointer(types.int64))

    def __call__(self, num_rows: int, *arguments: Tensor | int | float, elements: int) -> None:
        """Run over rows 0 … num_rows - 1. Tensors must be contiguous; `elements`, the total amount of work, determines
        the number of threads.
        """
        threads = min(torch.get_num_threads(), num_rows) if elements >= SERIAL_ELEMENTS else 1
        numbers = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
        packed = [np.float64(x).view(np.int64) if isinstance(x, float) else x for x in numbers]
        data = np.zeros(NUM_ARGUMENTS, np.int64)
        data[: 1 + len(packed)] = num_rows, *packed
        library = openmp()
        assert library is not None
        library.GOMP_parallel(self.compiled.address, data.ctypes.data, threads, 0)


def compile_callback(body: Callable[[Any], None], argument: Any, level: int = 3) -> Any:
    """Compile a C function of one argument, of the numba type `argument`. Its `address` is valid while it lives.

    LLVM's optimisation `level` 2 instead of 3 takes a quarter less time to compile.
    """
    from numba import cfunc, config, types

    folder = cache_folder()
    options = {"cache": folder is not None, "nopython": True, "fastmath": FAST, "error_model": "numpy"}
    with _lock:
        before = config.CACHE_DIR, config.OPT
        config.CACHE_DIR, config.OPT = folder or config.CACHE_DIR, type(config.OPT)(level)
        try:
            return cfunc(types.void(argument), **options)(body)
        finally:
            config.CACHE_DIR, config.OPT = before


@cache
def cache_folder() -> str | None:
    """Where compiled functions are kept: in $NUMBA_CACHE_DIR or our own cache; `None` if nothing can be written there.

    numba checks only the modification time of a function's own file. Our functions call others in other files, so the
    folder's name is a hash of all these sources.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or default_cache() / "kernels") / f"sqat-{digest[:16]}"
    try:
        try_to_write(folder)
        return str(folder)
    except OSError:  # read-only: every process compiles again
        return None
