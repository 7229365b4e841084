"""AugMix's operations on batches of uint8 images, each image with its own strength, with Pillow's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPERATIONS", "operate"]

# In the authors' order; the last four overlap with the common corruptions and are off by default.
OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
# Pixels that an operation is applied to at once: on a CPU as many as stay in its caches, elsewhere as many as memory
# should be taken for, however large the batch is.
PIXELS_ON_CPU, PIXELS = 2**15, 2**24

Operation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _part(level: Tensor, largest: float) -> Tensor:
    """The authors' ``level * largest / 10``."""
    # By a tensor: on CUDA, division by a number is multiplication by its reciprocal, which may fall below a whole one.
    return level * largest / torch.full_like(level, 10.0)


def _whole(level: Tensor, largest: float) -> Tensor:
    """The authors' ``int(level * largest / 10)``."""
    return _part(level, largest).long()


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace every level by what its channel's table (N, C, 256) says."""
    return tables.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


def _autocontrast(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    levels = torch.arange(256, device=images.device, dtype=torch.float64)
    # Number / tensor would be a reciprocal and a product.
    scale = torch.full_like(high, 255.0) / (high - low).clamp(min=1)
    # Not folded into (levels - low) * scale: this rounding is Pillow's.
    stretched = (levels * scale + -low * scale).trunc_().clamp_(0, 255)
    return _look_up(images, torch.where(high > low, stretched, levels))


def _equalize(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    flat = images.flatten(2).long()
    counts = flat.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat, torch.ones_like(flat))
    below = counts.cumsum(2) - counts
    # The pixels below the brightest level that occurs.
    step = below.gather(2, flat.amax(2, keepdim=True)) // 255
    equal = (step // 2 + below) // step.clamp(min=1)
    levels = torch.arange(256, device=images.device)
    return _look_up(images, torch.where(step > 0, equal.clamp_(max=255), levels))


def _posterize(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    dropped = 4 + _whole(level, 4)
    mask = 256 - torch.bitwise_left_shift(torch.ones_like(dropped), dropped)
    return images & mask.to(torch.uint8)[:, None, None, None]


def _solarize(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    threshold = 256 - _whole(level, 256)
    return torch.where(images < threshold.to(torch.int16)[:, None, None, None], images, 255 - images)


# By whole degrees from -30 to 30: (a, b, -b, a) of Pillow's rotation, rounded to 15 digits as Pillow does.
_TURNS = torch.tensor(
    [
        [round(number, 15) for number in (math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))]
        for angle in (-math.radians(degrees % 360.0) for degrees in range(-30, 31))
    ],
    dtype=torch.float64,
)


def _coefficients(which: Tensor, level: Tensor, negative: Tensor, height: int, width: int) -> Tensor:
    """(N, 6) float64: Pillow's (a, b, c, d, e, f), from the pixel that is made to (ax + by + c, dx + ey + f)."""
    sign = torch.where(negative, -1.0, 1.0).double()
    is_ = {name: which == OPERATIONS.index(name) for name in OPERATIONS[3:9]}
    turns = _TURNS.to(level.device, non_blocking=True)
    cos, sin, minus_sin, cos_ = turns[30 + (sign * _whole(level, 30)).long()].unbind(1)
    turned_x = cos * (-width / 2) + sin * (-height / 2) + 0.0 + width / 2
    turned_y = minus_sin * (-width / 2) + cos_ * (-height / 2) + 0.0 + height / 2
    shear = sign * _part(level, 0.3)
    zero = torch.zeros_like(level)
    return torch.stack(
        (
            torch.where(is_["rotate"], cos, 1.0),
            torch.where(is_["rotate"], sin, torch.where(is_["shear_x"], shear, zero)),
            torch.where(
                is_["rotate"], turned_x, torch.where(is_["translate_x"], sign * _whole(level, width / 3), zero)
            ),
            torch.where(is_["rotate"], minus_sin, torch.where(is_["shear_y"], shear, zero)),
            torch.where(is_["rotate"], cos_, 1.0),
            torch.where(
                is_["rotate"], turned_y, torch.where(is_["translate_y"], sign * _whole(level, height / 3), zero)
            ),
        ),
        1,
    )


def _affine(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    channels, height, width = images.shape[1:]
    a, b, c, d, e, f = _coefficients(which, level, negative, height, width)[:, :, None, None].unbind(1)
    rows = torch.arange(height, device=images.device, dtype=torch.float64)[:, None] + 0.5
    columns = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    # Double precision: a coordinate that is a whole number must be one, or a black edge appears.
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    across, down = ((there - corner).float().flatten(1)[:, None] for there, corner in ((x, left), (y, top)))
    left, top = left.long(), top.long()
    lefts, rights = left.clamp(0, width - 1), (left + 1).clamp_(0, width - 1)
    tops, bottoms = (row.clamp(0, height - 1) * width for row in (top, top + 1))
    flat = images.flatten(2)

    def corner(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row + column).flatten(1)[:, None].expand(-1, channels, -1)).float()

    def between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
        # In the order of Pillow's own sum, because the result is cut off to whole levels.
        return second.sub_(first).mul_(share).add_(first)

    upper = between(corner(tops, lefts), corner(tops, rights), across)
    lower = between(corner(bottoms, lefts), corner(bottoms, rights), across)
    mixed = between(upper, lower, down).to(torch.uint8).view_as(images)
    return mixed * inside[:, None]


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) int32: Pillow's luma."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def _blend(degenerate: Tensor, images: Tensor, level: Tensor) -> Tensor:
    """Move from a degenerate image towards the image, and past it for factors above 1."""
    factor = (_part(level, 1.8) + 0.1).float()[:, None, None, None]
    degenerate = degenerate.float()
    return ((images.float() - degenerate) * factor + degenerate).clamp_(0, 255).to(torch.uint8)


def _color(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    return _blend(_grey(images), images, level)


def _contrast(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    grey = _grey(images).flatten(1)
    mean = (grey.sum(1).double() / grey.shape[1] + 0.5).floor()
    return _blend(mean[:, None, None, None], images, level)


def _brightness(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images[:, :1]), images, level)


def _sharpness(images: Tensor, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    x = images.to(torch.int32)
    smooth = x.clone()
    # Pillow's SMOOTH: weights of 1 around 5, divided by 13 and rounded; it leaves the border as it is.
    if min(x.shape[2:]) > 2:
        total = F.avg_pool2d(images.float(), 3, stride=1, divisor_override=1).to(torch.int32)
        smooth[:, :, 1:-1, 1:-1] = (2 * (total + 4 * x[:, :, 1:-1, 1:-1]) + 13) // 26
    return _blend(smooth, images, level)


# Which operations one function does at once.
_GROUPS: tuple[tuple[tuple[str, ...], Operation], ...] = (
    (("autocontrast",), _autocontrast),
    (("equalize",), _equalize),
    (("posterize",), _posterize),
    (("solarize",), _solarize),
    (("rotate", "shear_x", "shear_y", "translate_x", "translate_y"), _affine),
    (("color",), _color),
    (("contrast",), _contrast),
    (("brightness",), _brightness),
    (("sharpness",), _sharpness),
)


def operate(images: Tensor, operations: Tensor, levels: Tensor, negative: Tensor) -> Tensor:
    """Apply to each image an operation of its own.

    ===================  ==============================================================  ======
    operation            at level L                                                      sign
    ===================  ==============================================================  ======
    autocontrast         each channel stretched to 0 to 255
    equalize             each channel's histogram made flat
    posterize            4 - int(4 L / 10) bits are kept
    rotate               by int(30 L / 10) degrees, bilinear                             either
    solarize             levels from 256 - int(256 L / 10) on are inverted
    shear_x, shear_y     by 0.3 L / 10 about the top left corner, bilinear               either
    translate_x, _y      by int(L / 10 of a third of the width or height) pixels         either
    color, contrast,     blended with its grey, with its mean grey, with black,
    brightness,          with itself smoothed; 1.8 L / 10 + 0.1 of the image stays
    sharpness
    ===================  ==============================================================  ======

    What comes from outside the image is black. Results are whole levels, as Pillow's are.

    Example:
        >>> images = torch.tensor([[10, 200], [30, 250]], dtype=torch.uint8).expand(2, 3, 2, 2)
        >>> which = torch.tensor([OPERATIONS.index("posterize"), OPERATIONS.index("autocontrast")])
        >>> operate(images, which, torch.tensor([1.0, 1.0]).double(), torch.tensor([False, False]))[:, 0].tolist()
        [[[0, 192], [16, 240]], [[0, 201], [21, 255]]]

    Args:
        images: (N, 3, H, W) uint8.
        operations: (N,) int64, places in ``OPERATIONS``; -1 leaves an image as it is. On a CPU, so that grouping does
            not wait for an accelerator.
        levels: (N,) float64, in [0, 10].
        negative: (N,) bool, the direction of rotations, shears and translations.

    Returns:
        A new tensor of the same shape.
    """
    operations, results = operations.cpu(), images.clone()
    device = images.device
    on_device = operations.to(device, non_blocking=True)
    levels, negative = levels.to(device, non_blocking=True), negative.to(device, non_blocking=True)
    pixels = PIXELS_ON_CPU if device.type == "cpu" else PIXELS
    at_once = max(1, pixels // max(1, images.shape[2] * images.shape[3]))
    for names, function in _GROUPS:
        members = torch.tensor([OPERATIONS.index(name) for name in names])
        chosen = torch.isin(operations, members).nonzero().flatten()
        for part in chosen.split(at_once) if len(chosen) else ():
            place = part.to(device, non_blocking=True)
            results[place] = function(images[place], on_device[place], levels[place], negative[place])
    return results
