"""Fog: a plasma fractal laid over the image, which is then darkened back into range."""

from __future__ import annotations

import torch
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream

__all__ = ["CORRUPTIONS", "fog", "plasma", "sample_fog"]

# Of the first level; what is added to a mean of four is the roughness times a number of up to its own size.
ROUGHNESS = 100.0


def plasma(draw: Tensor, decay: float) -> Tensor:
    """Height maps by the diamond-square method, on a torus, each stretched to [0, 1].

    Every level halves the mesh: the centres of the squares, then the middles of the horizontal sides, then those of the
    vertical sides become the mean of their four neighbours plus ``w² u``, with w = 100 at the first level, divided by
    ``decay`` per level, and u uniform in [-1, 1).

    Example:
        >>> heights = plasma(torch.rand(2, 32 * 32 - 1) * 2 - 1, decay=3.0)
        >>> heights.shape, float(heights.amin()), float(heights.amax())
        (torch.Size([2, 32, 32]), 0.0, 1.0)

    Args:
        draw: (N, S² - 1), S a power of two, numbers from -1 to 1: level by level, coarse to fine; within a level the
            three groups in the order above, each row by row. The authors' draws are these times w.
        decay: of the roughness per level.

    Returns:
        (N, S, S) heights, of the dtype of ``draw``.
    """
    n, count = draw.shape
    size = round((count + 1) ** 0.5)
    heights, roughness, used = draw.new_zeros(n, 1, 1), ROUGHNESS, 0
    while (side := heights.shape[1]) < size:
        group = side * side
        finer = draw.new_empty(n, side, 2, side, 2)
        finer[:, :, 0, :, 0] = heights

        def wobble(total: Tensor, first: int, group: int = group, w: float = roughness) -> Tensor:
            uniform = draw[:, first : first + group].view_as(total)
            return total.mul_(0.25).add_(uniform, alpha=w * w)

        below = heights + heights.roll(-1, 1)
        centres = wobble(below + below.roll(-1, 2), used)
        finer[:, :, 1, :, 1] = centres
        # The map wraps around, so a side on the border has the opposite centre as its second neighbour.
        across = (centres + centres.roll(1, 1)).add_(heights).add_(heights.roll(-1, 2))
        finer[:, :, 0, :, 1] = wobble(across, used + group)
        down = (centres + centres.roll(1, 2)).add_(heights).add_(heights.roll(-1, 1))
        finer[:, :, 1, :, 0] = wobble(down, used + 2 * group)
        heights, used, roughness = finer.view(n, 2 * side, 2 * side), used + 3 * group, roughness / decay
    if not n:
        return heights
    heights = heights.sub_(heights.amin((1, 2), keepdim=True))
    return heights.div_(heights.amax((1, 2), keepdim=True))


def sample_fog(stream: Stream, shape: torch.Size, constant: tuple[float, float]) -> Tensor:
    """Uniform numbers for the plasma fractals that cover the images.

    Example:
        >>> sample_fog(Stream(0, "fog", 1, torch.arange(4)), torch.Size([4, 3, 224, 160]), (1.5, 2)).shape
        torch.Size([4, 65535])

    Args:
        stream: the random numbers.
        shape: of the images. The fractal's side is the next power of two of the longer side, as in the published sets.
        constant: not used.

    Returns:
        (N, S² - 1) numbers in [-1, 1), in the order that :func:`plasma` takes.
    """
    size = 1 << (max(shape[-2:]) - 1).bit_length()
    return stream.uniform(size * size - 1).mul_(2).sub_(1)


def fog(x: Tensor, constant: tuple[float, float], draw: Tensor) -> Tensor:
    """Images in fog: (x + strength · plasma) · m / (m + strength), m the largest value of the image.

    Example:
        >>> foggy = fog(torch.zeros(1, 3, 32, 32), (1.5, 2.0), torch.rand(1, 1023) * 2 - 1)
        >>> float(foggy.max())  # a black image stays black: it has m = 0
        0.0

    Args:
        x: (N, 3, H, W) in [0, 1].
        constant: strength, and decay of the roughness.
        draw: what :func:`sample_fog` returned.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    strength, decay = constant
    height, width = x.shape[-2:]
    if not len(x):
        return x.clone()
    brightest = x.amax((1, 2, 3), keepdim=True)
    heights = plasma(draw, decay)[:, None, :height, :width].to(x.dtype)
    return torch.add(x, heights, alpha=strength).mul_(brightest / (brightest + strength)).clamp_(0, 1)


CORRUPTIONS = (Corruption("fog", "weather", sample_fog, fog, CONSTANTS["fog"]),)
