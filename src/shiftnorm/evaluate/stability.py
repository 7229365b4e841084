"""Stability along perturbation sequences (ImageNet-P, CIFAR-10-P): flips of the prediction and of the top five."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

__all__ = [
    "CIFAR10_P",
    "IMAGENET_P",
    "flip_probability",
    "flips_by_sequence",
    "mean_flip_probability",
    "mean_flip_rate",
    "mean_top5_distance",
    "top5_by_sequence",
    "top5_distance",
]

IMAGENET_P: Final = (
    "gaussian_noise",
    "shot_noise",
    "motion_blur",
    "zoom_blur",
    "snow",
    "brightness",
    "translate",
    "rotate",
    "tilt",
    "scale",
)
"""The perturbations that mFR and mT5D average over."""

CIFAR10_P: Final = tuple("spatter" if name == "snow" else name for name in IMAGENET_P)
"""The perturbations that mFP on CIFAR-10-P averages over: spatter in place of snow."""


def flip_probability(predicted: Tensor, *, noise: bool, stride: int = 1) -> float:
    """Share of frames whose prediction differs from that of an earlier frame, in percent.

    Every frame is compared to the one before it; where the frames are independent draws of noise, to the first.

    Example:
        >>> sequence = torch.tensor([[7, 7, 3, 3, 7]])
        >>> flip_probability(sequence, noise=False), flip_probability(sequence, noise=True)
        (50.0, 50.0)
        >>> flip_probability(sequence, noise=False, stride=2)
        100.0

    Args:
        predicted: (sequences, frames) class indices.
        noise: whether the perturbation is noise, whose frames have no order.
        stride: how far apart compared frames are: the difficulty 1 to 3 of ImageNet-P. Noise takes its difficulty from
            other files, so it has stride 1.

    Returns:
        The mean over sequences of the mean over frames.

    Raises:
        ValueError: if there is nothing to compare, or noise has a stride.
    """
    _check("flip_probability", predicted, 2, noise, stride)
    return flips_by_sequence(predicted, noise=noise, stride=stride).mean().item()


def flips_by_sequence(predicted: Tensor, *, noise: bool, stride: int = 1) -> Tensor:
    """`flip_probability` of each sequence, for intervals over sequences.

    Example:
        >>> flips_by_sequence(torch.tensor([[7, 7, 3, 3, 7], [1, 1, 1, 1, 1]]), noise=False)
        tensor([50.,  0.], dtype=torch.float64)

    Args:
        predicted: (sequences, frames) class indices.
        noise: as for `flip_probability`.
        stride: as for `flip_probability`.

    Returns:
        (sequences,) float64, in percent.

    Raises:
        ValueError: as `flip_probability` does.
    """
    _check("flips_by_sequence", predicted, 2, noise, stride)
    before = predicted[:, :1] if noise else predicted[:, :-stride]
    return 100.0 * (predicted[:, stride:] != before).double().mean(1)


def top5_distance(top5: Tensor, *, noise: bool, stride: int = 1) -> float:
    """How far the five best classes move between frames: T5D.

        d = sum over ranks i = 1..5 of |i - min(rank in the later frame of the class at rank i, 6)|

    Example:
        >>> top5_distance(torch.tensor([[[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]]]), noise=False)
        2.0
        >>> top5_distance(torch.tensor([[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]]), noise=False)
        15.0

    Args:
        top5: (sequences, frames, 5) class indices from the best on, as `scores.topk(5).indices`.
        noise: whether the perturbation is noise: then frames are compared to the first one.
        stride: how far apart compared frames are.

    Returns:
        The mean over sequences of the mean over frames, 0 to 15.

    Raises:
        ValueError: if there is nothing to compare, noise has a stride, or a frame names a class twice.
    """
    _check("top5_distance", top5, 3, noise, stride)
    return top5_by_sequence(top5, noise=noise, stride=stride).mean().item()


def top5_by_sequence(top5: Tensor, *, noise: bool, stride: int = 1) -> Tensor:
    """`top5_distance` of each sequence, for intervals over sequences.

    Example:
        >>> top5_by_sequence(torch.tensor([[[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]]]), noise=False)
        tensor([2.], dtype=torch.float64)

    Args:
        top5: (sequences, frames, 5) class indices from the best on.
        noise: as for `top5_distance`.
        stride: as for `top5_distance`.

    Returns:
        (sequences,) float64, 0 to 15.

    Raises:
        ValueError: as `top5_distance` does.
    """
    _check("top5_by_sequence", top5, 3, noise, stride)
    ordered = top5.sort(-1).values
    if top5.shape[-1] != 5 or bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ValueError(
            f"top5_distance: expected five different classes per frame, (sequences, frames, 5), got "
            f"{tuple(top5.shape)}{' with repeated classes' if top5.shape[-1] == 5 else ''}."
        )
    after = top5[:, stride:]
    before = (top5[:, :1] if noise else top5[:, :-stride]).expand_as(after)
    same = before[..., :, None] == after[..., None, :]  # (..., rank before, rank after)
    ranks = torch.arange(1, 6, device=top5.device)
    # ranks from 6 on count as 6: beyond the five, order does not matter
    later = torch.where(same.any(-1), (same * ranks).sum(-1), 6)
    return (later - ranks).abs().sum(-1).double().mean(1)


def mean_flip_probability(flips: Mapping[str, float]) -> float:
    """Mean flip probability over perturbations, not normalised: mFP, the convention of CIFAR-10-P.

    Example:
        >>> mean_flip_probability({"tilt": 2.0, "scale": 4.0})
        3.0

    Args:
        flips: flip probability by perturbation, in percent.

    Returns:
        The mean in percent.

    Raises:
        ValueError: if there is no perturbation.
    """
    if not flips:
        raise ValueError("mean_flip_probability: expected at least one perturbation, got none.")
    return statistics.fmean(flips.values())


def mean_flip_rate(flips: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean over perturbations of the flip probability in percent of a baseline's: mFR.

    No baseline is shipped: AlexNet's flip probabilities are not in the benchmark's files. Measure them on the same
    sequences.

    Example:
        >>> mean_flip_rate({"tilt": 2.0, "scale": 4.0}, {"tilt": 4.0, "scale": 16.0})
        37.5

    Args:
        flips: flip probability by perturbation; those of `IMAGENET_P` for the published mFR.
        baseline: the same of the baseline network.

    Returns:
        The mean of the ratios, in percent.

    Raises:
        ValueError: if the perturbations are not the same, or the baseline never flips.
    """
    return _normalised("mean_flip_rate", flips, baseline)


