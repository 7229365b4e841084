"""Learning rates from step to step."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["rate_factor"]


def rate_factor(
    step: int,
    *,
    steps: int,
    schedule: Literal["cosine", "steps"] = "cosine",
    final: float = 0.0,
    milestones: tuple[int, ...] = (),
    factor: float = 10.0,
    warmup: float = 0.0,
) -> float:
    """The share of the full learning rate that a step trains with.

        cosine = final + (1 - final) / 2 * (1 + cos(pi * step / steps))
        steps  = factor ** -(how many milestones the step has reached)

    Both are multiplied by ``min(1, (step + 1) / warmup)``.

    Example:
        >>> [round(rate_factor(step, steps=4, final=0.1), 3) for step in (0, 2, 4)]
        [1.0, 0.55, 0.1]
        >>> [rate_factor(step, steps=9, schedule="steps", milestones=(3, 6)) for step in (2, 3, 6)]
        [1.0, 0.1, 0.01]
        >>> [rate_factor(step, steps=9, schedule="steps", warmup=4) for step in (0, 1, 3, 5)]
        [0.25, 0.5, 1.0, 1.0]

    Args:
        step: optimizer steps done, from 0.
        steps: of the whole training.
        schedule: "cosine" or "steps".
        final: the share a cosine ends with.
        milestones: steps at which the rate is divided by ``factor``.
        factor: see ``milestones``.
        warmup: steps with a linear rise.

    Source: the cosine of the AugMix and CrossNorm scripts, where ``final`` is 1e-6 / learning rate.
    """
    if schedule == "steps":
        share = factor ** -sum(step >= milestone for milestone in milestones)
    else:
        share = final + (1 - final) * (0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))
    return share * min(1.0, (step + 1) / warmup) if warmup > 0 else share
