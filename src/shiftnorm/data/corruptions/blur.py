"""Gaussian and defocus blur, and the matrices and roundings that the other blurs share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption, draw_nothing
from shiftnorm.data.corruptions.constants import CONSTANTS

__all__ = [
    "CORRUPTIONS",
    "along_both",
    "blur_levels",
    "defocus_kernel",
    "gaussian_matrix",
    "lean",
    "precise",
    "whole_levels",
]

# In levels: more than the rounding errors of single precision, and too little to be seen.
LEAN = 2.0**-12
# In levels: more than the rounding errors of double precision, less than the smallest weight moves a pixel.
TIE = 1e-9


def precise(x: Tensor) -> Tensor:
    """The tensor in double precision, where its device has it.

    A blur makes many values whole or nearly whole, and the authors' double precision then decides between two levels.

    Example:
        >>> precise(torch.zeros(1)).dtype
        torch.float64

    Args:
        x: any tensor.

    Returns:
        The same numbers as float64, or as float32 on a device of Metal.
    """
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def whole_levels(x: Tensor) -> Tensor:
    """The levels k of an image that holds k / 255, exact to the last bit.

    Example:
        >>> whole_levels(torch.tensor([0.0, 128 / 255, 1.0])).tolist()
        [0.0, 128.0, 255.0]

    Args:
        x: float, any shape.

    Returns:
        A new tensor of the same shape and dtype.
    """
    return (x * 255).round_()


def gaussian_matrix(size: int, sigma: float, like: Tensor, *, truncate: float = 4, border: str = "replicate") -> Tensor:
    """The matrix that blurs a signal of ``size`` numbers by a Gaussian.

    Example:
        >>> blurred = gaussian_matrix(5, 1.0, torch.empty(())) @ torch.ones(5)
        >>> torch.allclose(blurred, torch.ones(5))
        True

    Args:
        size: numbers in the signal.
        sigma: of the Gaussian; 0 gives the identity.
        like: a tensor with the dtype and device of the result.
        truncate: the Gaussian ends at this many sigmas.
        border: what continues the signal: ``"replicate"`` its last number, or ``"symmetric"`` its mirror image, which
            repeats the last number; as often as the Gaussian is wider than the signal.

    Returns:
        (size, size).
    """
    # In double precision and on the CPU: its rows must sum to one as nearly as the result's dtype allows.
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.exp(offsets.double() ** 2 * (-0.5 / sigma**2)) if radius else torch.ones(1, dtype=torch.float64)
    sources = torch.arange(size)[:, None] + offsets
    if border == "symmetric":
        sources = sources.remainder(2 * size)
        sources = torch.minimum(sources, 2 * size - 1 - sources)
    else:
        sources = sources.clamp(0, size - 1)
    weights = (taps / taps.sum()).expand(size, -1)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, sources, weights)
    return matrix.to(like.device, like.dtype)


def along_both(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix along the height of images and another along their width.

    Example:
        >>> x = torch.rand(2, 3, 4, 5)
        >>> torch.allclose(along_both(x, torch.eye(4), 2 * torch.eye(5)), 2 * x)
        True

    Args:
        x: (..., H, W).
        rows: (H', H).
        columns: (W', W).

    Returns:
        (..., H', W').
    """
    # One product per plane and not one tall product, so that no bit depends on how many images there are.
    planes = x.reshape(-1, *x.shape[-2:])
    n = len(planes)
    planes = torch.bmm(planes, columns.t().expand(n, -1, -1))
    return torch.bmm(rows.expand(n, -1, -1), planes).view(*x.shape[:-2], len(rows), len(columns))


def lean(levels: Tensor, kept: tuple[bool, ...] | None = None) -> Tensor:
    """Decide what truncation will do to values that are whole but for rounding errors.

    An even region stays even under a blur, so its values lie on the edge between two levels, and the last bit of the
    authors' arithmetic decides whether the region keeps its level or loses one. Where that is known it is followed.

    Example:
        >>> values = torch.tensor([3.0, 4.0, 5.5])
        >>> lean(values, tuple(k != 4 for k in range(256))).floor().tolist()
        [3.0, 3.0, 5.0]

    Args:
        levels: float, from 0 to 255 but for rounding errors.
        kept: for each of the 256 levels, whether it is kept; by default all are.

    Returns:
        float32 of the same shape, 2**-12 levels off the whole values or more, a new tensor.
    """
    single = levels.dtype == torch.float32
    move = LEAN if single else TIE
    if kept is None or all(kept):
        moved = levels + move
    else:
        moves = torch.tensor(kept, device=levels.device).to(levels.dtype).mul_(2 * move).sub_(move)
        nearest = levels.round().clamp_(0, 255).to(torch.int32)
        moved = moves.index_select(0, nearest.view(-1)).view_as(levels).add_(levels)
    if single:
        return moved
    # What was decided in double precision must survive the rounding to single.
    whole = moved.floor()
    return moved.sub_(whole).clamp_(LEAN, 1 - LEAN).add_(whole).float()


