"""Norms whose batch is spread over ranks, against the whole batch in one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from ranks import on_ranks
from shiftnorm.norms import BatchNorm, RunningMoments, SelfNorm


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(BatchNorm(4), SelfNorm(4), BatchNorm(4, momentum=None)).double()


def _step(rank: int, x: Tensor) -> tuple[Any, ...]:
    model = network()
    for module in model.modules():
        if isinstance(module, RunningMoments):
            module.process_group = distributed.group.WORLD
    y = model(x.requires_grad_())
    y.square().sum().backward()
    return y.detach(), x.grad, model.state_dict()


def test_two_ranks_equal_one_batch() -> None:
    shards = [torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(1, 4, 5, dtype=torch.float64) + 2]
    (first, first_gradient, first_state), (second, second_gradient, second_state) = on_ranks(_step, shards)
    model, x = network(), torch.cat(shards).requires_grad_()
    y = model(x)
    y.square().sum().backward()
    torch.testing.assert_close(torch.cat([first, second]), y.detach())
    torch.testing.assert_close(torch.cat([first_gradient, second_gradient]), x.grad)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(first_state[name], value)
        torch.testing.assert_close(second_state[name], value)
