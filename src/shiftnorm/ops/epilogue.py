"""The passes together with what follows a norm in a network: a residual sum and an activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftnorm.ops.dispatch import choose, is_batched, is_traced
from shiftnorm.ops.eager import accumulation_dtype, as_planes, elements_per_plane, spatial_dims
from shiftnorm.ops.passes import apply, moments, normalize, outside_autocast, through_moments
from shiftnorm.ops.types import Affine, Moments

__all__ = ["ACTIVATIONS", "apply_activated", "normalize_activated"]


def _unchanged(z: Tensor) -> Tensor:
    return z


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _unchanged,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}
"""The activations that can come along, by name."""


def normalize_activated(
    x: Tensor,
    to_affine: Callable[[Moments], Affine],
    *,
    residual: Tensor | None = None,
    activation: str = "relu",
    mask: Tensor | None = None,
    constant: bool = False,
) -> Tensor:
    """``activation(normalize(x, to_affine) + residual)``: a norm with what follows it, in two passes each way.

    Where Triton runs, the sum and the activation are part of the second pass and rounded once with it, and backward
    goes through them in the passes it makes anyway: their input is computed again, not kept. Elsewhere they follow.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> normalize_activated(x, lambda m: Affine(torch.rsqrt(m.var), torch.zeros_like(m.mean)))
        tensor([[[0., 1.]]])

    Args:
        x: (N, C, *), floating point.
        to_affine: as in ``normalize``.
        residual: of x's shape, added in front of the activation.
        activation: ``"relu"``, ``"silu"``, ``"gelu"`` (the exact one) or ``"none"``.
        mask: as in ``normalize``.
        constant: as in ``normalize``.

    Returns:
        Tensor of x's shape, dtype and memory format; differentiable, also twice.

    Raises:
        ValueError: if the activation is unknown or the residual has another shape than x.
    """
    if residual is None and activation == "none":
        return normalize(x, to_affine, mask=mask, constant=constant)
    _check("normalize_activated", x, residual, activation)
    if not _takes_kernels(x):
        return _followed(normalize(x, to_affine, mask=mask, constant=constant), residual, activation)
    if mask is not None or constant:
        m = moments(x.detach() if constant else x, mask)
        return apply_activated(x, m, outside_autocast(x, to_affine, m), residual=residual, activation=activation)
    between = _Between(activation)
    mean, var, carrier, other = _First.apply(x, residual, between)
    affine = outside_autocast(x, to_affine, Moments(mean, var, elements_per_plane(x)))
    gain, new = _rows(x, *affine)
    return _Second.apply(carrier, other, mean, gain, new, between)


def apply_activated(
    x: Tensor, m: Moments, affine: Affine, *, residual: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """``activation(gain * (x - m.mean) + mean + residual)``, in one pass where Triton runs.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> apply_activated(x, moments(x), Affine(torch.tensor([[2.0]]), torch.tensor([[1.0]])))
        tensor([[[0., 3.]]])

    Args:
        x: (N, C, *).
        m: the moments the affine is centred on.
        affine: gain and new mean, broadcastable to (N, C).
        residual: as in :func:`normalize_activated`.
        activation: as in :func:`normalize_activated`.

    Returns:
        Tensor of x's shape, dtype and memory format; differentiable, also twice.

    Raises:
        ValueError: if the activation is unknown or the residual has another shape than x.
    """
    if residual is None and activation == "none":
        return apply(x, m, affine)
    _check("apply_activated", x, residual, activation)
    if not _takes_kernels(x):
        return _followed(apply(x, m, affine), residual, activation)
    gain, center, new = _rows(x, affine.gain, m.mean, affine.mean)
    return _Second.apply(x, residual, center, gain, new, _Between(activation, joined=False))


def _check(who: str, x: Tensor, residual: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{who}: expected activation to be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"{who}: expected a residual of x's shape {tuple(x.shape)}, got {tuple(residual.shape)}.")


def _takes_kernels(x: Tensor) -> bool:
    return not is_traced(x) and choose(x).name == "triton"


def _followed(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    return ACTIVATIONS[activation](y if residual is None else y + residual).to(y.dtype)


def _rows(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    shape, wide = x.shape[:2], accumulation_dtype(x)
    return tuple(row.to(wide).expand(shape) for row in coefficients)


class _Between:
    """What the two nodes tell each other past autograd, as in ``passes``: what the second leaves the first to do."""

    __slots__ = ("activation", "joined", "left")

    def __init__(self, activation: str, *, joined: bool = True) -> None:
        self.activation = activation
        self.joined = joined
        # x, residual, center, and the gain and new mean by which g is still to be taken through the activation
        self.left: tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor] | None = None


class _First(torch.autograd.Function):
    """x to its moments; x and the residual to themselves, along edges that bring g as it came."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (autograd's takes any arguments)
        ctx: Any, x: Tensor, residual: Tensor | None, between: _Between
    ) -> Any:
        mean, var = choose(x).moments(x)
        ctx.save_for_backward(x, residual, mean)
        ctx.set_materialize_grads(False)
        ctx.between = between
        return mean, var, x[...], None if residual is None else residual[...]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        ctx: Any, dmean: Tensor | None, dvar: Tensor | None, g: Tensor | None, dresidual: Tensor | None
    ) -> Any:
        between: _Between = ctx.between
        left, between.left = between.left, None
        if left is None or g is None:  # the second node did not run, or did everything
            x, _, mean = ctx.saved_tensors
            return through_moments(x, mean, dmean, dvar, g), dresidual, None
        from shiftnorm.ops import triton_passes

        x, residual, mean, gain, new = left
        size = elements_per_plane(x)
        slope = torch.zeros_like(mean) if dvar is None else dvar * (2 / size)
        offset = torch.zeros_like(mean) if dmean is None else dmean / size
        return *triton_passes.combine(g, x, gain, mean, slope, offset, new, residual, between.activation), None


