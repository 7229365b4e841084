"""Digital corruptions: brightness, contrast, saturation, pixels and JPEG."""

from __future__ import annotations

import functools
import io

import numpy as np
import torch
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption, draw_nothing
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.hsv import hsv_to_rgb, rgb_to_hsv

__all__ = ["CORRUPTIONS", "through_jpeg"]


@functools.lru_cache(maxsize=64)
def _brighter(added: float, device: torch.device) -> Tensor:
    """What each value (second axis) of a pixel becomes whose largest value is that of the first axis, truncated."""
    # In double precision and the authors' order: adding 0.2, say, adds exactly 51 levels, and rounding decides what
    # truncation makes of that.
    level = torch.arange(256, dtype=torch.float64) / 255
    value = level[:, None]
    saturation = torch.where(value > 0, (value - level) / value.clamp(min=1 / 255), 0)
    out = (value + added).clamp(0, 1) * (1 - saturation)
    return ((out * 255).floor().clamp_(0, 255) / 255).float().flatten().to(device)


def _levels(x: Tensor) -> Tensor:
    return (x * 255).round_().to(torch.int32)


def _brightness(x: Tensor, added: float, _: None) -> Tensor:
    levels = _levels(x)
    places = levels.amax(1, keepdim=True).mul_(256) + levels
    return _brighter(added, x.device).index_select(0, places.flatten()).view(x.shape)


def _contrast(x: Tensor, factor: float, _: None) -> Tensor:
    mean = _levels(x).sum((2, 3), keepdim=True).to(torch.float32) / (255 * x.shape[2] * x.shape[3])
    return (x - mean).mul_(factor).add_(mean).clamp_(0, 1)


def _saturate(x: Tensor, constant: tuple[float, float], _: None) -> Tensor:
    scale, shift = constant
    # Nearly every result is a whole level, and only the authors' precision and order decide its truncation as theirs.
    precise = torch.float32 if x.device.type == "mps" else torch.float64
    hue, saturation, value = rgb_to_hsv((x * 255).round_().to(precise) / 255)
    out = hsv_to_rgb(hue, (saturation * scale + shift).clamp_(0, 1), value)
    return ((out * 255).floor_().clamp_(0, 255) / 255).to(x.dtype)


@functools.lru_cache(maxsize=64)
def _boxes(size: int, other: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """For each pixel of a resized axis, the first and the number of pixels it is the mean of; the largest number."""
    # A pixel counts fully or not at all, as in Pillow's box filter: the areas are not shared out. In Pillow's order of
    # operations, since rounding decides on a pixel whose centre lies on the border.
    scale = size / other
    width = max(scale, 1.0)
    first, counts = [], []
    for i in range(other):
        centre = (i + 0.5) * scale
        begin, end = max(0, int(centre - 0.5 * width + 0.5)), min(size, int(centre + 0.5 * width + 0.5))
        inside = [j for j in range(begin, end) if -0.5 < (j - centre + 0.5) * (1 / width) <= 0.5]
        first.append(inside[0])
        counts.append(len(inside))
    return torch.tensor(first, device=device), torch.tensor(counts, device=device), max(counts)


def _shrink(levels: Tensor, dim: int, smaller: int) -> Tensor:
    """Means over boxes along an axis, rounded to whole levels."""
    first, counts, most = _boxes(levels.shape[dim], smaller, levels.device)
    shape = (-1, 1) if dim == -2 else (-1,)
    total = levels.index_select(dim, first)
    for i in range(1, most):
        tap = levels.index_select(dim, (first + i).clamp_(max=levels.shape[dim] - 1))
        total += tap.mul_((counts > i).to(levels.dtype).view(shape))
    # Sums are exact, and the smallest distance to a tie is larger than what the division rounds away.
    return total.div_(counts.to(levels.dtype).view(shape)).add_(0.5 + 1e-5).floor_()


def _pixelate(x: Tensor, factor: float, _: None) -> Tensor:
    height, width = x.shape[-2:]
    small_height, small_width = max(1, int(height * factor)), max(1, int(width * factor))
    # Rounded after each axis, as Pillow does.
    small = _shrink(_shrink((x * 255).round_(), -1, small_width), -2, small_height).div_(255)
    rows, columns = _boxes(small_height, height, x.device)[0], _boxes(small_width, width, x.device)[0]
    return small.index_select(-1, columns).index_select(-2, rows)


def through_jpeg(levels: Tensor, quality: int) -> Tensor:
    """Images after storage as JPEG files, as Pillow writes them: with colours at half the resolution.

    Example:
        >>> grey = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
        >>> through_jpeg(grey, 85)[0, :, 0, 0].tolist()
        [100, 100, 100]

    Args:
        levels: (N, 3, H, W) uint8. The codec works on the CPU; images on another device go there and back.
        quality: 1 to 100.

    Returns:
        uint8 of the same shape, on the same device.

    Raises:
        ModuleNotFoundError: without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ModuleNotFoundError('JPEG needs Pillow; install it with: pip install "shiftnorm[train]"') from error
    pictures = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    stored = np.empty_like(pictures)
    for i, picture in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            stored[i] = image
    return torch.from_numpy(stored).permute(0, 3, 1, 2).contiguous().to(levels.device)


def _jpeg_compression(x: Tensor, quality: int, _: None) -> Tensor:
    return through_jpeg((x * 255).round_().to(torch.uint8), quality).to(x.dtype).div_(255)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("brightness", "weather", draw_nothing, _brightness, CONSTANTS["brightness"]),
    Corruption("contrast", "digital", draw_nothing, _contrast, CONSTANTS["contrast"]),
    Corruption("pixelate", "digital", draw_nothing, _pixelate, CONSTANTS["pixelate"]),
    Corruption("jpeg_compression", "digital", draw_nothing, _jpeg_compression, CONSTANTS["jpeg_compression"]),
    Corruption("saturate", "digital", draw_nothing, _saturate, CONSTANTS["saturate"]),
)
