"""The second pass together with what follows a norm in a network: a residual sum and an activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftnorm.ops.dispatch import choose, is_batched, is_traced
from shiftnorm.ops.eager import accumulation_dtype, as_planes, spatial_dims
from shiftnorm.ops.types import Affine, Moments

__all__ = ["apply_activated"]


def _unchanged(z: Tensor) -> Tensor:
    return z


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _unchanged,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


def apply_activated(
    x: Tensor, m: Moments, affine: Affine, *, residual: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """``activation(gain * (x - m.mean) + mean + residual)``, in one pass where Triton runs.

    The sum and the activation are computed in float32 at least and rounded once. Their input is not kept: backward
    computes it again, in one pass that sums and one that gives the gradients of x and the residual.

    Example:
        >>> from shiftnorm.ops import moments
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> apply_activated(x, moments(x), Affine(torch.tensor([[2.0]]), torch.tensor([[1.0]])))
        tensor([[[0., 3.]]])

    Args:
        x: (N, C, *).
        m: the moments the affine is centred on.
        affine: gain and new mean, broadcastable to (N, C).
        residual: of x's shape, added in front of the activation.
        activation: ``"relu"``, ``"silu"``, ``"gelu"`` (the exact one) or ``"none"``.

    Returns:
        Tensor of x's shape, dtype and memory format; differentiable, also twice.

    Raises:
        ValueError: if the activation is unknown or the residual has another shape than x.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"apply_activated: expected activation to be one of {', '.join(_ACTIVATIONS)}, got {activation!r}."
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"apply_activated: expected a residual of x's shape {tuple(x.shape)}, got {tuple(residual.shape)}."
        )
    shape, wide = x.shape[:2], accumulation_dtype(x)
    gain, center, mean = (row.to(wide).expand(shape) for row in (affine.gain, m.mean, affine.mean))
    if is_traced(x) or choose(x).name != "triton":
        return _plain(x, gain, center, mean, residual, activation)
    return _Activated.apply(x, gain, center, mean, residual, activation)


def _plain(x: Tensor, gain: Tensor, center: Tensor, mean: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    return _ACTIVATIONS[activation](_input(x, gain, center, mean, residual)).to(x.dtype)


def _input(x: Tensor, gain: Tensor, center: Tensor, mean: Tensor, residual: Tensor | None) -> Tensor:
    z = as_planes(gain, x) * (x.to(gain.dtype) - as_planes(center, x)) + as_planes(mean, x)
    return z if residual is None else z + residual


def _derivative(z: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return (z > 0).to(z.dtype)
    if activation == "silu":
        share = torch.sigmoid(z)
        return share * (1 + z * (1 - share))
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.ones_like(z)


class _Activated(torch.autograd.Function):
    """The kernels, and plain formulas where their gradient is itself to be differentiated."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (autograd's takes any arguments)
        ctx: Any, x: Tensor, gain: Tensor, center: Tensor, mean: Tensor, residual: Tensor | None, activation: str
    ) -> Tensor:
        from shiftnorm.ops import triton_passes

        ctx.save_for_backward(x, gain, center, mean, residual)
        ctx.activation = activation
        return triton_passes.apply(x, gain, center, mean, residual, activation)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        x, gain, center, mean, residual = ctx.saved_tensors
        given = (x, gain, center, mean, residual)
        if torch.is_grad_enabled() or is_batched(g):
            h = g.to(gain.dtype) * _derivative(_input(*given), ctx.activation)
            dims = spatial_dims(x)
            total = h.sum(dims) if dims else h
            product = h * (x.to(gain.dtype) - as_planes(center, x))
            product = product.sum(dims) if dims else product
            dx = (as_planes(gain, x) * h).to(x.dtype)
            dresidual = None if residual is None else h.to(residual.dtype)
        else:
            from shiftnorm.ops import triton_passes

            behind = mean, residual, ctx.activation
            total, product = triton_passes.reduce(g, x, center, gain, *behind)
            dx, dresidual = triton_passes.combine(g, x, gain, center, None, None, *behind)
        return dx, product, -gain * total, total, dresidual, None
