"""Elastic transform: a random affine map and a random field of shifts."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.blur import along_both, gaussian_matrix, lean, precise, whole_levels
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream

__all__ = ["CORRUPTIONS", "ElasticDraw", "affine_places"]

Constant = tuple[float, float, float]


class ElasticDraw(NamedTuple):
    """The random numbers of an elastic transform.

    Example:
        >>> ElasticDraw(torch.zeros(1, 3, 2), torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)).jitter.shape
        torch.Size([1, 3, 2])

    Args:
        jitter: (N, 3, 2) pixels by which three points move, x before y.
        dx: (N, H, W) uniform from -1 to 1, which smoothed and scaled are the shifts along the width.
        dy: the same along the height.
    """

    jitter: Tensor
    dx: Tensor
    dy: Tensor


def _sample(stream: Stream, shape: torch.Size, constant: Constant) -> ElasticDraw:
    jitter = stream.uniform(3, 2).mul_(2).sub_(1).mul_(constant[2])
    dx, dy = (stream.uniform(*shape[-2:]).mul_(2).sub_(1) for _ in range(2))
    return ElasticDraw(jitter, dx, dy)


def affine_places(jitter: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel of an image comes from when three of its points are moved.

    The points lie a third of the shorter side from the middle. Places are rounded to 1/32 pixel, the way OpenCV does.

    Example:
        >>> affine_places(torch.zeros(1, 3, 2), 32, 32)[0, 3, 5].tolist()
        [5.0, 3.0]

    Args:
        jitter: (N, 3, 2), how far the points move, x before y.
        height: of the images.
        width: of the images.

    Returns:
        (N, height, width, 2) float64, x before y, multiples of 1/32, outside the image too.
    """
    # The authors draw in double and move the points in single precision.
    jitter = precise(jitter.to(torch.float32))
    third = min(height, width) // 3
    middle = jitter.new_tensor([width // 2, height // 2])
    corner = middle - third
    # The points are the middle plus (third, third), (third, -third) and (-third, -third). Two of their differences
    # lie along the axes, which gives the columns of the matrix at once.
    first, second, last = jitter.unbind(1)
    along_y = (first - second) / (2 * third) + jitter.new_tensor([0.0, 1.0])
    along_x = (second - last) / (2 * third) + jitter.new_tensor([1.0, 0.0])
    determinant = along_x[:, 0] * along_y[:, 1] - along_y[:, 0] * along_x[:, 1]
    inverse = torch.stack([along_y[:, 1], -along_y[:, 0], -along_x[:, 1], along_x[:, 0]], 1).view(-1, 2, 2)
    inverse = inverse / determinant[:, None, None]
    start = corner - (inverse @ (corner + last)[:, :, None])[:, :, 0]
    # In 1/1024 pixel, the part of the column and the part of the row rounded by themselves; then cut off to 1/32.
    columns = torch.arange(width, dtype=jitter.dtype, device=jitter.device)
    rows = torch.arange(height, dtype=jitter.dtype, device=jitter.device)
    by_column = (inverse[:, None, :, 0] * columns[:, None] * 1024).round_()
    by_row = ((inverse[:, None, :, 1] * rows[:, None] + start[:, None]) * 1024).round_().add_(16)
    return (by_column[:, None] + by_row[:, :, None]).div_(32).floor_().div_(32)


def _sampled(x: Tensor, places: Tensor, align_corners: bool) -> Tensor:
    """Interpolate images at places in pixels; beyond the border lies their mirror image."""
    size = places.new_tensor([x.shape[-1], x.shape[-2]])
    # grid_sample counts from -1 to 1: from the middles of the outermost pixels, or from their outer edges.
    grid = places * (2 / (size - 1)) - 1 if align_corners else (2 * places + 1) / size - 1
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=align_corners)


def _elastic_transform(x: Tensor, constant: Constant, params: ElasticDraw) -> Tensor:
    alpha, sigma, _ = constant
    height, width = x.shape[-2:]
    # In double precision, so that a place that is a whole pixel gives that pixel.
    levels = precise(whole_levels(x))
    levels = _sampled(levels, affine_places(params.jitter, height, width), align_corners=True)
    if alpha:
        rows = gaussian_matrix(height, sigma, x, truncate=3, border="symmetric")
        columns = gaussian_matrix(width, sigma, x, truncate=3, border="symmetric")
        shifts = along_both(torch.stack([params.dx, params.dy], 1).to(x.dtype), rows, columns).mul_(alpha)
        down, right = (torch.arange(side, device=x.device, dtype=levels.dtype) for side in (height, width))
        places = torch.stack([right + shifts[:, 0], down[:, None] + shifts[:, 1]], -1)
        levels = _sampled(levels, places, align_corners=False)
    return lean(levels).div_(255).clamp_(0, 1)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("elastic_transform", "digital", _sample, _elastic_transform, CONSTANTS["elastic_transform"]),
)
