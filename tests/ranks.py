"""Work that is spread over processes of this machine, joined as ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, distributed


def on_ranks(work: Callable[[int, Tensor], Any], shards: list[Tensor]) -> list[Any]:
    """What ``work(rank, shard)`` returns on each of as many ranks as there are shards; a function of a module."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        own = [shard.clone() for shard in shards]
        multiprocessing.spawn(_join, args=(port, work, own, results), nprocs=len(shards))
        return [results[rank] for rank in range(len(shards))]


def _join(rank: int, port: int, work: Callable[[int, Tensor], Any], shards: list[Tensor], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=len(shards))
    results[rank] = work(rank, shards[rank])
    distributed.destroy_process_group()
