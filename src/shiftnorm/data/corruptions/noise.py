"""Noise: Gaussian, shot, impulse and speckle."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shiftnorm.data.corruptions.base import Corruption
from shiftnorm.data.corruptions.constants import CONSTANTS
from shiftnorm.data.corruptions.draws import Stream

__all__ = ["CORRUPTIONS", "Impulses", "Photons", "photons"]

WORD_BITS = 31


class Photons(NamedTuple):
    """Counts of photons, for each value of the images.

    Example:
        >>> shot = CORRUPTIONS[1]
        >>> shot.apply(torch.full((1, 3, 1, 1), 0.2), 10, Photons(torch.full((1, 3, 1, 1), 4))).flatten().tolist()
        [0.4..., 0.4..., 0.4...]
    """

    counts: Tensor


class Impulses(NamedTuple):
    """Which values of the images are replaced, and which of those by 1 instead of 0.

    Example:
        >>> impulses = Impulses(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        >>> CORRUPTIONS[2].apply(torch.full((3,), 0.25), 0.1, impulses).tolist()
        [1.0, 0.0, 0.25]
    """

    replaced: Tensor
    white: Tensor


def _normal(stream: Stream, shape: torch.Size, _: float) -> Tensor:
    return stream.normal(*shape[1:])


def _gaussian_noise(x: Tensor, sigma: float, draw: Tensor) -> Tensor:
    return torch.add(x, draw, alpha=sigma).clamp_(0, 1)


def _speckle_noise(x: Tensor, sigma: float, draw: Tensor) -> Tensor:
    return torch.addcmul(x, x, draw, value=sigma).clamp_(0, 1)


def _two_bits(stream: Stream, shape: torch.Size, amount: float) -> Impulses:
    # One word decides both: its lowest part replaces by 1, as large a part above that by 0.
    words = stream.words(*shape[1:])
    below = [round(part * 2**32) - 2**31 for part in (amount, amount / 2)]
    return Impulses(words < below[0], words < below[1])


def _impulse_noise(x: Tensor, amount: float, draw: Impulses) -> Tensor:
    return torch.where(draw.replaced, draw.white.to(x.dtype), x)


def _words(stream: Stream, shape: torch.Size, _: float) -> Tensor:
    return stream.words(*shape[1:])


def _alias(chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's tables of distributions (rows): how much of a column is its own number, and which number the rest is.

    One column per step is filled up to the height 1, in all rows at once: the next low one from the high one at hand,
    or that one, once it is low itself, from the next high one.
    """
    count, columns = chances.shape
    heights = chances * columns
    rows = np.arange(count)
    # Places of the low columns and of the high ones, each in order, with a place beyond the end behind the last.
    order = np.arange(columns)
    lows, highs = (np.sort(np.where(which, order, columns), 1) for which in (heights < 1, heights >= 1))
    lows, highs = (np.pad(places, ((0, 0), (0, 2)), constant_values=columns) for places in (lows, highs))
    padded = np.pad(heights, ((0, 0), (0, 1)))
    own, other = np.ones((count, columns + 1)), np.tile(np.arange(columns + 1), (count, 1))
    low, high = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    left = padded[rows, highs[rows, high]]
    for _ in range(columns - 1):
        small, large = lows[rows, low], highs[rows, high]
        following = highs[rows, high + 1]
        full = left >= 1
        filled = np.where(full, small, large)
        own[rows, filled] = np.where(full, padded[rows, small], left)
        other[rows, filled] = np.where(full, large, following)
        left = left - 1 + np.where(full, padded[rows, small], padded[rows, following])
        low, high = np.minimum(low + full, columns), np.minimum(high + ~full, columns)
    # What is still to be filled when rounding leaves nothing to fill it with is whole.
    own, other = own[:, :columns], other[:, :columns]
    return np.where(other >= columns, 1.0, own), np.where(other >= columns, order, other)


@functools.lru_cache(maxsize=32)
def _table(scale: float, device: torch.device) -> tuple[Tensor, int]:
    """For all levels, the columns of the table packed into words: the part that is its own, then the other count."""
    # Far enough that what is cut off has less chance than a word of 31 bits can say.
    bits = math.ceil(math.log2(scale + 7 * math.sqrt(scale) + 15))
    counts = np.arange(2**bits)
    logs = np.log(np.maximum(counts, 1)).cumsum()
    means = scale * np.arange(1, 256)[:, None] / 255
    chances = np.exp(counts * np.log(means) - means - logs)
    own, other = _alias(np.concatenate([counts[None] == 0, chances / chances.sum(1, keepdims=True)]))
    # A column that is whole names itself as the other, since a whole part does not fit into its bits.
    part = 2 ** (WORD_BITS - bits)
    packed = (np.minimum(np.rint(own * part), part - 1).astype(np.int64) << bits) | other
    return torch.from_numpy(packed.astype(np.int32).ravel()).to(device), bits


def photons(levels: Tensor, scale: float, words: Tensor) -> Tensor:
    """Poisson counts with the mean ``levels / 255 * scale``, each chance right to 1e-8, by one look-up in a table.

    Example:
        >>> words = Stream(0, "shot_noise", 1, torch.arange(1)).words(10_000)
        >>> counts = photons(torch.full((1, 10_000), 51), 60, words)
        >>> round(float(counts.float().mean())), round(float(counts.float().var()))
        (12, 12)

    Args:
        levels: whole numbers from 0 to 255, int32.
        scale: mean count at level 255.
        words: int32 of the same shape, all bits random.

    Returns:
        Counts of the same shape, int32.
    """
    table, bits = _table(scale, levels.device)
    words = words & 0x7FFFFFFF
    column = words >> (WORD_BITS - bits)
    entry = table.index_select(0, (levels.to(torch.int32) << bits).add_(column).flatten()).view(levels.shape)
    stays = words.bitwise_and_(2 ** (WORD_BITS - bits) - 1) < (entry >> bits)
    return torch.where(stays, column, entry.bitwise_and_(2**bits - 1))


def _shot_noise(x: Tensor, scale: float, draw: Tensor | Photons) -> Tensor:
    if isinstance(draw, Photons):
        counts = draw.counts
    else:
        counts = photons((x * 255).round_().to(torch.int32), scale, draw)
    return counts.to(x.dtype).div_(scale).clamp_(max=1)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("gaussian_noise", "noise", _normal, _gaussian_noise, CONSTANTS["gaussian_noise"]),
    Corruption("shot_noise", "noise", _words, _shot_noise, CONSTANTS["shot_noise"]),
    Corruption("impulse_noise", "noise", _two_bits, _impulse_noise, CONSTANTS["impulse_noise"]),
    Corruption("speckle_noise", "noise", _normal, _speckle_noise, CONSTANTS["speckle_noise"]),
)
