"""The four passes on NVIDIA GPUs as Triton kernels; Triton itself is imported when the first tensor asks for it."""

from __future__ import annotations

import importlib.util
import math
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from shiftnorm.ops.triton_launch import Launch, View, map_launch, programs, sum_launch, view_of

__all__ = ["TritonBackend"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_PLACES = 1 << 31  # a place in its plane is a 32-bit number; planes together may be larger
_MOST_CHANNELS = 1 << 22  # a channels-last tile is addressed by 32-bit offsets


class TritonBackend:
    """Triton kernels for contiguous and channels-last CUDA tensors of 16 and 32 bits.

    With ``TRITON_INTERPRET=1`` in the environment the same kernels run on CPU tensors, one element after the other in
    effect: enough to test them without a GPU.

    Example:
        >>> TritonBackend().unsupported(torch.zeros(2, 3, 4, dtype=torch.float64))
        'takes float32, bfloat16 and float16, x is float64'

    Cost:
        moments: one read of x; apply: one read, one write; reduce: two reads; combine: two reads, one write. One launch
        each, two where few large planes are cut into splits.
    """

    name = "triton"

    def unsupported(self, x: Tensor) -> str | None:
        """Why this backend declines x, or None.

        Example:
            >>> TritonBackend().unsupported(torch.zeros(0, 3, 4))
            'takes x with at least one element, x has shape (0, 3, 4)'
        """
        if x.dtype not in _DTYPES:
            return f"takes float32, bfloat16 and float16, x is {str(x.dtype).removeprefix('torch.')}"
        if x.layout is not torch.strided or x.is_neg():
            return "takes plain strided tensors, x is sparse or lazily negated"
        if x.numel() == 0 or x.dim() < 2:
            return f"takes x with at least one element, x has shape {tuple(x.shape)}"
        if not x.is_contiguous() and not _is_channels_last(x):
            return f"takes contiguous or channels-last tensors, x has strides {x.stride()}"
        if not x.is_contiguous() and x.shape[1] > _MOST_CHANNELS:
            return f"takes up to {_MOST_CHANNELS} channels where they are last, x has {x.shape[1]}"
        if math.prod(x.shape[2:]) >= _MOST_PLACES:
            return f"takes planes of fewer than {_MOST_PLACES} elements, x has shape {tuple(x.shape)}"
        if x.device.type == "cpu":
            return _why_not_interpreted()
        if x.device.type != "cuda":
            return f"takes CUDA tensors, x is on {x.device}"
        return _why_not_on(x.get_device(), x.dtype)

    def plan(self, x: Tensor) -> str:
        """How the passes over x are cut into programs.

        Example:
            >>> print(TritonBackend().plan(torch.zeros(32, 64, 56, 56)))
            sums: 2048 programs of 8 warps, 1 x 4096 elements (planes x places) at a time
            maps: 4096 programs of 4 warps, 1 x 2048 elements (planes x places) at a time
        """
        view = view_of(x)
        sums, maps = sum_launch(view), map_launch(view)
        cut = (
            f", {sums.splits} splits of {sums.segment} to a plane, joined by a second launch" if sums.splits > 1 else ""
        )
        return f"sums: {_described(view, sums)}{cut}\nmaps: {_described(view, maps)}"

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance per plane, (N, C) each.

        Example:
            >>> from shiftnorm.ops import choose
            >>> x = torch.tensor([[[1.0, 3.0]]])
            >>> choose(x).moments(x)  # the backend that takes x: this one where x is on a GPU
            (tensor([[2.]]), tensor([[1.]]))
        """
        return _passes().moments(x)

    def apply(self, x: Tensor, gain: Tensor, center: Tensor, mean: Tensor) -> Tensor:
        """``gain * (x - center) + mean``, rounded once to x's dtype.

        Example:
            >>> from shiftnorm.ops import choose
            >>> x, one = torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1)
            >>> choose(x).apply(x, 2 * one, one, 5 * one)  # the backend that takes x
            tensor([[[5., 9.]]])
        """
        return _passes().apply(x, gain, center, mean)

    def reduce(self, g: Tensor, x: Tensor, center: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over each plane of g and of ``g * (x - center)``, (N, C) each.

        Example:
            >>> from shiftnorm.ops import choose
            >>> g, x, one = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1)
            >>> choose(x).reduce(g, x, 2 * one, one)  # the backend that takes x
            (tensor([[3.]]), tensor([[1.]]))
        """
        del var
        return _passes().reduce(g, x, center)

    def combine(
        self, g: Tensor, x: Tensor, gain: Tensor, center: Tensor, var: Tensor, slope: Tensor, offset: Tensor
    ) -> Tensor:
        """``gain * g + slope * (x - center) + offset``: both gradient paths into x at once.

        Example:
            >>> from shiftnorm.ops import choose
            >>> g, x, one = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1)
            >>> choose(x).combine(g, x, one, one, one, one, one)  # the backend that takes x
            tensor([[[2., 5.]]])
        """
        del var
        return _passes().combine(g, x, gain, center, slope, offset)[0]

    def masked_moments(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the part of each plane where the mask is nonzero; the rest may be NaN.

        Example:
            >>> from shiftnorm.ops import moments
            >>> x = torch.tensor([[[1.0, 3.0, float("nan")]]])
            >>> moments(x, x == x)[:2]  # by this method where x is on a GPU
            (tensor([[2.]]), tensor([[1.]]))

        Args:
            x: a tensor this backend does not object to.
            mask: (N, 1, *) or broadcastable to it.

        Returns:
            Mean and variance, (N, C); 0 where the mask leaves nothing.
        """
        return _passes().moments(x, mask)

    def masked_combine(
        self,
        g: Tensor | None,
        x: Tensor,
        mask: Tensor,
        gain: Tensor | None,
        center: Tensor,
        slope: Tensor,
        offset: Tensor,
    ) -> Tensor:
        """``gain * g``, and where the mask is nonzero ``slope * (x - center) + offset`` besides.

        Both gradient paths of a norm whose moments are masked; with g and gain None only that of the moments.

        Example:
            >>> from shiftnorm.ops import moments
            >>> x = torch.tensor([[[1.0, 3.0, 8.0]]], requires_grad=True)
            >>> torch.autograd.grad(moments(x, x < 5).var.sum(), x)  # by this method where x is on a GPU
            (tensor([[[-1.,  1.,  0.]]]),)
        """
        return _passes().combine(g, x, gain, center, slope, offset, mask=mask)[0]


def _described(view: View, launch: Launch) -> str:
    tile = f"{launch.planes} x {launch.places} elements (planes x places)"
    return f"{programs(view, launch)} programs of {launch.warps} warps, {tile} at a time"


def _passes() -> Any:
    from shiftnorm.ops import triton_passes

    return triton_passes


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _why_not_interpreted() -> str | None:
    if os.environ.get("TRITON_INTERPRET", "0").lower() not in ("1", "true", "on", "yes", "y"):
        return "takes CUDA tensors, x is on cpu"
    if not _is_installed():
        return "needs the package triton, which is not installed"
    from shiftnorm.ops.triton_place import INTERPRETED

    return None if INTERPRETED else "takes CPU tensors only if TRITON_INTERPRET was set before its kernels were loaded"


@cache
def _why_not_on(device: int, dtype: torch.dtype) -> str | None:
    if torch.version.hip is not None:
        return "takes NVIDIA GPUs, x is on an AMD one"
    if not _is_installed():
        return "needs the package triton, which is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (7, 5):
        return f"takes GPUs of compute capability 7.5 and above, x is on one of {major}.{minor}"
    if dtype == torch.bfloat16 and major < 8:
        return f"takes bfloat16 on compute capability 8.0 and above, x is on a GPU of {major}.{minor}"
    return None


def _is_channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()
