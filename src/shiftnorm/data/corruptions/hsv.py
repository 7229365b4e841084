"""RGB to HSV and back, in the order of operations that scikit-image has.

Brightness and saturation often land exactly on a whole level, and the truncation that follows turns a last-bit
difference into a whole one: only the same order of operations gives the same pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rgb_to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value, each (N, H, W) in [0, 1], of RGB images (N, 3, H, W); grey has hue 0."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    spread = value - x.amin(1)
    grey = spread == 0
    divisor = torch.where(grey, 1, spread)
    sixths = torch.where(value == red, (green - blue) / divisor, 2 + (blue - red) / divisor)
    sixths = torch.where(value == green, 2 + (blue - red) / divisor, sixths)
    sixths = torch.where(value == blue, 4 + (red - green) / divisor, sixths)
    hue = torch.where(grey, 0, (sixths / 6).remainder(1))
    saturation = torch.where(grey, 0, spread / torch.where(value == 0, 1, value))
    return hue, saturation, value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB images (N, 3, H, W) from hue, saturation and value, each (N, H, W)."""
    sector = (hue * 6).floor()
    offset = hue * 6 - sector
    low = value * (1 - saturation)
    falling = value * (1 - offset * saturation)
    rising = value * (1 - (1 - offset) * saturation)
    six = torch.stack(
        [
            torch.stack([value, falling, low, low, rising, value], -1),
            torch.stack([rising, value, value, falling, low, low], -1),
            torch.stack([low, low, rising, value, value, falling], -1),
        ],
        1,
    )
    which = sector.long().remainder(6)[:, None, :, :, None].expand(-1, 3, -1, -1, 1)
    return six.gather(-1, which).squeeze(-1)
