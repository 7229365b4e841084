"""Interleaved timing of training steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class StepTime(NamedTuple):
    """Median wall time of a step, and its median ratio to the reference's step of the same round.

    Example:
        >>> StepTime(milliseconds=12.0, ratio=1.5).ratio
        1.5
    """

    milliseconds: float
    ratio: float


def time_steps(
    steps: Mapping[str, Callable[[], object]],
    reference: str,
    *,
    warmup: int = 3,
    min_rounds: int = 5,
    max_rounds: int = 25,
    seconds: float = 10.0,
    seed: int = 0,
) -> dict[str, StepTime]:
    """Time several kinds of step against each other in one process.

    Every round runs each step once, in a random order, so a machine that slows down for a while slows all of them; the
    ratio is taken within each round and its median over rounds is kept.

    Example:
        >>> times = time_steps({"a": lambda: sum(range(100)), "b": lambda: sum(range(200000))}, "a", seconds=0.1)
        >>> times["a"].ratio, times["b"].ratio > 1
        (1.0, True)

    Args:
        steps: name to a function that makes one step.
        reference: the name that the ratios divide by.
        warmup: rounds that are run and not counted.
        min_rounds: counted rounds at least.
        max_rounds: counted rounds at most.
        seconds: no new round is started after this time, once there are `min_rounds`.
        seed: of the order within rounds.

    Returns:
        Name to median time and ratio.

    Raises:
        ValueError: if the reference is not among the steps.
    """
    if reference not in steps:
        raise ValueError(f"time_steps: expected the reference {reference!r} among the steps, got {', '.join(steps)}.")
    names = list(steps)
    generator = torch.Generator().manual_seed(seed)
    rounds: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(rounds) < warmup + max_rounds:
        if len(rounds) >= warmup + min_rounds and time.perf_counter() - began > seconds:
            break
        elapsed: dict[str, float] = {}
        for index in torch.randperm(len(names), generator=generator).tolist():
            _synchronize()
            start = time.perf_counter()
            steps[names[index]]()
            _synchronize()
            elapsed[names[index]] = time.perf_counter() - start
        rounds.append(elapsed)
    counted = rounds[warmup:]
    return {
        name: StepTime(
            1000 * statistics.median(each[name] for each in counted),
            statistics.median(each[name] / each[reference] for each in counted),
        )
        for name in names
    }


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
