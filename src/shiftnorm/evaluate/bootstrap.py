"""Confidence intervals by resampling images, cells and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["Interval", "Statistic", "bootstrap", "wilson_interval"]

Statistic: TypeAlias = Tensor | Callable[[Tensor], Tensor]
"""Weights (cells,) of a weighted sum, or a function of (..., cells) means that returns (...)."""

_CHUNK = 2**23  # draws held at once


class Interval(NamedTuple):
    """An estimate between its bounds.

    Example:
        >>> Interval(5.0, 4.0, 6.5, 0.95).width
        2.5
    """

    estimate: float
    low: float
    high: float
    level: float

    @property
    def width(self) -> float:
        """High minus low.

        Example:
            >>> Interval(0.0, -1.0, 1.0, 0.9).width
            2.0
        """
        return self.high - self.low


def bootstrap(
    values: Tensor,
    statistic: Statistic | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    strata: Literal["images", "cells"] = "images",
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of a statistic of the cells' means.

    The same images are in every cell of a sweep, so an image is drawn with all its cells: drawing cells one by one
    would take what the cells have in common for independent evidence, and make the interval too narrow.

    Example:
        >>> errors = 100.0 * (torch.arange(400) % 4 == 0).float()
        >>> interval = bootstrap(errors)
        >>> interval.estimate, 20 < interval.low < 25 < interval.high < 30
        (25.0, True)

    Args:
        values: (N,), (cells, N) or (seeds, cells, N): a quantity of each image, such as `stack(cells).values`. With
            seeds, seeds and images are both drawn; fewer than about 8 seeds give too narrow an interval, for which
            `compare_seeds` has Student's t.
        statistic: weights of the cells, such as `cell_weights` gives, or a function of means (..., cells) that
            returns (...), such as ``lambda means: means.amax(-1)``; default: the mean over the cells.
        resamples: how many.
        level: of confidence.
        method: "bca" corrects bias and skewness; "percentile" takes the quantiles as they are.
        strata: "images" draws each image with all its cells; "cells" draws each cell by itself, for cells of different
            images.
        seed: of the draws, which are made on the CPU.

    Returns:
        Estimate and bounds. A cell without a single error gets an interval without width, which is too narrow: use
        `wilson_interval` for the error of one cell. The largest of several close cells is an estimate that errs to
        the high side; "bca" corrects for it, so its interval may lie below such an estimate.

    Raises:
        ValueError: if there are fewer than 2 images, a value is not finite, or an argument is out of range.
    """
    means_of = as_statistic(statistic)
    values = check_values("bootstrap", values, resamples)
    if not 0 < level < 1 or method not in ("bca", "percentile") or strata not in ("images", "cells"):
        raise ValueError(
            "bootstrap: expected a level between 0 and 1, method 'bca' or 'percentile' and strata 'images' or 'cells', "
            f"got {level}, {method!r} and {strata!r}."
        )
    if strata == "cells" and len(values) > 1:
        raise ValueError("bootstrap: strata='cells' takes the values of one seed, (cells, N).")
    generator = torch.Generator().manual_seed(seed)
    estimate = means_of(values.double().mean((0, 2))[None])[0]
    draw = _draw_images if strata == "images" else _draw_cells
    replicates = means_of(draw(values, resamples, generator))
    tail = (1 - level) / 2
    probabilities = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    if method == "bca":
        offset = replicates - estimate
        same = offset.abs() <= 1e-9 * replicates.abs().max()  # equal but for the order of summation
        below = ((offset < 0) & ~same).double().mean() + same.double().mean() / 2
        bias = torch.special.ndtri(below.clamp(0.5 / resamples, 1 - 0.5 / resamples))
        shifted = bias + torch.special.ndtri(probabilities)
        acceleration = _acceleration(values.double(), means_of, strata)
        probabilities = torch.special.ndtr(bias + shifted / (1 - acceleration * shifted)).clamp(0, 1)
    low, high = torch.quantile(replicates, probabilities).tolist()
    return Interval(estimate.item(), low, high, level)


def wilson_interval(wrong: int, count: int, level: float = 0.95) -> Interval:
    """Wilson's interval of the error of one cell, in percent; it has width also at 0 and at 100 %.

    Example:
        >>> interval = wilson_interval(0, 100)
        >>> interval.estimate, interval.low, round(interval.high, 2)
        (0.0, 0.0, 3.7)

    Args:
        wrong: images with a wrong prediction.
        count: images.
        level: of confidence.

    Returns:
        The error and its bounds.

    Raises:
        ValueError: if the counts are impossible or the level is not between 0 and 1.
    """
    if not 0 <= wrong <= count or count < 1 or not 0 < level < 1:
        raise ValueError(
            f"wilson_interval: expected 0 <= wrong <= count, count >= 1 and a level between 0 and 1, "
            f"got {wrong}, {count} and {level}."
        )
    z = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()
    share, extra = wrong / count, z * z / count
    centre = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    # the bounds at 0 and at count are exact, but for rounding
    low = 0.0 if wrong == 0 else centre - half
    high = 1.0 if wrong == count else centre + half
    return Interval(100 * share, 100 * low, 100 * high, level)


