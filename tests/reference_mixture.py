"""The plain formulas of the Gaussian mixture over pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_planes import Buffers, State, planes, scale_shift


def mixture_components(pixels: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The M step: share (K,), mean (K, C) and variance (K, C) of each component from responsibilities (M, K)."""
    weight = (responsibilities / responsibilities.sum(0)).T
    mean = weight @ pixels
    var = (weight.unsqueeze(-1) * (pixels - mean.unsqueeze(1)) ** 2).sum(1)
    return responsibilities.mean(0), mean, var


def mixture_responsibilities(pixels: Tensor, share: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """The E step: how likely each component (diagonal Gaussian) is behind each pixel, (M, K)."""
    spread = var + eps
    distance = ((pixels.unsqueeze(1) - mean) ** 2 / spread).sum(-1)
    return (share.log() - 0.5 * (distance + spread.log().sum(-1))).softmax(-1)


def mixture_seeds(pixels: Tensor, races: Tensor) -> Tensor:
    """k-means++ as a race: each seed is the pixel of the largest squared distance to earlier seeds over its time."""
    seeds = pixels[(1 / races[0]).argmax()].unsqueeze(0)
    for race in races[1:]:
        distance = ((pixels.unsqueeze(1) - seeds) ** 2).sum(-1).min(1).values
        seeds = torch.cat((seeds, pixels[(distance / race).argmax()].unsqueeze(0)))
    return seeds


def mixture_norm(
    x: Tensor,
    state: State,
    *,
    training: bool,
    races: Tensor | None = None,
    steps: int = 2,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
) -> tuple[Tensor, Buffers]:
    """Every pixel's C-vector belongs to K components in part, and is standardised by each of them.

    Fitted to the batch in training, from seeds chosen by ``races`` (K, N, L); the responsibilities are constants.
    """
    pixels = planes(x).transpose(1, 2).reshape(-1, x.shape[1])
    running = [state[name] for name in ("running_share", "running_mean", "running_var") if name in state]
    buffers: Buffers = {}
    if (training or not running) and races is not None:
        fixed = pixels.detach()
        seeds = mixture_seeds(fixed, races.flatten(1))
        nearest = ((fixed.unsqueeze(1) - seeds) ** 2).sum(-1).argmin(1)
        responsibilities = F.one_hot(nearest, len(seeds)).to(x.dtype)
        for _ in range(steps):
            responsibilities = mixture_responsibilities(fixed, *mixture_components(fixed, responsibilities), eps)
        share, mean, var = mixture_components(pixels, responsibilities)
        if training and running:
            fitted = (share, mean.detach(), var.detach() * len(pixels) / (len(pixels) - 1))
            buffers = mixture_average(state, *fitted, momentum=momentum)
    else:
        share, mean, var = running
        responsibilities = mixture_responsibilities(pixels.detach(), share, mean, var, eps)
    standard = (pixels.unsqueeze(1) - mean) / (var + eps).sqrt()
    y = (responsibilities.unsqueeze(-1) / share.sqrt().unsqueeze(-1) * standard).sum(1)
    y = y.reshape(x.shape[0], -1, x.shape[1]).transpose(1, 2)
    return scale_shift(y, state).reshape(x.shape), buffers


def mixture_average(state: State, share: Tensor, mean: Tensor, var: Tensor, *, momentum: float | None) -> Buffers:
    """Each running component moves towards the batch's nearest one that is still free, by its share of the batch."""
    seen = state["num_batches_tracked"] + 1
    pace = 1.0 / float(seen) if momentum is None else momentum
    old_share, old_mean, old_var = state["running_share"], state["running_mean"], state["running_var"]
    cost = ((old_mean.unsqueeze(1) - mean) ** 2).sum(-1)
    partner = torch.zeros(len(share), dtype=torch.long)
    for _ in range(len(share)):
        row, column = divmod(int(cost.argmin()), len(share))
        partner[row] = column
        cost[row], cost[:, column] = torch.inf, torch.inf
    new_share = old_share + pace * (share[partner] - old_share)
    step = (pace * share[partner] / new_share).unsqueeze(1)
    return {
        "running_share": new_share,
        "running_mean": old_mean + step * (mean[partner] - old_mean),
        "running_var": old_var + step * (var[partner] - old_var),
        "num_batches_tracked": seen,
    }
