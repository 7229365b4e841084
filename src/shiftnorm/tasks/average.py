"""Weights averaged over training."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from shiftnorm.tasks.copies import copy_each

__all__ = ["WeightAverage"]


@final
class WeightAverage(nn.Module):
    """A copy of a network whose weights follow it slowly; often the better network to evaluate.

        average = decay * average + (1 - decay) * weights      # after every optimizer step, from the first weights

    Running moments are averaged with the same decay, because they have to fit the averaged weights and not the newest
    ones; counters and other whole numbers are copied.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> average = WeightAverage(model, decay=0.75)
        >>> _ = nn.init.ones_(model.weight)
        >>> average.update(model)
        >>> average.module.weight.item()
        0.25

    Args:
        model: the network.
        decay: share of the average that stays, in [0, 1).

    State: ``module``, the averaged network; its parameters take no gradients.
    Raises: ValueError for a decay out of range.
    Differences: torch's AveragedModel does the same with ``use_buffers=True``, but reads its counter from the device in
        every update, which waits for it, and truncates averages of whole numbers; the averaging itself is torch's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAverage: expected a decay in [0, 1), got {decay}.")
        self.module = copy.deepcopy(model).requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of ``model``.

        Example:
            >>> model = nn.BatchNorm1d(2)
            >>> average = WeightAverage(model, 0.9)
            >>> model.num_batches_tracked.fill_(7)
            tensor(7)
            >>> average.update(model)
            >>> average.module.num_batches_tracked
            tensor(7)
        """
        averages: tuple[list[Tensor], list[Tensor]] = [], []
        copies: tuple[list[Tensor], list[Tensor]] = [], []
        for kind in (nn.Module.parameters, nn.Module.buffers):
            for ours, theirs in zip(kind(self.module), kind(model), strict=True):
                pair = averages if ours.is_floating_point() else copies
                pair[0].append(ours.detach())
                pair[1].append(theirs.detach())
        if averages[0]:
            self._average(*averages, 0)  # torch's function does not look at the count
        copy_each(*copies)
