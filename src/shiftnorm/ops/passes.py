"""The public passes and their gradients: ``moments``, ``apply`` and the two fused into ``normalize``.

The backward of a norm has two paths into x: through the planes themselves, ``gain * g``, and through their moments,
``dmean / S + 2 dvar (x - mean) / S``. Left to autograd they are two passes and a sum. Here they are one: the second
node hands g down a private edge unscaled and leaves its gain in a box that both nodes know; once autograd has walked
the small (N, C) graph in between, the first node does everything in a single pass. Both nodes together keep x once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shiftnorm.ops.dispatch import Backend, choose, is_batched, is_traced
from shiftnorm.ops.eager import EagerBackend, accumulation_dtype, as_planes, elements_per_plane, spatial_dims
from shiftnorm.ops.triton_backend import TritonBackend
from shiftnorm.ops.types import Affine, Moments

__all__ = ["apply", "moments", "normalize"]

_eager = EagerBackend()  # its moments pass is differentiable and traces


def moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    """Mean and biased variance of every plane of x, in float32 at least: the first pass.

    Example:
        >>> moments(torch.tensor([[[1.0, 3.0]]])).mean
        tensor([[2.]])

    Args:
        x: (N, C, *), floating point.
        mask: (N, 1, *) or broadcastable to it without the channel axis growing: only elements where it is nonzero count
            (padding, a crop). A plane without any gets mean 0 and variance 0.

    Returns:
        Moments of shape (N, C); differentiable.

    Raises:
        TypeError: if x is not floating point.
        ValueError: if x has fewer than two dimensions, or the mask does not fit it.
    """
    _check_planes("moments", x)
    if mask is not None:
        return _masked_moments(x, mask)
    count = elements_per_plane(x)
    if is_traced(x):
        return Moments(*_traced_moments(x), count)
    mean, var, _ = _First.apply(x, _Box(choose(x), fused=False))  # pyright: ignore
    return Moments(mean, var, count)


def apply(x: Tensor, m: Moments, affine: Affine) -> Tensor:
    """``gain * (x - m.mean) + mean`` in x's dtype and memory format: the second pass.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> apply(x, moments(x), Affine(torch.tensor([[2.0]]), torch.tensor([[0.0]])))
        tensor([[[-2.,  2.]]])

    Args:
        x: (N, C, *).
        m: the moments the affine is centred on; their mean broadcasts to (N, C).
        affine: gain and new mean, broadcastable to (N, C).
    """
    _check_planes("apply", x)
    if is_traced(x):
        return _plain_apply(x, m.mean, affine)
    mean, var, gain, new = _widened(x, m.mean, m.var, affine.gain, affine.mean)
    return _Second.apply(x, mean, var, gain, new, _Box(choose(x), fused=False))  # pyright: ignore


def normalize(
    x: Tensor, to_affine: Callable[[Moments], Affine], *, mask: Tensor | None = None, constant: bool = False
) -> Tensor:
    """Moments of x, what ``to_affine`` makes of them, applied to x: a whole norm, forward and backward fused.

    Example:
        >>> x = torch.randn(2, 3, 8, 8)
        >>> y = normalize(x, lambda m: Affine(torch.rsqrt(m.var + 1e-5), torch.zeros_like(m.mean)))
        >>> torch.allclose(y, torch.nn.functional.instance_norm(x), atol=1e-5)
        True

    Args:
        x: (N, C, *), floating point.
        to_affine: any differentiable function on (N, C) tensors. It runs outside autocast, on float32 at least.
        mask: as in :func:`moments`; padded positions do not count, and receive the same affine as the others.
        constant: treat the moments as constants, so that the gradient into x is ``gain * g``.

    Returns:
        Tensor of x's shape, dtype and memory format.
    """
    _check_planes("normalize", x)
    if mask is not None or constant:
        m = moments(x.detach() if constant else x, mask)
        return apply(x, m, outside_autocast(x, to_affine, m))
    count = elements_per_plane(x)
    if is_traced(x):
        m = Moments(*_traced_moments(x), count)
        return _plain_apply(x, m.mean, outside_autocast(x, to_affine, m))
    box = _Box(choose(x), fused=True)
    mean, var, carrier = _First.apply(x, box)  # pyright: ignore
    affine = outside_autocast(x, to_affine, Moments(mean, var, count))
    gain, new = _widened(x, affine.gain, affine.mean)
    return _Second.apply(carrier, mean, var, gain, new, box)  # pyright: ignore


def _check_planes(who: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{who}: expected a floating-point tensor, got {x.dtype}. Convert it with x.float().")
    if x.dim() < 2:
        raise ValueError(f"{who}: expected x of shape (N, C, *), got {tuple(x.shape)}.")


def outside_autocast(x: Tensor, to_affine: Callable[[Moments], Affine], m: Moments) -> Affine:
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return to_affine(m)
    return to_affine(m)


def _widened(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    shape, dtype = x.shape[:2], accumulation_dtype(x)
    return tuple(tensor.to(dtype).expand(shape).contiguous() for tensor in coefficients)


def _traced_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.device.type != "cpu" or not torch.compiler.is_compiling() or x.dim() == 2 or x.numel() == 0:
        return _eager.moments(x)
    return _moments_in_two_steps(x)


def _moments_in_two_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    # Of large planes a compiler for CPUs sums twice in less time than it takes for var_mean, once by Welford. About any
    # constant c the variance is the mean of (x - c)^2 less (mean - c)^2. About the mean itself, detached, that term is
    # 0, and gradients of any order are right without a sum over x for what c depends on.
    wide, dims = x.to(accumulation_dtype(x)), spatial_dims(x)
    mean = wide.mean(dims)
    fixed = mean.detach()
    return mean, (wide - as_planes(fixed, x)).square().mean(dims) - (mean - fixed).square()


def _plain_apply(x: Tensor, center: Tensor, affine: Affine) -> Tensor:
    # The centre is detached and its gradient carried by the (N, C) term, which is zero in value: a compiler then has no
    # third reduction over x to make.
    wide = x.to(accumulation_dtype(x))
    fixed = center.detach()
    gain, new = (tensor.expand(x.shape[:2]) for tensor in affine)
    shift = new - gain * (center - fixed)
    return (as_planes(gain, x) * (wide - as_planes(fixed, x)) + as_planes(shift, x)).to(x.dtype)


class _Box:
    """What the two nodes of one norm tell each other, past autograd."""

    __slots__ = ("backend", "fused", "message")

    def __init__(self, backend: Backend, *, fused: bool) -> None:
        self.backend = backend
        self.fused = fused
        # x, mean, var, and the gain g still lacks; None if g is whole
        self.message: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None


class _First(torch.autograd.Function):
    """x to its moments, and to itself along the private edge."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, box: _Box) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        mean, var = box.backend.moments(x)
        ctx.save_for_backward(x, mean, var)
        ctx.set_materialize_grads(False)
        ctx.box = box
        return mean, var, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dmean: Tensor | None, dvar: Tensor | None, g: Tensor | None) -> Any:  # pyright: ignore
        box: _Box = ctx.box
        message, box.message = box.message, None
        if message is None or g is None:
            # The second node did not run, or ran honestly: g, if there is one, is already a gradient of x.
            x, mean, _ = ctx.saved_tensors
            if g is None and dmean is not None and dvar is not None and _is_for_kernels(box.backend, dmean, dvar):
                size = elements_per_plane(x)
                return box.backend.apply(x, *_widened(x, dvar * (2 / size), mean, dmean / size)), None
            return through_moments(x, mean, dmean, dvar, g), None
        x, mean, var, gain = message
        if gain is None:
            return through_moments(x, mean, dmean, dvar, g), None
        size = elements_per_plane(x)
        slope = torch.zeros_like(mean) if dvar is None else dvar * (2 / size)
        offset = torch.zeros_like(mean) if dmean is None else dmean / size
        return box.backend.combine(g, x, gain, mean, var, slope, offset), None


