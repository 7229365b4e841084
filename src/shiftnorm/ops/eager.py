"""The four passes in plain torch: any device, dtype and memory format; the backend that never declines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["EagerBackend", "accumulation_dtype", "as_planes", "spatial_dims"]


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype moments are computed in: float64 for float64, float32 for everything smaller.

    Example:
        >>> accumulation_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def spatial_dims(x: Tensor) -> tuple[int, ...]:
    """The dimensions after (N, C).

    Example:
        >>> spatial_dims(torch.zeros(2, 3, 4, 5))
        (2, 3)
    """
    return tuple(range(2, x.dim()))


def as_planes(coefficient: Tensor, x: Tensor) -> Tensor:
    """View an (N, C) tensor so that it broadcasts against x (N, C, *).

    Example:
        >>> as_planes(torch.zeros(2, 3), torch.zeros(2, 3, 4, 5)).shape
        torch.Size([2, 3, 1, 1])
    """
    return coefficient.reshape(*coefficient.shape, *(1 for _ in spatial_dims(x)))


class EagerBackend:
    """Reference passes built from one torch operation after the other.

    Example:
        >>> EagerBackend().unsupported(torch.zeros(2, 3, dtype=torch.float16)) is None
        True
    """

    name = "eager"

    def unsupported(self, x: Tensor) -> str | None:
        """None: this backend takes every floating-point tensor.

        Example:
            >>> EagerBackend().unsupported(torch.zeros(2, 3))
        """
        del x
        return None

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance per plane, (N, C) each.

        Example:
            >>> EagerBackend().moments(torch.tensor([[[1.0, 3.0]]]))
            (tensor([[2.]]), tensor([[1.]]))
        """
        wide = x.to(accumulation_dtype(x))
        if x.dim() == 2:
            return wide.clone(), torch.zeros_like(wide)
        if x.numel() == 0:
            return wide.sum(spatial_dims(x)), wide.sum(spatial_dims(x))
        var, mean = torch.var_mean(wide, spatial_dims(x), correction=0)
        return mean, var

    def apply(self, x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
        """``gain * (x - center) + mean``, rounded once to x's dtype.

        Example:
            >>> one = torch.ones(1, 1)
            >>> EagerBackend().apply(torch.tensor([[[1.0, 3.0]]]), 2 * one, 2 * one, 5 * one)
            tensor([[[3., 7.]]])
        """
        y = x.to(accumulation_dtype(x)) - as_planes(center, x)
        return y.mul_(as_planes(gain, x)).add_(as_planes(mean, x)).to(x.dtype)

    def reduce(self, g: Tensor, x: Tensor, center: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over each plane of g and of ``g * (x - center)``, (N, C) each.

        Example:
            >>> m = EagerBackend().moments(x := torch.tensor([[[1.0, 3.0]]]))
            >>> EagerBackend().reduce(torch.tensor([[[1.0, 2.0]]]), x, *m)
            (tensor([[3.]]), tensor([[1.]]))
        """
        del var
        wide = g.to(accumulation_dtype(x))
        product = (x.to(wide.dtype) - as_planes(center, x)).mul_(wide)
        if x.dim() == 2:
            return wide.clone(), product
        return wide.sum(spatial_dims(x)), product.sum(spatial_dims(x))

    def combine(
        self, g: Tensor, x: Tensor, gain: Tensor, center: Tensor, var: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """``gain * g + slope * (x - center) + offset``: both gradient paths into x at once.

        Example:
            >>> m = EagerBackend().moments(x := torch.tensor([[[1.0, 3.0]]]))
            >>> one = torch.ones(1, 1)
            >>> EagerBackend().combine(torch.tensor([[[1.0, 2.0]]]), x, one, *m, one, 0 * one)
            tensor([[[0., 3.]]])
        """
        del var
        dx = x.to(accumulation_dtype(x)) - as_planes(center, x)
        dx.mul_(as_planes(slope, x)).addcmul_(g.to(dx.dtype), as_planes(gain, x)).add_(as_planes(offset, x))
        return dx.to(x.dtype)


def elements_per_plane(x: Tensor) -> int:
    """How many elements a (sample, channel) plane of x has.

    Example:
        >>> elements_per_plane(torch.zeros(2, 3, 4, 5))
        20
    """
    return math.prod(x.shape[2:])
