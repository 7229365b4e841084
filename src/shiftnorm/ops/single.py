"""Norms by the moments of planes, groups or samples as one kernel each way, where x need not be read twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shiftnorm.ops.dispatch import is_batched
from shiftnorm.ops.eager import as_planes, spatial_dims
from shiftnorm.ops.on_chip import sets_on_chip
from shiftnorm.ops.triton_launch import SetLaunch

__all__ = ["normalize_at_once"]


def normalize_at_once(x: Tensor, sharing: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor | None:
    """``weight * (x - mean) / sqrt(var + eps) + bias`` where Triton runs and the planes that share moments fit on chip.

    It reads x once and writes y; backward reads g and x once and writes dx.

    Example:
        >>> normalize_at_once(torch.randn(2, 4, 3, 3), 2, None, None, 1e-5) is None  # C++ runs on a CPU
        True

    Args:
        x: (N, C, *).
        sharing: how many consecutive channels of a sample share a mean and a variance; divides C.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance.

    Returns:
        Tensor of x's shape, dtype and memory format, differentiable, also twice; None where the two passes are to run.
    """
    launch = sets_on_chip(x, sharing, weight, bias)
    if launch is None:
        return None
    return _AtOnce.apply(x, *(None if row is None else row.contiguous() for row in (weight, bias)), eps, launch)


class _AtOnce(torch.autograd.Function):
    """The kernels, and plain formulas where their gradient is itself to be differentiated."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (autograd's takes any arguments)
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, launch: SetLaunch
    ) -> Tensor:
        from shiftnorm.ops import triton_single

        y, moments = triton_single.forward(x, launch, weight, bias, eps)
        ctx.save_for_backward(x, weight, moments)
        ctx.eps, ctx.launch = eps, launch
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        x, weight, moments = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(g):
            dx, sums = _plain_gradients(g, x, weight, ctx.launch.sharing, ctx.eps)
        else:
            from shiftnorm.ops import triton_single

            of = {"of_x": needs_x, "of_parameters": needs_weight or needs_bias}
            dx, sums = triton_single.backward(g, x, ctx.launch, weight, moments, **of)
        dweight = sums[0].to(weight.dtype) if needs_weight and sums is not None else None
        dbias = sums[1].to(ctx.bias_dtype) if needs_bias and sums is not None else None
        return dx, dweight, dbias, None, None


def _plain_gradients(
    g: Tensor, x: Tensor, weight: Tensor | None, sharing: int, eps: float
) -> tuple[Tensor | None, Tensor | None]:
    """What the kernel computes, in formulas that can be differentiated again."""
    dims = spatial_dims(x)
    h = g.float() if weight is None else g.float() * as_planes(weight.float().unsqueeze(0), x)
    center = _over_sets(x.float(), sharing)
    z = x.float() - center
    scale = torch.rsqrt(_over_sets(z.square(), sharing) + eps)
    z = z * scale
    dx = scale * (h - _over_sets(h, sharing) - z * _over_sets(z * h, sharing))
    sums = torch.stack([(g.float() * z).sum((0, *dims)), g.float().sum((0, *dims))])
    return dx.to(x.dtype), sums


def _over_sets(value: Tensor, sharing: int) -> Tensor:
    """The mean over each set of channels and space, for every channel."""
    samples, channels = value.shape[:2]
    rest = value.shape[2:]
    sets = value.reshape(samples, channels // sharing, sharing, *rest)
    mean = sets.mean(tuple(range(2, sets.dim())), keepdim=True)
    return mean.expand(samples, channels // sharing, sharing, *(1 for _ in rest)).reshape(
        samples, channels, *(1 for _ in rest)
    )
