"""Seeds that say what a draw is for, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import hashlib

import torch
from torch import distributed

__all__ = ["coin", "rank", "seed_of"]


def seed_of(*numbers: int) -> int:
    """One well-spread seed from several numbers, such as a run's seed, a rank and a step.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def coin(p: float, *numbers: int) -> bool:
    """True with probability p: always the same for the same numbers, on every rank.

    It is thrown on the host: a generator there needs no device, so that nothing waits for one.

    Example:
        >>> coin(1.0, 7), coin(0.0, 7)
        (True, False)
    """
    generator = torch.Generator().manual_seed(seed_of(*numbers))
    return bool(torch.rand((), generator=generator) < p)


def rank() -> int:
    """This process's rank in a distributed job; 0 where there is none.

    Example:
        >>> rank()
        0
    """
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