class _Second(torch.autograd.Function):
    """x to ``gain * (x - center) + mean``; keeps x only if nobody before it does and the gain asks for it."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, x: Tensor, center: Tensor, var: Tensor, gain: Tensor, mean: Tensor, box: _Box
    ) -> Tensor:
        ctx.box = box
        ctx.borrows = box.fused and ctx.needs_input_grad[0]
        keeps = ctx.needs_input_grad[3] and not ctx.borrows
        ctx.save_for_backward(gain, *((x, center, var) if keeps else ()))
        return box.backend.apply(x, gain, center, mean)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore
        needs_x, needs_center, _, needs_gain, needs_mean, _ = ctx.needs_input_grad
        box: _Box = ctx.box
        gain, *kept = ctx.saved_tensors
        # x is unpacked once, here, and handed on: saved-tensor hooks (checkpointing, offloading) see one activation.
        x_center_var = ctx.next_functions[0][0].saved_tensors if ctx.borrows else kept
        to_be_differentiated = torch.is_grad_enabled() or is_batched(g)  # or batched: kernels and buffers cannot
        total = product = dx = None
        if needs_gain:
            sums = _plain_sums if to_be_differentiated else box.backend.reduce
            total, product = sums(g, *x_center_var)
        elif needs_mean or needs_center:
            total = _plain_sum(g)
        # An earlier walk may have ended here, without the first node: always written anew.
        box.message = (*x_center_var, None if to_be_differentiated else gain) if ctx.borrows else None
        if ctx.borrows and not to_be_differentiated:
            dx = g
        elif needs_x and to_be_differentiated:
            dx = (as_planes(gain, g) * g).to(g.dtype)
        elif needs_x:
            zero = torch.zeros_like(gain)
            backend = box.backend if box.backend.unsupported(g) is None else _eager
            dx = backend.apply(g, gain, zero, zero)
        dcenter = -gain * total if needs_center and total is not None else None
        return dx, dcenter, None, product, total if needs_mean else None, None


def _is_for_kernels(backend: Backend, *gradients: Tensor) -> bool:
    """Whether gradients can go through kernels that are faster than formulas, and know neither graphs nor batches."""
    if torch.is_grad_enabled() or not isinstance(backend, TritonBackend):
        return False
    return not any(is_batched(g) for g in gradients)


def _plain_sum(g: Tensor) -> Tensor:
    wide, dims = g.to(accumulation_dtype(g)), spatial_dims(g)
    return wide.sum(dims) if dims else wide


def _plain_sums(g: Tensor, x: Tensor, center: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    del var
    wide = g.to(accumulation_dtype(g))
    return _plain_sum(wide), _plain_sum(wide * (x.to(wide.dtype) - as_planes(center, g)))


def through_moments(
    x: Tensor, mean: Tensor, dmean: Tensor | None, dvar: Tensor | None, g: Tensor | None
) -> Tensor | None:
    size = elements_per_plane(x)
    dx = None
    if dvar is not None:
        dx = as_planes(dvar * (2 / size), x) * (x.to(mean.dtype) - as_planes(mean, x))
    if dmean is not None:
        spread = as_planes(dmean / size, x)
        dx = spread.expand_as(x) if dx is None else dx + spread
    if dx is None:
        return g
    return dx.to(x.dtype) if g is None else (dx + g).to(x.dtype)


class _MaskedMoments(torch.autograd.Function):
    """Weighted moments that keep x and nothing else of its size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        ctx.kernels = backend if isinstance(backend := choose(x), TritonBackend) else None
        mean, var = (
            _weighted_moments(x, weight, count) if ctx.kernels is None else ctx.kernels.masked_moments(x, weight)
        )
        ctx.save_for_backward(x, weight, count, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, dvar: Tensor) -> Any:  # pyright: ignore
        x, weight, count, mean = ctx.saved_tensors
        if ctx.kernels is not None and not torch.is_grad_enabled() and not is_batched(dmean):
            slope, offset = _widened(x, 2 * dvar / count, dmean / count)
            return ctx.kernels.masked_combine(None, x, weight, None, mean, slope, offset), None, None
        wide = x.to(mean.dtype) - as_planes(mean, x)
        dx = wide * as_planes(2 * dvar / count, x) + as_planes(dmean / count, x)
        return (dx * weight).to(x.dtype), None, None


def _masked_moments(x: Tensor, mask: Tensor) -> Moments:
    expected = (x.shape[0], 1, *x.shape[2:])
    if mask.dim() != x.dim() or any(size not in (1, full) for size, full in zip(mask.shape, expected, strict=True)):
        raise ValueError(
            f"moments: expected a mask of shape {expected} or broadcastable to it, got {tuple(mask.shape)}. "
            "A padding mask (N, L) for x (N, C, L) is mask.unsqueeze(1)."
        )
    weight = (mask != 0).to(accumulation_dtype(x)).expand(expected)
    elements = weight.sum(spatial_dims(x)) if x.dim() > 2 else weight
    count = elements.clamp(min=1)
    weighted = _weighted_moments if is_traced(x) else _MaskedMoments.apply
    mean, var = weighted(x, weight, count)  # pyright: ignore
    return Moments(mean, var, elements)


def _weighted_moments(x: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    dims = spatial_dims(x)
    wide = torch.where(weight > 0, x.to(weight.dtype), 0.0)  # padding may be inf or NaN
    mean = (wide * weight).sum(dims) / count if dims else wide * weight
    deviation = (wide - as_planes(mean, x)) * weight
    return mean, deviation.square().sum(dims) / count if dims else torch.zeros_like(mean)
