"""How many threads numpy's matrix library uses: one, while a lean step runs.

Its products are so short that a second thread costs more than it brings, and far more where another program has the
second core. numpy has no call for this; the library inside its wheels, OpenBLAS, has one, found here by name. Where
there is none (numpy built with another library), nothing is limited.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

# What the functions are called in numpy's wheels, in wheels of older numpy, and in OpenBLAS as distributions build it.
_NAMES = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)

_lock = threading.Lock()
_inside = 0  # how many threads of this process are in `one_thread`
_before = 1  # threads of the library before the first of them came


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for numpy's products in here, in the whole process; as many as before once all are out again."""
    global _inside, _before
    controls = _controls()
    if controls is None:
        yield
        return
    get, set_ = controls
    with _lock:
        if not _inside:
            _before = get()
            set_(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                set_(_before)


@cache
def _controls() -> tuple[Callable[[], int], Callable[[int], object]] | None:
    """Get and set the number of threads; `None` where the library has no such functions."""
    try:
        extension = importlib.import_module("numpy._core._multiarray_umath").__file__
        library = ctypes.CDLL(extension)  # linked with numpy's library, so its functions are found through it
    except (ImportError, OSError):
        return None
    for name in _NAMES:
        get, set_ = (getattr(library, name.format(verb), None) for verb in ("get", "set"))
        if get is not None and set_ is not None:
            return get, set_
    return None
