"""Keep freed memory in the process while training on a CPU."""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to return freed memory to the system. Returns whether it took the settings.

    Every training step frees a few hundred megabytes and allocates them again. By default glibc returns large blocks at
    once, and the kernel has to find and zero all their pages anew. The settings are those of the environment variables
    MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_, and hold for the whole process. With buffers of
    ever new sizes the peak may rise. Without glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_MMAP_THRESHOLD, 2**30), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 2**26)])
