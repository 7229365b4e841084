"""Triton, where it is installed, and where in x a program stands: what all kernels begin with."""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles these functions and may be missing; to a type checker their values have no types.

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # tools that import every module also run where the backend declines everything

    class _Missing:
        """In place of Triton; the functions below are then never called."""

        jit = staticmethod(lambda function: function)

    triton = tl = _Missing

__all__ = ["INTERPRETED", "map_place", "sum_place", "tl", "triton"]


@triton.jit
def map_place(
    planes,
    length,
    splits,
    plane_stride,
    place_stride,
    PLANE_UNIT: tl.constexpr,
    PLACE_UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Where this program of a map stands: the last tiles first, which the pass before has left in the cache.

    Gives the numbers of its planes, which of them there are, which elements there are, the first place, and addresses.
    """
    planes = planes * PLANE_UNIT
    length = length * PLACE_UNIT
    plane_stride = plane_stride * PLACE_UNIT
    place_stride = place_stride * PLANE_UNIT
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(planes, PLANES)
    first = (pid % blocks).to(tl.int64) * PLANES
    start = (pid // blocks % splits).to(tl.int64) * PLACES
    group = (pid // blocks // splits).to(tl.int64)
    plane = tl.arange(0, PLANES)
    place = tl.arange(0, PLACES)
    inside = first + plane < planes
    live = inside[:, None] & (start + place < length)[None, :]
    origin = group * length * place_stride + first * plane_stride + start * place_stride
    tile = plane[:, None] * plane_stride + place[None, :] * place_stride
    number = group * planes + first + plane
    return number, inside, live, start, origin, tile


@triton.jit
def sum_place(
    planes,
    length,
    segment,
    splits,
    plane_stride,
    place_stride,
    channels,
    PLANE_UNIT: tl.constexpr,
    PLACE_UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Where this program of a sum stands.

    Gives the numbers of its planes, where their results go, which planes there are, the first place, how many places,
    and addresses.
    """
    planes = planes * PLANE_UNIT
    length = length * PLACE_UNIT
    plane_stride = plane_stride * PLACE_UNIT
    place_stride = place_stride * PLANE_UNIT
    pid = tl.program_id(0)
    blocks = tl.cdiv(planes, PLANES)
    first = (pid % blocks).to(tl.int64) * PLANES
    split = pid // blocks % splits
    group = (pid // blocks // splits).to(tl.int64)
    start = split.to(tl.int64) * segment
    limit = length
    if not WHOLE:
        limit = tl.minimum(length - start, segment).to(tl.int32)
    plane = tl.arange(0, PLANES)
    place = tl.arange(0, PLACES)
    inside = first + plane < planes
    origin = group * length * place_stride + first * plane_stride + start * place_stride
    tile = plane[:, None] * plane_stride + place[None, :] * place_stride
    number = group * planes + first + plane
    at = number
    if not WHOLE:
        at = (number // channels * splits + split) * channels + number % channels
    return number, at, inside, start, limit, origin, tile


INTERPRETED = type(map_place).__name__ == "InterpretedFunction"
"""Whether TRITON_INTERPRET was set when this module was imported: the kernels then run on CPU tensors, slowly."""