def mean_top5_distance(distances: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean over perturbations of the top-5 distance in percent of a baseline's: mT5D.

    No baseline is shipped: AlexNet's distances are not in the benchmark's files. Measure them on the same sequences.

    Example:
        >>> mean_top5_distance({"tilt": 1.0, "scale": 3.0}, {"tilt": 2.0, "scale": 4.0})
        62.5

    Args:
        distances: top-5 distance by perturbation.
        baseline: the same of the baseline network.

    Returns:
        The mean of the ratios, in percent.

    Raises:
        ValueError: if the perturbations are not the same, or the baseline's distance is 0.
    """
    return _normalised("mean_top5_distance", distances, baseline)


def _normalised(who: str, values: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    if not values or values.keys() != baseline.keys():
        raise ValueError(
            f"{who}: expected the same perturbations of network and baseline, only the network has "
            f"{sorted(values.keys() - baseline.keys())}, only the baseline {sorted(baseline.keys() - values.keys())}."
        )
    still = [name for name, value in baseline.items() if not value > 0]
    if still:
        raise ValueError(f"{who}: expected a baseline above 0 for each perturbation, it is not for {still}.")
    return 100.0 * statistics.fmean(values[name] / baseline[name] for name in values)


def _check(who: str, frames: Tensor, rank: int, noise: bool, stride: int) -> None:
    if frames.ndim != rank or frames.shape[0] == 0:
        shape = "(sequences, frames)" if rank == 2 else "(sequences, frames, 5)"
        raise ValueError(f"{who}: expected {shape} with at least one sequence, got {tuple(frames.shape)}.")
    if noise and stride != 1:
        raise ValueError(
            f"{who}: noise is compared to the first frame, so it has stride 1, got {stride}. "
            "Its difficulties are sequences of their own."
        )
    if not 1 <= stride < frames.shape[1]:
        raise ValueError(f"{who}: expected a stride from 1 to {frames.shape[1] - 1}, got {stride}.")
