"""Compiled loops on torch's own threads.

torch's CPU operators share their work through OpenMP, whose threads go on spinning for a while after each. Threads of
another pool would fight them for the cores, so our loops run on the same ones: `GOMP_parallel` of the very library that
torch loaded calls a loop once in each thread, and the loop takes its share of the rows.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqat.folders import default_cache

# Sums in any order, products and sums at once; but numbers that are none stay none.
FAST = {"reassoc", "contract", "nsz", "arcp"}
NUM_ARGUMENTS = 20  # at most, of a loop
SERIAL_ELEMENTS = 2**14  # fewer are not worth waking a thread

_lock = threading.Lock()  # numba's setting is one for all threads


def available() -> bool:
    """Whether compiled loops can run here: numba is installed, torch came with GNU OpenMP, and nothing is being traced
    by torch's own compiler, which fuses the plain forms itself.
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
    """The library that torch's threads are of; `None` where it is another one."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not found:
        return None
    library = ctypes.CDLL(str(found[0]))  # is loaded already: the same one again
    library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    library.GOMP_parallel.restype = None
    return library


class Loop:
    """A compiled loop, ready to be called.

    Args:
        body: a numba `cfunc` of one pointer, to 64-bit integers: the number of rows, then what it is called with. It
            takes the rows that :func:`sqat.cpu.arguments.share` gives it.
    """

    def __init__(self, body: Any) -> None:
        self.body = body  # its code lives as long

    def __call__(self, num_rows: int, *arguments: Tensor | int | float, elements: int) -> None:
        """Run over rows 0 … num_rows - 1.

        Args:
            arguments: tensors go in as addresses (the caller sees to it that they are contiguous), numbers as they are.
            elements: how many are worked on in all, by which the number of threads is chosen.
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
    """A compiled function with its arguments, which are written down once: what is left of a call is a microsecond.

    Args:
        function: of :func:`compiled`.
        arguments: contiguous arrays go in as addresses (they live as long), numbers as they are.
    """

    def __init__(self, function: Callable[[Any], None], *arguments: np.ndarray | int | float) -> None:
        self._function, self._kept = function, arguments
        self.data = np.zeros(NUM_ARGUMENTS, np.int64)  # may be changed between calls
        packed = [x.ctypes.data if isinstance(x, np.ndarray) else _bits(x) for x in arguments]
        self.data[: len(packed)] = packed

    def __call__(self) -> None:
        self._function(self.data)


def compiled(body: Callable[[Any], None]) -> Callable[[Any], None]:
    """Compile a function of an array of 64-bit integers that runs in the thread that calls it.

    With a little less optimisation than numba's default, which took a quarter longer to compile and ran no faster:
    somebody waits for it, for the first answer of a model.
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


@contextmanager
def kept_on_disk() -> Iterator[bool]:
    """Functions made in here for numba's cache are kept in a folder of ours (in $NUMBA_CACHE_DIR, or with what else we
    can make again); says whether there can be one.

    numba looks at the time of a function's own file alone. What it calls lies in others here, so the folder is that of
    these very sources.
    """
    from numba import config

    folder = _folder()
    with _lock:
        before, config.CACHE_DIR = config.CACHE_DIR, folder or config.CACHE_DIR
        try:
            yield folder is not None
        finally:
            config.CACHE_DIR = before


@cache
def _folder() -> str | None:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or default_cache() / "kernels") / f"sqat-{digest[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError:  # read-only: compiled anew in every process
        return None
