"""Triton, where it is installed; where in x a program stands, and what it reads and writes there.

Sizes come divided by a unit that is known when a kernel is compiled: Triton takes a number for a multiple of 16 or of
nothing, and would load 14 x 14 planes, or 24 channels-last ones, one element at a time. Base addresses are 64-bit,
offsets inside a tile are 32-bit.
"""

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

__all__ = ["INTERPRETED", "column", "in_elements", "kept", "loaded", "mask_of", "place_of", "split_of", "tl", "triton"]


@triton.jit
def in_elements(planes, length, UNIT: tl.constexpr, ROWS: tl.constexpr):
    """Planes of a group, places of a plane, and how far apart two neighbours of either kind lie; ROWS is contiguous."""
    if ROWS:
        length = length * UNIT
        plane_stride = length
        place_stride = 1
    else:
        planes = planes * UNIT
        plane_stride = 1
        place_stride = planes
    return planes, length, plane_stride, place_stride


@triton.jit
def place_of(
    pid, planes, length, steps, splits, plane_stride, place_stride, PLANES: tl.constexpr, PLACES: tl.constexpr
):
    """Where program pid stands: at one of the splits, ``steps`` tiles long, of PLANES planes of one group.

    Gives the numbers of its planes, which of them there are, the split, its first place and how many places it has,
    and the address of its first tile as a base and offsets.
    """
    blocks = tl.cdiv(planes, PLANES)
    first = (pid % blocks).to(tl.int64) * PLANES
    split = (pid // blocks % splits).to(tl.int64)
    group = (pid // blocks // splits).to(tl.int64)
    plane = tl.arange(0, PLANES)
    inside = first + plane < planes
    start = split * steps * PLACES
    limit = tl.minimum(length - start, steps * PLACES).to(tl.int32)
    origin = group * length * place_stride + first * plane_stride + start * place_stride
    tile = plane[:, None] * plane_stride + tl.arange(0, PLACES)[None, :] * place_stride
    return group * planes + first + plane, inside, split, start, limit, origin, tile


@triton.jit
def split_of(rows, splits, PLANES: tl.constexpr, SPLITS: tl.constexpr):
    """Where a program that joins splits stands: the numbers of its planes, which of them there are, the same of
    what the splits left, (splits, rows)."""
    number = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    split = tl.arange(0, SPLITS)
    inside = number < rows
    live = inside[:, None] & (split < splits)[None, :]
    return number, inside, split[None, :].to(tl.int64) * rows + number[:, None], live


@triton.jit
def column(row_ptr, number, inside):
    """What a tensor (N, C) has for each plane, beside the tile; 0 without a tensor."""
    value = 0.0
    if row_ptr is not None:
        value = tl.load(row_ptr + number, mask=inside, other=0.0)[:, None]
    return value


@triton.jit
def loaded(ptr, origin, tile, live):
    """A tile of a tensor laid out as x is."""
    return tl.load(ptr + origin + tile, mask=live, other=0.0).to(tl.float32)


@triton.jit
def kept(ptr, value, origin, tile, live):
    """Writes such a tile."""
    tl.store(ptr + origin + tile, value.to(ptr.dtype.element_ty), mask=live)


@triton.jit
def mask_of(mask_ptr, number, length, start, sharing, live, PLACES: tl.constexpr):
    """Which elements of a tile the mask lets through; ``sharing`` planes have one row of it in common."""
    row = (number // sharing * length)[:, None] + start + tl.arange(0, PLACES)[None, :]
    return tl.load(mask_ptr + row, mask=live, other=0) != 0


INTERPRETED = type(place_of).__name__ == "InterpretedFunction"
"""Whether TRITON_INTERPRET was set when this module was imported: the kernels then run on CPU tensors, slowly."""
