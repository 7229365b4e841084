"""Zoom blur: the mean of an image and its enlargements."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption, draw_nothing
from shiftnorm.data.corruptions.blur import lean, whole_levels
from shiftnorm.data.corruptions.constants import CONSTANTS

__all__ = ["CORRUPTIONS", "zoom_matrix", "zoom_window"]

# A multiple of the width of every CPU's vectors.
LANES = 16


def zoom_window(size: int, factor: float) -> tuple[int, int, int, int]:
    """What enlarging ``size`` pixels about their middle cuts out, and how large that becomes.

    Example:
        >>> zoom_window(32, 1.25)
        (3, 26, 32, 0)

    Args:
        size: pixels along one axis.
        factor: at least 1.

    Returns:
        The first pixel cut out, how many, how many they become, and the first of these that is kept; ``size`` are.
    """
    cut = math.ceil(size / factor)
    grown = round(cut * factor)
    return (size - cut) // 2, cut, grown, (grown - size) // 2


def zoom_matrix(size: int, factor: float, like: Tensor) -> Tensor:
    """The matrix that enlarges a signal about its middle, by linear interpolation from its first to its last number.

    Example:
        >>> zoom_matrix(4, 1, torch.empty(())) @ torch.arange(4.0)
        tensor([0., 1., 2., 3.])

    Args:
        size: numbers in the signal, before and after.
        factor: at least 1.
        like: a tensor with the dtype and device of the result.

    Returns:
        (size, size).
    """
    first, cut, grown, kept = zoom_window(size, factor)
    places = torch.arange(kept, kept + size, dtype=torch.float64) * ((cut - 1) / max(1, grown - 1))
    places = places.clamp(0, cut - 1)
    below = places.floor()
    share = places - below
    matrix = torch.zeros(size, size, dtype=torch.float64)
    columns = below.long()[:, None] + first
    matrix.scatter_add_(1, columns, 1 - share[:, None])
    matrix.scatter_add_(1, (columns + 1).clamp(max=first + cut - 1), share[:, None])
    return matrix.to(like.device, like.dtype)


@lru_cache(maxsize=64)
def _kept_by_mean(count: int) -> tuple[bool, ...]:
    """Which levels survive the mean of ``count`` equal images and one more in single precision, and truncation."""
    whole = torch.arange(256, dtype=torch.float32)
    x = whole / 255
    total = torch.zeros_like(x)
    for _ in range(count):
        total = total + x
    return tuple((((x + total) / (count + 1) * 255).floor() == whole).tolist())


def _zoom_blur(x: Tensor, factors: tuple[float, ...], params: None) -> Tensor:
    n, channels, height, width = x.shape
    planes = whole_levels(x).view(1, n * channels, height, width)
    # The planes of all images lie side by side in memory and are interpolated as one vector. Filled up to whole
    # vectors, so that no bit depends on how many images there are.
    planes = F.pad(planes, (0, 0, 0, 0, 0, -n * channels % LANES)).contiguous(memory_format=torch.channels_last)
    # The list holds the factor 1, and the image is added once more: so the authors have it.
    total = planes.clone()
    for factor in factors:
        top, rows, grown_rows, row = zoom_window(height, factor)
        left, columns, grown_columns, column = zoom_window(width, factor)
        cut = planes[:, :, top : top + rows, left : left + columns]
        grown = F.interpolate(cut, (grown_rows, grown_columns), mode="bilinear", align_corners=True)
        total += grown[:, :, row : row + height, column : column + width]
    total = total[:, : n * channels].contiguous().view_as(x).div_(len(factors) + 1)
    return lean(total, _kept_by_mean(len(factors))).div_(255).clamp_(0, 1)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("zoom_blur", "blur", draw_nothing, _zoom_blur, CONSTANTS["zoom_blur"]),
)
