"""Motion blur, after ImageMagick's operator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.blur import whole_levels
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream

__all__ = ["CORRUPTIONS", "moved_levels", "trail"]

# ImageMagick's levels to one of ours: it computes with 16 bits.
FINE = 257


def trail(radius: float, sigma: float, angle: Tensor) -> tuple[list[float], Tensor, Tensor]:
    """The weights of half a Gaussian along a line, and the whole pixels it passes.

    Example:
        >>> weights, down, right = trail(6, 1.0, torch.tensor([0.0]))
        >>> [round(weight, 3) for weight in weights], right.tolist()
        ([0.57, 0.346, 0.077, 0.006, 0.0, 0.0], [[0, 1, 2, 3, 4, 5]])

    Args:
        radius: the line has 2 * ceil(radius) + 1 pixels, less those at its end whose weights cannot be seen.
        sigma: of the Gaussian.
        angle: (N,) degrees, clockwise from the right.

    Returns:
        T weights, which sum to one, and (N, T) int64 pixels down and to the right.
    """
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 * math.ceil(radius) + 1)]
    total = sum(taps)
    # 255 levels times this are less than half a step of ImageMagick's 16 bits.
    weights = [tap / total for tap in taps if tap / total > 1e-6]
    # In ImageMagick's order of operations, which decides at -30 degrees, say, where half a pixel is rounded.
    radians = angle.to("cpu", torch.float64) * math.pi / 180
    line = len(taps) * torch.stack([torch.sin(radians), torch.cos(radians)])
    steps = torch.arange(len(weights), dtype=torch.float64)
    down, right = torch.ceil(steps * line[:, :, None] / torch.hypot(*line)[:, None] - 0.5).long()
    return weights, down, right


def _by_slices(levels: Tensor, weights: list[float], down: Tensor, right: Tensor) -> Tensor:
    height, width = levels.shape[-2:]
    out = torch.zeros_like(levels)
    for i, (rows, columns) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):
        top, left = max(0, -min(rows)), max(0, -min(columns))
        edges = (left, max(0, *columns), top, max(0, *rows))
        padded = F.pad(levels[i : i + 1], edges, mode="replicate")[0]
        total = out[i]
        for weight, row, column in zip(weights, rows, columns, strict=True):
            total.add_(padded[:, top + row : top + row + height, left + column : left + column + width], alpha=weight)
    return out


def _by_picking(levels: Tensor, weights: list[float], down: Tensor, right: Tensor) -> Tensor:
    n, channels, height, width = levels.shape
    flat, device = levels.flatten(2), levels.device
    down, right = down.to(device), right.to(device)
    out = torch.zeros_like(flat)
    for i, weight in enumerate(weights):
        rows = (torch.arange(height, device=device) + down[:, i : i + 1]).clamp_(0, height - 1)
        columns = (torch.arange(width, device=device) + right[:, i : i + 1]).clamp_(0, width - 1)
        places = (rows[:, :, None] * width + columns[:, None]).view(n, 1, -1)
        out.add_(flat.gather(2, places.expand(-1, channels, -1)), alpha=weight)
    return out.view_as(levels)


def moved_levels(levels: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """Blur along a line that starts at each pixel, repeating the border, to whole levels.

    The line has one end at the pixel, so the image moves as well. ImageMagick rounds to 16 bits, and what it writes is
    cut off to 8.

    Example:
        >>> levels = torch.arange(8.0).expand(1, 1, 8, 8)
        >>> moved_levels(levels, 6, 1.0, torch.tensor([0.0]))[0, 0, 0].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]

    Args:
        levels: (N, C, H, W) float, whole levels.
        radius: half the length of the line.
        sigma: of the Gaussian along it.
        angle: (N,) degrees, clockwise from the right.

    Returns:
        Whole levels, of the same shape, a new tensor.
    """
    line = trail(radius, sigma, angle)
    # Slices are ten times as fast as picking, but many small operations, which is what a GPU is slow at.
    blurred = (_by_slices if levels.device.type == "cpu" else _by_picking)(levels, *line)
    # Half a fine step more keeps the division from losing a level that is whole.
    return blurred.mul_(FINE).round_().add_(0.5).div_(FINE).floor_()


def _sample(stream: Stream, shape: torch.Size, constant: tuple[float, float]) -> Tensor:
    return stream.uniform().mul_(90).sub_(45)


def _motion_blur(x: Tensor, constant: tuple[float, float], angle: Tensor) -> Tensor:
    return moved_levels(whole_levels(x), *constant, angle).div_(255)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("motion_blur", "blur", _sample, _motion_blur, CONSTANTS["motion_blur"]),
)
