"""Vectors of sixteen float32, for loops that the compiler does not vectorise by itself.

LLVM keeps a vector in one register, or in several on processors with narrower ones. Only compiled loops can call these
functions; a memory location is a two-dimensional array, a row and a column.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model
from numba.np.arrayobj import make_array

LANES = 16
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


class _Float32x16(types.Type):
    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


_type = _Float32x16()


@register_model(_Float32x16)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _VECTOR)


def _splat(builder, scalar):
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _address(context, builder, array_type, array, row, column):
    """The address of an element of a C-contiguous array."""
    found = make_array(array_type)(context, builder, array)
    columns = builder.extract_value(found.shape, 1)
    at = builder.add(builder.mul(row, columns), column)
    return builder.gep(found.data, [at])


def _llvm(builder, name, *values):
    """Call an LLVM vector intrinsic."""
    kind = ir.FunctionType(_VECTOR, [value.type for value in values])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, values)


@intrinsic
def load(typing, array, row, column):
    """array[row, column : column + LANES]."""

    def generate(context, builder, signature, values):
        address = _address(context, builder, signature.args[0], *values)
        loaded = builder.load(builder.bitcast(address, _VECTOR.as_pointer()))
        loaded.align = 4
        return loaded

    return _type(array, types.int64, types.int64), generate


@intrinsic
def store(typing, array, row, column, vector):
    """array[row, column : column + LANES] = vector."""

    def generate(context, builder, signature, values):
        address = _address(context, builder, signature.args[0], *values[:3])
        stored = builder.store(values[3], builder.bitcast(address, _VECTOR.as_pointer()))
        stored.align = 4
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, _type), generate


@intrinsic
def splat(typing, scalar):
    """The same float32 in all lanes."""
    return _type(types.float32), lambda context, builder, signature, values: _splat(builder, values[0])


def _elementwise(count, operation):
    """A function of `count` vectors; `operation` adds its code to a builder."""

    def generate(context, builder, signature, values):
        return operation(builder, *values)

    kinds = {
        1: lambda typing, a: (_type(_type), generate),
        2: lambda typing, a, b: (_type(_type, _type), generate),
        3: lambda typing, a, b, c: (_type(_type, _type, _type), generate),
        4: lambda typing, a, b, c, d: (_type(_type, _type, _type, _type), generate),
    }
    return intrinsic(kinds[count])


def _two_to_the(builder, a):
    integers = ir.VectorType(ir.IntType(32), LANES)
    bits = builder.add(builder.fptosi(a, integers), ir.Constant(integers, [127] * LANES))
    return builder.bitcast(builder.shl(bits, ir.Constant(integers, [23] * LANES)), _VECTOR)


add = _elementwise(2, lambda builder, a, b: builder.fadd(a, b))
sub = _elementwise(2, lambda builder, a, b: builder.fsub(a, b))
mul = _elementwise(2, lambda builder, a, b: builder.fmul(a, b))
# Returns the second if either is NaN.
largest = _elementwise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
fma = _elementwise(3, lambda builder, a, b, c: _llvm(builder, "fma", a, b, c))  # a · b + c
floor = _elementwise(1, lambda builder, a: _llvm(builder, "floor", a))
power_of_two = _elementwise(1, _two_to_the)  # 2^a for integers from -126 to 127
# The third in lanes where a < b, else the fourth.
where_less = _elementwise(4, lambda builder, a, b, c, d: builder.select(builder.fcmp_ordered("<", a, b), c, d))


@intrinsic
def between(typing, first, start, stop, inside, outside):
    """`inside` in lanes whose index, counted from `first`, is in [start, stop); else `outside`."""

    def generate(context, builder, signature, values):
        first, start, stop, inside, outside = values
        integers = ir.VectorType(ir.IntType(32), LANES)
        lanes = ir.Constant(integers, list(range(LANES)))

        def spread(number):
            return _splat(builder, builder.trunc(builder.sub(number, first), ir.IntType(32)))

        seen = builder.and_(
            builder.icmp_signed(">=", lanes, spread(start)), builder.icmp_signed("<", lanes, spread(stop))
        )
        return builder.select(seen, inside, outside)

    return _type(types.int64, types.int64, types.int64, _type, _type), generate


def _across(combine):
    def generate(context, builder, signature, values):
        vector, width = values[0], LANES
        while width > 1:  # fold the halves together
            width //= 2
            lanes, undefined = ir.VectorType(ir.IntType(32), width), ir.Constant(vector.type, ir.Undefined)
            low = builder.shuffle_vector(vector, undefined, ir.Constant(lanes, list(range(width))))
            high = builder.shuffle_vector(vector, undefined, ir.Constant(lanes, list(range(width, 2 * width))))
            vector = combine(builder, low, high)
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return intrinsic(lambda typing, a: (types.float32(_type), generate))


sum_across = _across(lambda builder, a, b: builder.fadd(a, b))
largest_across = _across(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
