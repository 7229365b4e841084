"""Spatter: drops of water on the lens, or mud.

The authors find the rims of the drops by OpenCV's Canny and shade them by its distance transform. Here both are tensor
operations on whole batches that give the same pixels; OpenCV is not needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream

__all__ = ["CORRUPTIONS", "canny", "chamfer", "equalize", "sample_spatter", "spatter"]

WATER, MUD = (175, 238, 238), (63, 42, 20)
THINNEST_MUD = 0.8
WEAK_EDGE, STRONG_EDGE = 50, 150
FARTHEST = 20
# Distances are whole multiples of 1 / 65536, as OpenCV's are, and stay exact in single precision.
ONE = 2**16
# Steps of OpenCV's 5x5 mask: straight, diagonal, a knight's move.
STRAIGHT, DIAGONAL, KNIGHT = ONE, round(1.4 * ONE), round(2.1969 * ONE)
STEPS = (
    *((0, 1, STRAIGHT), (1, 0, STRAIGHT), (1, 1, DIAGONAL), (1, -1, DIAGONAL)),
    *((1, 2, KNIGHT), (2, 1, KNIGHT), (1, -2, KNIGHT), (2, -1, KNIGHT)),
)
# OpenCV's tangent of 22.5 degrees, in units of 1 / 32768.
TANGENT = 13573
GROWTHS_PER_CHECK = 4


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """The matrix that smooths a line of ``size`` numbers, cut off at four sigmas, repeating the ends."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    sources = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, sources, (taps / taps.sum()).expand(size, -1))
    return matrix.to(like.device, like.dtype)


def _smooth(field: Tensor, sigma: float) -> Tensor:
    height, width = field.shape[-2:]
    return _gaussian(height, sigma, field) @ field @ _gaussian(width, sigma, field).T


def _padded(x: Tensor, mode: str) -> Tensor:
    return F.pad(x[:, None], (1, 1, 1, 1), mode=mode)[:, 0]


def _sum_of_nine(x: Tensor) -> Tensor:
    around = _padded(x, "reflect")
    three = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
    return three[:, :, :-2] + three[:, :, 1:-1] + three[:, :, 2:]


def _grown(edges: Tensor) -> Tensor:
    """Edges (N, H, W) and their eight neighbours."""
    tall = edges.clone()
    tall[:, 1:] |= edges[:, :-1]
    tall[:, :-1] |= edges[:, 1:]
    wide = tall.clone()
    wide[:, :, 1:] |= tall[:, :, :-1]
    wide[:, :, :-1] |= tall[:, :, 1:]
    return wide


def canny(levels: Tensor, weak: float, strong: float) -> Tensor:
    """Edges of grey images, by Canny's method as OpenCV computes it: 3x3 Sobel, sum of absolute slopes.

    Example:
        >>> step = torch.zeros(1, 3, 6)
        >>> step[:, :, 3:] = 200
        >>> canny(step, 50, 150)[0, 0].int().tolist()
        [0, 0, 1, 0, 0, 0]

    Args:
        levels: (N, H, W), whole numbers from 0 to 255, as float.
        weak: an edge's slope must be larger.
        strong: and larger than this somewhere along the edge.

    Returns:
        (N, H, W) bool.
    """
    height, width = levels.shape[1:]
    around = _padded(levels, "replicate")
    across, down = around[:, :, 2:] - around[:, :, :-2], around[:, 2:] - around[:, :-2]
    dx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    dy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    steep_x, steep_y = dx.abs(), dy.abs()
    slope = steep_x + steep_y
    slopes = F.pad(slope, (1, 1, 1, 1))

    def beside(i: int, j: int) -> Tensor:
        return slopes[:, 1 + i : 1 + i + height, 1 + j : 1 + j + width]

    # Every number here is a whole one below 2**24 or such a one times a power of two, so the comparisons are exact.
    bound = steep_x * TANGENT
    horizontal = steep_y * 2**15 < bound
    vertical = (steep_y - 2 * steep_x) * 2**15 > bound
    falling = (dx < 0) == (dy < 0)
    along_row = (slope > beside(0, -1)) & (slope >= beside(0, 1))
    along_column = (slope > beside(-1, 0)) & (slope >= beside(1, 0))
    one_diagonal = (slope > beside(-1, -1)) & (slope > beside(1, 1))
    other_diagonal = (slope > beside(-1, 1)) & (slope > beside(1, -1))
    diagonal = torch.where(falling, one_diagonal, other_diagonal)
    crest = torch.where(horizontal, along_row, torch.where(vertical, along_column, diagonal))
    possible = crest & (slope > weak)
    edges = possible & (slope > strong)
    while True:
        grown = edges
        for _ in range(GROWTHS_PER_CHECK):
            grown = _grown(grown) & possible
        if torch.equal(grown, edges):
            return edges
        edges = grown


