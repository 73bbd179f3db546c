"""Fused loops for CPUs, compiled by numba on first use (which takes a second or two) and cached.

One loop does in a single pass over memory what takes torch several operators. Each replaces a few lines of torch, which
remain its definition: they run if numba is missing, and tests compare the two. Elements are float32 or bfloat16;
arithmetic is float32.
"""

from sqat.cpu.threads import available

__all__ = ["available"]
