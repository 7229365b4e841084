"""Plasma fractals: random height maps by the diamond-square method."""

from __future__ import annotations

from torch import Tensor


def _grid(height: int, width: int) -> int:
    return 1 << (max(height, width) - 1).bit_length()


def draws(height: int, width: int) -> int:
    """Return how many uniform numbers a fractal that covers ``height`` by ``width`` takes."""
    return _grid(height, width) ** 2 - 1


def fractal(draw: Tensor, decay: float) -> Tensor:
    """Return height maps (N, S, S) in [0, 1] from uniform numbers in [-1, 1), (N, S² - 1).

    The numbers are used level by level, coarse to fine; within a level first the centres of the squares, then the
    middles of the horizontal sides, then of the vertical sides, each row by row. A level's amplitude is ``w²``, with
    w = 100 at first, divided by ``decay`` per level.
    """
    n, count = draw.shape
    size = int((count + 1) ** 0.5 + 0.5)
    heights = draw.new_zeros(n, size, size)
    step, amplitude, used = size, 100.0, 0

    def wobble(mean_of_four: Tensor) -> Tensor:
        nonlocal used
        cells = (size // step) ** 2
        uniform = draw[:, used : used + cells].reshape_as(mean_of_four)
        used += cells
        return mean_of_four / 4 + amplitude * (amplitude * uniform)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        below = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = wobble(below + below.roll(-1, 2))
        # The map wraps around, so a side on the border has the opposite centre as its second neighbour.
        centres = heights[:, half::step, half::step]
        heights[:, ::step, half::step] = wobble(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2))
        heights[:, half::step, ::step] = wobble(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1))
        step, amplitude = half, amplitude / decay
    lowest = heights.amin((1, 2), keepdim=True)
    heights = heights - lowest
    return heights / heights.amax((1, 2), keepdim=True)
