"""Glass blur: pixels that take the place of their neighbours, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.blur import blur_levels, whole_levels
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream

__all__ = ["CORRUPTIONS", "GlassDraw", "copied_from", "swapped_from"]

Constant = tuple[float, int, int]


class GlassDraw(NamedTuple):
    """Where each pixel looks, in the order of the authors' scan: from the bottom right corner, row by row.

    Example:
        >>> GlassDraw(torch.zeros(1, 2, 30, 30), torch.zeros(1, 2, 30, 30)).dx.shape
        torch.Size([1, 2, 30, 30])

    Args:
        dx: (N, passes, H - 2*shift, W - 2*shift) whole numbers, from -shift to shift - 1: columns to the right.
        dy: the same downwards.
    """

    dx: Tensor
    dy: Tensor


def _sample(stream: Stream, shape: torch.Size, constant: Constant) -> GlassDraw:
    _, shift, passes = constant
    height, width = (max(0, size - 2 * shift) for size in shape[-2:])
    # One number for both offsets is half the work.
    both = stream.integers(0, 4 * shift * shift, passes, height, width)
    down = both.div(2 * shift, rounding_mode="floor")
    return GlassDraw(both - down * (2 * shift) - shift, down - shift)


def _scanned(height: int, width: int, shift: int, device: torch.device) -> Tensor:
    """The flat places of the pixels in the authors' order."""
    rows = torch.arange(height - shift, shift, -1, device=device)
    columns = torch.arange(width - shift, shift, -1, device=device)
    return (rows[:, None] * width + columns).flatten()


def _followed(pointers: Tensor) -> Tensor:
    """Follow pointers (N, P) within each row to where they end; an end points to itself."""
    n, size = pointers.shape
    # Rows one behind the other, since picking from a flat tensor is the quickest.
    pointers = (pointers + torch.arange(n, device=pointers.device)[:, None] * size).flatten()
    while True:
        further = pointers.index_select(0, pointers)
        if torch.equal(further, pointers):
            break
        pointers = further
    return pointers.view(n, size) - torch.arange(n, device=pointers.device)[:, None] * size


def copied_from(offsets: Tensor, height: int, width: int, shift: int) -> Tensor:
    """Where each pixel comes from after one pass of copies.

    The scan sets a pixel to the present value of the pixel it looks at. If the scan has passed there already, that is
    in turn a copy. These chains are followed all at once, by doubling.

    Example:
        >>> copied_from(torch.full((1, 4), -1), 4, 4, 1)[0, 8:12].tolist()
        [8, 9, 9, 10]

    Args:
        offsets: (N, pixels in the scan) int64, to the pixel looked at, as a difference of flat places.
        height: of the images.
        width: of the images.
        shift: pixels nearer to the border than this are not scanned.

    Returns:
        (N, height * width) int64, flat places.
    """
    places = _scanned(height, width, shift, offsets.device)
    every = torch.arange(height * width, device=offsets.device).expand(len(offsets), -1)
    looked_at = places + offsets
    # A larger flat place was scanned before.
    ahead = offsets > 0
    pointers = every.clone()
    pointers[:, places] = torch.where(ahead, looked_at, places)
    ends = every.clone()
    ends[:, places] = torch.where(ahead, places, looked_at)
    return ends.gather(1, _followed(pointers))


def swapped_from(offsets: Tensor, height: int, width: int, shift: int) -> Tensor:
    """Where each pixel comes from after one pass of true swaps.

    Every swap is an event at two places. A pixel's way back in time goes from the last event at its place to the other
    place of that event, from there to the event before it at that place, and so on: a chain again.

    Example:
        >>> swapped_from(torch.full((1, 4), -1), 4, 4, 1)[0, 8:12].tolist()
        [8, 11, 9, 10]

    Args:
        offsets: (N, pixels in the scan) int64, to the pixel to swap with, as a difference of flat places.
        height: of the images.
        width: of the images.
        shift: pixels nearer to the border than this are not scanned.

    Returns:
        (N, height * width) int64, flat places.
    """
    n, steps = offsets.shape
    device = offsets.device
    places = _scanned(height, width, shift, device).expand(n, -1)
    both = torch.cat([places, places + offsets], 1)
    time = torch.arange(steps, device=device).repeat(2)
    # Events by place, then by time. A pixel swapped with itself has two at once; their order does not matter.
    order = torch.argsort(both * steps + time, dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(2 * steps, device=device).expand(n, -1))
    where = both.gather(1, order)
    partner = rank.gather(1, (order + steps) % (2 * steps))
    came_from = where.gather(1, partner)
    before = (partner - 1).clamp(min=0)
    first = (partner == 0) | (where.gather(1, before) != came_from)
    itself = torch.arange(2 * steps, device=device).expand(n, -1)
    origin = came_from.gather(1, _followed(torch.where(first, itself, before)))
    # The last event at each place tells; the others go to a place beyond the image.
    last = torch.ones_like(first)
    last[:, :-1] = where[:, 1:] != where[:, :-1]
    beyond = height * width
    result = torch.arange(beyond + 1, device=device).repeat(n, 1)
    result.scatter_(1, torch.where(last, where, beyond), origin)
    return result[:, :beyond]


def _glass(x: Tensor, constant: Constant, params: GlassDraw, moved: Callable[..., Tensor]) -> Tensor:
    sigma, shift, passes = constant
    channels, height, width = x.shape[1:]
    levels = blur_levels(whole_levels(x), sigma).floor_().clamp_(0, 255)
    if params.dx.numel():
        offsets = (params.dy.to(torch.int64) * width + params.dx.to(torch.int64)).flatten(2)
        source = moved(offsets[:, 0], height, width, shift)
        for i in range(1, passes):
            source = source.gather(1, moved(offsets[:, i], height, width, shift))
        flat = levels.flatten(2)
        levels = flat.gather(2, source[:, None].expand(-1, channels, -1)).view_as(levels)
    return blur_levels(levels, sigma).div_(255).clamp_(0, 1)


def _glass_blur(x: Tensor, constant: Constant, params: GlassDraw) -> Tensor:
    return _glass(x, constant, params, copied_from)


def _glass_blur_swap(x: Tensor, constant: Constant, params: GlassDraw) -> Tensor:
    return _glass(x, constant, params, swapped_from)


CORRUPTIONS: tuple[Corruption, ...] = (
    # The authors' code reads like a swap, but the views on its right-hand side make it a copy.
    Corruption("glass_blur", "blur", _sample, _glass_blur, CONSTANTS["glass_blur"]),
    Corruption("glass_blur_swap", "blur", _sample, _glass_blur_swap, CONSTANTS["glass_blur"]),
)