@lru_cache(maxsize=64)
def _kept_by_gaussian(sigma: float) -> tuple[bool, ...]:
    """Which levels survive SciPy's Gaussian filter, in its own order of operations, and truncation."""
    # With NumPy, whose order of summation is part of it.
    radius = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    taps = (taps / taps.sum()).tolist()
    whole = np.arange(256)
    x = whole / 255
    for _ in range(2):
        pair, x = x + x, x * taps[radius]
        for tap in taps[:radius]:
            x = x + pair * tap
    return tuple((np.floor(x * 255) == whole).tolist())


def blur_levels(levels: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian cut off at four sigmas, repeating the border; to be truncated.

    Example:
        >>> white = torch.full((1, 3, 8, 8), 255.0)
        >>> [int(blur_levels(white, sigma).floor().min()) for sigma in (1.0, 1.1)]
        [255, 254]

    Args:
        levels: (N, C, H, W) float, whole levels.
        sigma: of the Gaussian.

    Returns:
        float32 of the same shape, as :func:`lean` makes it, a new tensor.
    """
    # A Gaussian that ends within half a pixel is the pixel alone.
    if not int(4 * sigma + 0.5):
        return levels + LEAN
    height, width = levels.shape[-2:]
    levels = precise(levels)
    levels = along_both(levels, gaussian_matrix(height, sigma, levels), gaussian_matrix(width, sigma, levels))
    return lean(levels, _kept_by_gaussian(sigma))


def _gaussian_blur(x: Tensor, sigma: float, params: None) -> Tensor:
    return blur_levels(whole_levels(x), sigma).div_(255).clamp_(0, 1)


@lru_cache(maxsize=64)
def defocus_kernel(radius: float, alias: float) -> Tensor:
    """A disk smoothed by a small Gaussian, as the authors make it in single precision.

    The disk lies on 17x17 pixels up to a radius of 8. One of radius 8 touches their edge, so its smoothed rim is cut.

    Example:
        >>> defocus_kernel(1.5, 0.1).shape, round(float(defocus_kernel(3, 0.1).sum()), 5)
        (torch.Size([3, 3]), 1.0)

    Args:
        radius: of the disk.
        alias: the sigma of the Gaussian, which is 3x3 pixels up to a radius of 8 and then 5x5.

    Returns:
        (K, K) float32 on the CPU without its empty border, K odd. The same tensor every time: do not change it.
    """
    reach, rim = (8, 1) if radius <= 8 else (int(radius), 2)
    squares = torch.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius * radius).float()
    disk /= disk.sum()
    taps = torch.exp(torch.arange(-rim, rim + 1).double() ** 2 * (-0.5 / alias**2))
    weights = (taps / taps.sum()).float().tolist()
    for _ in range(2):
        # Mirrored at the border pixels; then transposed, so that the second round smooths the other axis.
        padded = F.pad(disk[None], (rim, rim), mode="reflect")[0]
        smooth = weights[rim] * disk
        for i in range(1, rim + 1):
            left, right = padded[:, rim - i : padded.shape[1] - rim - i], padded[:, rim + i :][:, : disk.shape[1]]
            smooth = smooth + weights[rim + i] * (left + right)
        disk = smooth.t().contiguous()
    used = int((disk > 1e-12).any(0).nonzero().flatten().sub(reach).abs().max())
    return disk[reach - used : reach + used + 1, reach - used : reach + used + 1].contiguous()


def _fast_size(size: int) -> int:
    """The next size whose Fourier transform is quick."""
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and size % 2 == 0:
            return size
        size += 1


def _reflected(x: Tensor, reach: int) -> Tensor:
    """Continue images by ``reach`` pixels on each side, mirrored at the border pixels, as often as needed."""
    height, width = x.shape[-2:]
    if reach < min(height, width):
        return F.pad(x, (reach,) * 4, mode="reflect")
    for axis, size in ((-2, height), (-1, width)):
        period = max(1, 2 * size - 2)
        places = torch.arange(-reach, size + reach, device=x.device).remainder(period)
        x = x.index_select(axis, torch.minimum(places, period - places))
    return x


def _defocus_blur(x: Tensor, constant: tuple[float, float], params: None) -> Tensor:
    kernel = defocus_kernel(*constant)
    height, width = x.shape[-2:]
    reach = len(kernel) // 2
    if not reach:
        return x.clone()
    # A disk of 29 equal pixels makes every 29th value whole, and that its kernel, in single precision, sums to a little
    # more or less than one decides what truncation does to those.
    padded = _reflected(precise(whole_levels(x)), reach)
    size = (_fast_size(height + 2 * reach), _fast_size(width + 2 * reach))
    # The kernel is symmetric, so that convolution and correlation are one; the product wraps around beyond ``reach``.
    response = torch.fft.rfft2(kernel.to(x.device, padded.dtype), s=size)
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded, s=size).mul_(response), s=size)
    return lean(blurred[..., 2 * reach :, 2 * reach :][..., :height, :width]).div_(255).clamp_(0, 1)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("gaussian_blur", "blur", draw_nothing, _gaussian_blur, CONSTANTS["gaussian_blur"]),
    Corruption("defocus_blur", "blur", draw_nothing, _defocus_blur, CONSTANTS["defocus_blur"]),
)
