"""The passes as operators of torch: ``torch.ops.shiftnorm.moments`` and the others, for graphs that keep them whole.

``import shiftnorm.ops.triton_ops`` registers them; the norms do not need them. Under torch.compile the norms are plain
formulas, which the compiler fuses with what stands around them; an operator instead stays the kernel it is, also in an
exported program. Each has a fake kernel, a gradient made of the same operators (so that it can be differentiated again)
and a FLOP formula. Tensors that the Triton backend declines are computed by the eager passes, and so are those with a
size that a graph leaves open: a launch is cut for numbers, and a program compiled ahead of time would keep those of its
example.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch's functions for registering operators are only partly annotated.

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

from shiftnorm.ops.eager import EagerBackend, accumulation_dtype
from shiftnorm.ops.triton_backend import TritonBackend

__all__ = ["apply", "combine", "moments", "reduce"]

_triton = TritonBackend()
_eager = EagerBackend()


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    # A compiler may look into a triton_op, and does so with tensors that have no data: not so into interpreted kernels.
    opaque = find_spec("triton") is None or os.environ.get("TRITON_INTERPRET", "0") != "0"
    return (custom_op if opaque else triton_op)(f"shiftnorm::{name}", mutates_args=())


def _is_for_kernels(x: Tensor) -> bool:
    return not any(isinstance(size, torch.SymInt) for size in x.shape) and _triton.unsupported(x) is None


@_operator("moments")
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every plane of x (N, C, *), (N, C) each, in float32 at least.

    Example:
        >>> torch.ops.shiftnorm.moments(torch.tensor([[[1.0, 3.0]]]))
        (tensor([[2.]]), tensor([[1.]]))
    """
    if not _is_for_kernels(x):
        return _eager.moments(x)
    from shiftnorm.ops import triton_passes

    return triton_passes.moments(x, wrap=wrap_triton)


@_operator("apply")
def apply(x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
    """``gain * (x - center) + mean`` with coefficients (N, C), rounded once to x's dtype.

    Example:
        >>> one = torch.ones(1, 1)
        >>> torch.ops.shiftnorm.apply(torch.tensor([[[1.0, 3.0]]]), 2 * one, 2 * one, 5 * one)
        tensor([[[3., 7.]]])
    """
    if not _is_for_kernels(x):
        return _eager.apply(x, gain, center, mean)
    from shiftnorm.ops import triton_passes

    return triton_passes.apply(x, gain, center, mean, wrap=wrap_triton)


@_operator("reduce")
def reduce(g: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over each plane of g and of ``g * (x - center)``, (N, C) each.

    Example:
        >>> torch.ops.shiftnorm.reduce(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1))
        (tensor([[3.]]), tensor([[4.]]))
    """
    if not _is_for_kernels(x):
        return _eager.reduce(g, x, center, center)
    from shiftnorm.ops import triton_passes

    return triton_passes.reduce(g, x, center, wrap=wrap_triton)


@_operator("combine")
def combine(g: Tensor, x: Tensor, gain: Tensor, center: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """``gain * g + slope * (x - center) + offset`` with coefficients (N, C), in x's dtype.

    Example:
        >>> one = torch.ones(1, 1)
        >>> torch.ops.shiftnorm.combine(torch.ones(1, 1, 2), torch.tensor([[[1.0, 3.0]]]), one, one, one, one)
        tensor([[[2., 4.]]])
    """
    if not _is_for_kernels(x):
        return _eager.combine(g, x, gain, center, center, slope, offset)
    from shiftnorm.ops import triton_passes

    return triton_passes.combine(g, x, gain, center, slope, offset, wrap=wrap_triton)[0]


@moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[:2], dtype=accumulation_dtype(x))
    return mean, torch.empty_like(mean)


@apply.register_fake
def _(x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
    del gain, center, mean
    return torch.empty_like(x)


@reduce.register_fake
def _(g: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    del g, center
    total = x.new_empty(x.shape[:2], dtype=accumulation_dtype(x))
    return total, torch.empty_like(total)


@combine.register_fake
def _(g: Tensor, x: Tensor, gain: Tensor, center: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    del g, gain, center, slope, offset
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _moments_keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _moments_gradient(ctx: Any, dmean: Tensor, dvar: Tensor) -> Tensor:
    x, mean = ctx.saved_tensors
    size = max(prod(x.shape[2:]), 1)
    return apply(x, dvar * (2 / size), mean, dmean / size)


def _apply_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    x, gain, center, _ = ctx.saved_tensors
    total, product = reduce(dy, x, center)
    zero = torch.zeros_like(total)
    return apply(dy, gain, zero, zero).to(x.dtype), product, -gain * total, total


def _reduce_gradient(ctx: Any, dtotal: Tensor, dproduct: Tensor) -> tuple[Tensor, ...]:
    g, x, center = ctx.saved_tensors
    zero = torch.zeros_like(dtotal)
    total, _ = reduce(g, x, center)
    return apply(x, dproduct, center, dtotal).to(g.dtype), apply(g, dproduct, zero, zero).to(x.dtype), -dproduct * total


def _combine_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    g, x, gain, center, slope, _ = ctx.saved_tensors
    zero = torch.zeros_like(gain)
    total, product = reduce(dy, x, center)
    _, dgain = reduce(dy, g, zero)
    dg, dx = (apply(dy, row, zero, zero).to(tensor.dtype) for row, tensor in ((gain, g), (slope, x)))
    return dg, dx, dgain, -slope * total, product, total


moments.register_autograd(_moments_gradient, setup_context=_moments_keep)
apply.register_autograd(_apply_gradient, setup_context=_keep)
reduce.register_autograd(_reduce_gradient, setup_context=_keep)
combine.register_autograd(_combine_gradient, setup_context=_keep)

# Additions and multiplications for every element of x; the (N, C) rest is not counted.
for _name, _operations, _place in (("moments", 4, 0), ("apply", 3, 0), ("reduce", 4, 1), ("combine", 5, 1)):

    @register_flop_formula(getattr(torch.ops.shiftnorm, _name))
    def _(*shapes: Any, out_shape: Any = None, operations: int = _operations, place: int = _place, **rest: Any) -> int:
        del out_shape, rest
        return operations * prod(shapes[place])