class _Second(torch.autograd.Function):
    """The kernels, and plain formulas where their gradient is itself to be differentiated."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        ctx: Any, x: Tensor, residual: Tensor | None, center: Tensor, gain: Tensor, new: Tensor, between: _Between
    ) -> Tensor:
        from shiftnorm.ops import triton_passes

        ctx.between = between
        ctx.borrows = between.joined and ctx.needs_input_grad[0]
        ctx.save_for_backward(gain, new, *(() if ctx.borrows else (x, residual, center)))
        return triton_passes.apply(x, gain, center, new, residual, between.activation)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (likewise)
        from shiftnorm.ops import triton_passes

        between: _Between = ctx.between
        gain, new, *kept = ctx.saved_tensors
        x, residual, center = ctx.next_functions[0][0].saved_tensors if ctx.borrows else kept
        between.left = None  # an earlier walk may have ended here, without the first node
        if torch.is_grad_enabled() or is_batched(g):
            z = as_planes(gain, x) * (x.to(gain.dtype) - as_planes(center, x)) + as_planes(new, x)
            h = g.to(gain.dtype) * _derivative(z if residual is None else z + residual, between.activation)
            dims = spatial_dims(x)
            product = h * (x.to(gain.dtype) - as_planes(center, x))
            total, product = (h.sum(dims), product.sum(dims)) if dims else (h, product)
            dx = (as_planes(gain, x) * h).to(x.dtype)
            dresidual = None if residual is None else h.to(residual.dtype)
        else:
            total, product = triton_passes.reduce(g, x, center, gain, new, residual, between.activation)
            if ctx.borrows:
                between.left = x, residual, center, gain, new
                dx, dresidual = g, None if residual is None else g
            else:
                behind = new, residual, between.activation
                dx, dresidual = triton_passes.combine(g, x, gain, center, None, None, *behind)
        return dx, dresidual, -gain * total, product, total, None


def _derivative(z: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return (z > 0).to(z.dtype)
    if activation == "silu":
        share = torch.sigmoid(z)
        return share * (1 + z * (1 - share))
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.ones_like(z)
