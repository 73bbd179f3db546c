"""Keep freed memory in the process while training on a CPU."""

from __future__ import annotations

import ctypes
import functools
import logging
import platform

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to return freed memory to the system; returns whether that worked.

    A training step frees and allocates the same few hundred megabytes over and over. By default glibc returns large
    blocks at once, so the kernel has to zero all their pages again in every step. This is the same as starting the
    process with MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ set, and it affects the whole
    process. Peak memory may rise if buffer sizes keep changing. Without glibc (outside Linux) nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_M_MMAP_THRESHOLD, 2**30), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 2**26)]
    if not all(done):
        logger.debug("glibc refused an allocator setting: %s", done)
    return all(done)