def chamfer(edges: Tensor) -> Tensor:
    """Distance of every pixel to the nearest edge, at most 20 pixels, in units of 1/65536 pixel.

    The distance is the length of the shortest path of straight steps (1), diagonal steps (1.4) and knight's moves
    (2.1969), which is what OpenCV's two sweeps with a 5x5 mask compute. The order of a path's steps does not matter, so
    each direction is taken once, in strides that double.

    Example:
        >>> edges = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> edges[0, 0, 0] = True
        >>> (chamfer(edges)[0, 0, :3] / 65536).tolist()
        [0.0, 1.0, 2.0]

    Args:
        edges: (N, H, W) bool.

    Returns:
        (N, H, W) whole numbers, as float32.
    """
    height, width = edges.shape[1:]
    distance = torch.where(edges, 0.0, torch.tensor(float(FARTHEST * ONE), device=edges.device))
    for down, right, length in STEPS:
        stride = 1
        while stride * length < FARTHEST * ONE and stride * down < height and stride * abs(right) < width:
            y, x = stride * down, stride * right
            here = distance[:, y:, max(x, 0) : width + min(x, 0)]
            there = distance[:, : height - y, max(-x, 0) : width + min(-x, 0)]
            torch.minimum(here, there + stride * length, out=here)
            torch.minimum(there, here + stride * length, out=there)
            stride *= 2
    return distance


def equalize(levels: Tensor) -> Tensor:
    """Levels spread over 0 to 255 so that each is as common as it can be, as OpenCV's ``equalizeHist`` does.

    Example:
        >>> equalize(torch.tensor([[[3.0, 3.0, 5.0, 9.0]]])).tolist()
        [[[0.0, 0.0, 128.0, 255.0]]]

    Args:
        levels: (N, H, W), whole numbers from 0 to 20, as float.

    Returns:
        (N, H, W) whole numbers from 0 to 255, as float. An image of one level stays as it is.
    """
    values = torch.arange(FARTHEST + 1, device=levels.device)
    which = levels.long().flatten(1)
    counts = torch.zeros(len(levels), FARTHEST + 1, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(1, which, torch.ones_like(which))
    lowest = which.amin(1, keepdim=True)
    first = counts.gather(1, lowest)
    rest = which.shape[1] - first
    # Below the lowest level the sum is less than nothing, but no pixel looks there.
    table = ((counts.cumsum(1) - first).float() * (255 / rest.float())).round()
    table = torch.where(rest == 0, values.float(), table)
    return table.gather(1, which).view_as(levels)


def _water(levels: Tensor) -> Tensor:
    """The brightness of drops (N, H, W), at most 1, from the layer of liquid in whole levels."""
    distance = chamfer(canny(levels, WEAK_EDGE, STRONG_EDGE))
    # Means of nine of OpenCV: of floats, cut off to whole levels; of bytes, rounded.
    shades = _padded(equalize((_sum_of_nine(distance) / (9 * ONE)).floor()), "reflect")
    middle = shades[:, 1:-1]
    relief = 2 * (shades[:, 2:, 2:] - shades[:, :-2, :-2]) - shades[:, :-2, 1:-1] + shades[:, 2:, 1:-1]
    relief = (relief - middle[:, :, :-2] + middle[:, :, 1:-1] + middle[:, :, 2:]).clamp_(0, 255)
    drops = levels * (_sum_of_nine(relief) / 9).round()
    brightest = drops.amax((1, 2), keepdim=True)
    # Where nothing is left of the drops the authors divide 0 by 0.
    return torch.where(brightest > 0, drops / brightest, 0.0)


def sample_spatter(stream: Stream, shape: torch.Size, constant: tuple[float, ...]) -> Tensor:
    """Standard normal numbers for the layers of liquid.

    Example:
        >>> constant = (0.65, 0.3, 4, 0.69, 0.6, 0)
        >>> sample_spatter(Stream(0, "spatter", 1, torch.arange(4)), torch.Size([4, 3, 224, 160]), constant).shape
        torch.Size([4, 224, 160])

    Args:
        stream: the random numbers.
        shape: of the images.
        constant: not used.

    Returns:
        (N, H, W). The authors' draws are these times the standard deviation plus the mean.
    """
    return stream.normal(*shape[-2:])


def spatter(x: Tensor, constant: tuple[float, ...], draw: Tensor) -> Tensor:
    """Images with drops of water, which add light, or with mud, which covers.

    Example:
        >>> images = torch.zeros(1, 3, 32, 32)
        >>> muddy = spatter(images, (0.65, 0.1, 0.7, 0.69, 0.6, 1), torch.randn(1, 32, 32))
        >>> muddy.shape, bool(muddy.max() <= 63 / 255)
        (torch.Size([1, 3, 32, 32]), True)

    Args:
        x: (N, 3, H, W) in [0, 1].
        constant: mean, standard deviation and sigma of the layer of liquid; threshold; strength (of water) or sigma (of
            mud); 0 for water and 1 for mud.
        draw: what :func:`sample_spatter` returned.

    Returns:
        (N, 3, H, W) in [0, 1]. An image on which no drop is left stays as it is; the authors' is undefined.
    """
    mean, deviation, sigma, threshold, strength, mud = constant
    if not len(x):
        return x.clone()
    liquid = _smooth(draw.to(x.dtype) * deviation + mean, sigma)
    colour = x.new_tensor(MUD if mud else WATER).view(3, 1, 1) / 255
    if mud:
        cover = _smooth((liquid > threshold).to(x.dtype), strength)
        cover = torch.where(cover < THINNEST_MUD, 0.0, cover)[:, None]
        return (x * (1 - cover)).addcmul_(colour, cover).clamp_(0, 1)
    # Bytes start again from 0 after 255: the authors' deepest drops have a hole.
    levels = torch.where(liquid < threshold, 0.0, liquid * 255).floor_().remainder_(256)
    return torch.addcmul(x, colour, _water(levels)[:, None] * strength).clamp_(0, 1)


CORRUPTIONS = (Corruption("spatter", "weather", sample_spatter, spatter, CONSTANTS["spatter"]),)
