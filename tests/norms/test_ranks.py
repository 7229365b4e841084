"""Norms whose batch is spread over ranks, against the whole batch in one process."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, distributed, nn

from shiftnorm.norms import BatchNorm, RunningMoments, SelfNorm


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(BatchNorm(4), SelfNorm(4), BatchNorm(4, momentum=None)).double()


def _rank(rank: int, port: int, shards: list[Tensor], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=len(shards))
    model = network()
    for module in model.modules():
        if isinstance(module, RunningMoments):
            module.process_group = distributed.group.WORLD
    x = shards[rank].requires_grad_()
    y = model(x)
    y.square().sum().backward()
    results[rank] = y.detach(), x.grad, model.state_dict()
    distributed.destroy_process_group()


def test_two_ranks_equal_one_batch() -> None:
    shards = [torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(1, 4, 5, dtype=torch.float64) + 2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_rank, args=(port, [shard.clone() for shard in shards], results), nprocs=2)
        (first, first_gradient, first_state), (second, second_gradient, second_state) = results[0], results[1]
    model, x = network(), torch.cat(shards).requires_grad_()
    y = model(x)
    y.square().sum().backward()
    torch.testing.assert_close(torch.cat([first, second]), y.detach())
    torch.testing.assert_close(torch.cat([first_gradient, second_gradient]), x.grad)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(first_state[name], value)
        torch.testing.assert_close(second_state[name], value)