def as_statistic(statistic: Statistic | None) -> Callable[[Tensor], Tensor]:
    """The function of (rows, cells) means that a statistic stands for; it checks the result's shape."""

    def measure(means: Tensor) -> Tensor:
        if statistic is None:
            return means.mean(-1)
        if isinstance(statistic, Tensor):
            if statistic.shape != means.shape[-1:]:
                raise ValueError(
                    f"bootstrap: expected one weight per cell, {means.shape[-1]}, got {tuple(statistic.shape)}."
                )
            return means @ statistic.double()
        result = statistic(means)
        if result.shape != means.shape[:-1]:
            raise ValueError(
                f"bootstrap: the statistic should turn means {tuple(means.shape)} into {tuple(means.shape[:-1])}, "
                f"it gave {tuple(result.shape)}. Reduce the last axis only."
            )
        return result.double()

    return measure


def check_values(who: str, values: Tensor, resamples: int) -> Tensor:
    """The values as (seeds, cells, N) on the CPU, in float32 where its sums are exact and in float64 elsewhere."""
    shape = tuple(values.shape)
    if not 1 <= values.ndim <= 3 or shape[-1] < 2 or 0 in shape:
        raise ValueError(f"{who}: expected (N,), (cells, N) or (seeds, cells, N) with at least 2 images, got {shape}.")
    if resamples < 1:
        raise ValueError(f"{who}: expected at least 1 resample, got {resamples}.")
    values = values.detach().cpu()
    values = values if values.dtype == torch.float64 else values.float()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{who}: expected finite values, got NaN or infinity.")
    values = values.reshape((1,) * (3 - values.ndim) + shape)
    exact = values.abs().max().item() * shape[-1] < 2**24 and bool((values == values.round()).all())
    return values.float() if exact else values.double()


def _draw_images(values: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    seeds, cells, images = values.shape
    flat = values.reshape(seeds * cells, images).T.contiguous()
    rows = max(_CHUNK // images, 1)
    means: list[Tensor] = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = torch.randint(images, (size, images), generator=generator)
        counts = values.new_zeros(size, images).scatter_add_(1, drawn, values.new_ones(1).expand(size, images))
        mean = ((counts @ flat).double() / images).view(size, seeds, cells)
        if seeds > 1:
            chosen = torch.randint(seeds, (size, seeds), generator=generator)
            mean = mean.gather(1, chosen[:, :, None].expand(-1, -1, cells))
        means.append(mean.mean(1))
    return torch.cat(means)


def _draw_cells(values: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    columns: list[Tensor] = []
    for row in values[0]:
        levels = row.unique().double()
        if len(levels) <= 2:  # how many of the drawn images are wrong has a known distribution
            share = (row == levels[-1]).double().mean().expand(resamples)
            trials = share.new_full((resamples,), len(row))
            drawn = torch.binomial(trials, share, generator=generator) / len(row)
            columns.append(levels[0] + drawn * (levels[-1] - levels[0]))
        else:
            columns.append(_draw_images(row[None, None], resamples, generator)[:, 0])
    return torch.stack(columns, 1)


def _acceleration(values: Tensor, means_of: Callable[[Tensor], Tensor], strata: str) -> Tensor:
    """Skewness of the jackknife's influences; each kind of unit that is drawn is a sample of its own."""
    seeds, cells, images = values.shape
    means = values.mean((0, 2))
    centre = means_of(means[None])
    cubes, squares = values.new_zeros(()), values.new_zeros(())

    def add(left_out: Tensor) -> None:
        nonlocal cubes, squares
        count = len(left_out)
        influence = (count - 1) * (centre - means_of(left_out))
        cubes += (influence**3).sum() / count**3
        squares += (influence**2).sum() / count**2

    if strata == "cells":
        for cell in range(cells):
            left_out = means.expand(images, cells).clone()
            left_out[:, cell] = (means[cell] * images - values[0, cell]) / (images - 1)
            add(left_out)
    else:
        add((means * images - values.mean(0).T) / (images - 1))
        if seeds > 1:
            by_seed = values.mean(2)
            add((by_seed.sum(0) - by_seed) / (seeds - 1))
    return cubes / (6 * squares**1.5) if squares > 0 else squares
