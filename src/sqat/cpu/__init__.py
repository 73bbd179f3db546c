"""Fused loops for CPUs, compiled by numba when first used (a second or two; kept in its cache afterwards).

What torch does in several operators, each of which reads and writes memory, is one pass here. Every loop stands in for
a few lines of torch, which stay its definition, are used where numba is missing, and are tested against it. Element
types are float32 and bfloat16; arithmetic is float32.
"""

from sqat.cpu.threads import available

__all__ = ["available"]
