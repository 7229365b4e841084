"""Random boxes inside a plane, drawn on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shiftnorm.norms.draws import draw_beta

__all__ = ["draw_box", "inside_box"]

# At the published threshold a candidate is accepted with probability 0.65 or more on every plane that has an
# acceptable box at all, so that the chance of 64 misses is below 1e-29.
_CANDIDATES = 64


def draw_box(x: Tensor, beta: float, min_area: float, generator: torch.Generator | None = None) -> Tensor:
    """One box for the whole batch, as CrossNorm samples it, without a loop that waits for luck.

    The share of the plane is Beta(beta, beta), the centre uniform; the box is cut at the border, and drawn again
    unless it covers more than ``min_area``. All redraws are made at once and the first acceptable one is taken; where
    there is none (a side of 1 or 2 leaves no box at all), the whole plane is the box.

    Example:
        >>> draw_box(torch.zeros(4, 3, 2, 2), 1.0, 0.1)
        tensor([0, 0, 2, 2])

    Args:
        x: (N, C, *); only its shape and device are looked at.
        beta: parameter of the area's distribution.
        min_area: share of the plane a box must exceed.
        generator: a generator on x's device.

    Returns:
        (2d,) int64 for d spatial dimensions: the lower corner, then the upper one (exclusive).
    """
    device = x.device
    d = len(x.shape) - 2
    if d == 0:
        return torch.zeros(0, dtype=torch.int64, device=device)
    # Filled on the device, one by one: a tensor made of host numbers would wait for a GPU.
    sides = torch.stack([torch.full((), side, device=device, dtype=torch.float32) for side in x.shape[2:]])
    share = draw_beta((_CANDIDATES, 1), beta, device, generator)
    half = torch.floor(torch.floor(sides * share ** (1.0 / d)) / 2)
    center = torch.floor(torch.rand((_CANDIDATES, d), device=device, generator=generator) * sides)
    low, high = (center - half).clamp(min=0), torch.minimum(center + half, sides)
    accepted = ((high - low).prod(1) / math.prod(x.shape[2:])) > min_area
    first = accepted.to(torch.int8).argmax(0, keepdim=True)
    corners = torch.cat([low, high], 1).index_select(0, first).squeeze(0)
    whole = torch.cat([torch.zeros_like(sides), sides])
    return torch.where(accepted.any(), corners, whole).to(torch.int64)


def inside_box(box: Tensor, x: Tensor) -> Tensor:
    """A box as a mask that broadcasts against x.

    Example:
        >>> inside_box(torch.tensor([1, 3]), torch.zeros(4, 3, 5))
        tensor([[[False,  True,  True, False, False]]])

    Args:
        box: (2d,) int64, lower then upper corner.
        x: (N, C, *).

    Returns:
        bool tensor (1, 1, *).
    """
    d = x.dim() - 2
    mask = torch.ones([1] * x.dim(), dtype=torch.bool, device=x.device)
    for axis in range(d):
        place = torch.arange(x.shape[2 + axis], device=x.device)
        inside = (place >= box[axis]) & (place < box[d + axis])
        mask = mask & inside.reshape([-1 if dim == 2 + axis else 1 for dim in range(x.dim())])
    return mask
