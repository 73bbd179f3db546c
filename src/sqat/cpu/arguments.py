"""Building blocks of compiled loops: arguments, element types, exponentials, random bits.

Only compiled code can call these functions; they are inlined. A bfloat16 element is a 16-bit integer here, the upper
half of a float32's bits.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from llvmlite import binding
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.unsafe.ndarray import to_fixed_tuple

from sqat.cpu.threads import FAST, NUM_ARGUMENTS, openmp

_library = openmp()
for _name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier") if _library is not None else ():
    binding.add_symbol(_name, ctypes.cast(getattr(_library, _name), ctypes.c_void_p).value)
_thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())
barrier = types.ExternalFunction("GOMP_barrier", types.void())  # waits until all threads have arrived

# Without inlining, the process that compiles a function and one that loads it from the cache would run versions that
# round differently.
inline = njit(fastmath=FAST, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@intrinsic
def pointer(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@inline
def share(data):
    """A call's arguments, as integers, and this thread's number and rows: (arguments, thread, start, stop)."""
    call = to_fixed_tuple(carray(data, (NUM_ARGUMENTS,), np.int64), NUM_ARGUMENTS)
    start, stop = part(call[0])
    return call, np.int64(_thread_number()), start, stop


@inline
def part(count):
    """(start, stop) of this thread's share of `count` items. There may be fewer threads than requested."""
    threads, thread = np.int64(_num_threads()), np.int64(_thread_number())
    return thread * count // threads, (thread + 1) * count // threads


@inline
def number(bits):
    """A float argument."""
    return np.float32(np.int64(bits).view(np.float64))


def element(x: torch.Tensor) -> type:
    """The type in compiled loops of a tensor's elements."""
    return np.uint16 if x.dtype == torch.bfloat16 else np.float32


@inline
def elements(address, rows, columns, kind):
    return carray(pointer(address), (rows, columns), kind)


@inline
def float32s(address, rows, columns):
    return carray(pointer(address), (rows, columns), np.float32)


@inline
def int64s(address, count):
    return carray(pointer(address), (count,), np.int64)


def widen(value):
    """An element as float32."""
    raise NotImplementedError


@overload(widen, jit_options={"forceinline": True})
def _widen(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def narrow(value, like):
    """A float32 converted to the type of `like`, rounded to nearest even."""
    raise NotImplementedError


@overload(narrow, jit_options={"forceinline": True})
def _narrow(value, like):
    if like != types.uint16:
        return lambda value, like: value

    def rounded(value, like):
        bits = np.float32(value).view(np.uint32)
        up = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
        quiet = np.uint16(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
        near = np.uint16(np.uint32(bits + up) >> np.uint32(16))
        nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        return quiet if nan else near

    return rounded


@inline
def exp(x):
    """e^x with a relative error of 2e-7, in a form that vectorises (Cephes' expf: 2^n times a polynomial). Clamped to
    about 1e-38 below -87 and 1e38 above 88; NaN stays NaN.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0)) if x == x else x
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@inline
def random15(index, seed, salt):
    """15 random bits for the element at `index`: murmur3's finaliser over a counter, keyed by two 32-bit integers."""
    x = np.uint32(np.uint32(index) ^ salt) * np.uint32(0x9E3779B9) + seed
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return np.uint32(x ^ np.uint32(x >> np.uint32(16))) >> np.uint32(17)
