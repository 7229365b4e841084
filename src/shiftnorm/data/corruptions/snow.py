"""Snow: enlarged grains of noise, blurred by their fall, over a whitened image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.blur import LEAN, along_both
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream
from shiftnorm.data.corruptions.motion import moved_levels
from shiftnorm.data.corruptions.zoom import zoom_matrix

__all__ = ["CORRUPTIONS", "SnowDraw"]

Constant = tuple[float, float, float, float, float, float, float]


class SnowDraw(NamedTuple):
    """The random numbers of snow.

    Example:
        >>> SnowDraw(torch.zeros(1, 32, 32), torch.full((1,), -90.0)).angle
        tensor([-90.])

    Args:
        grains: (N, H, W), normal, with the mean and standard deviation of the constant.
        angle: (N,) degrees from -135 to -45, the direction of the fall.
    """

    grains: Tensor
    angle: Tensor


def _sample(stream: Stream, shape: torch.Size, constant: Constant) -> SnowDraw:
    mean, deviation = constant[:2]
    grains = stream.normal(*shape[-2:]).mul_(deviation).add_(mean)
    return SnowDraw(grains, stream.uniform().mul_(90).sub_(135))


def _snow(x: Tensor, constant: Constant, params: SnowDraw) -> Tensor:
    _, _, factor, threshold, radius, sigma, weight = constant
    height, width = x.shape[-2:]
    grains = params.grains.to(x.dtype)[:, None]
    if factor != 1:
        grains = along_both(grains, zoom_matrix(height, factor, x), zoom_matrix(width, factor, x))
    flakes = torch.where(grains < threshold, 0, grains).clamp_(0, 1).mul_(255).floor_()
    snow = moved_levels(flakes, radius, sigma, params.angle).div_(255)
    snow = snow + snow.flip(-2, -1)
    red, green, blue = x.split(1, 1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    whitened = torch.maximum(x, grey.mul_(1.5).add_(0.5)).mul_(1 - weight).add_(x, alpha=weight)
    return whitened.add_(snow).add_(LEAN / 255).clamp_(0, 1)


CORRUPTIONS: tuple[Corruption, ...] = (Corruption("snow", "weather", _sample, _snow, CONSTANTS["snow"]),)
