"""The optimizer of a training recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from shiftnorm.recipe_tree import check_ranges, check_types, refuse

__all__ = ["GroupRecipe", "OptimizerRecipe"]


@final
@dataclass(frozen=True)
class GroupRecipe:
    """Parameters that are trained otherwise than the rest.

    Example:
        >>> GroupRecipe("*.gate", rate=10, weight_decay=0).rate
        10.0

    Args:
        match: a pattern for the names of parameters in the network, such as ``*.gate``; one that matches none is an
            error. A parameter belongs to the first group that matches it.
        rate: its learning rate as a multiple of the others'.
        weight_decay: None for that of the others.
    """

    match: str
    rate: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self, rate="[0, inf)", weight_decay="[0, inf)")


@final
@dataclass(frozen=True)
class OptimizerRecipe:
    """SGD and its schedule.

    Example:
        >>> OptimizerRecipe(learning_rate=1).learning_rate
        1.0

    Args:
        learning_rate: at the first step.
        final_learning_rate: at the last step of a cosine.
        momentum: 0 for none.
        nesterov: the form of momentum.
        weight_decay: on every parameter, as the papers do.
        groups: parameters with a learning rate or weight decay of their own.
        schedule: "cosine" from step to step, or "steps", divided by ``factor`` at each milestone.
        milestones: epochs.
        factor: see ``schedule``.
        warmup: epochs with a linear rise to the learning rate.
        clip: largest norm of the gradient; None for no limit.
    """

    learning_rate: float = 0.1
    final_learning_rate: float = 1e-6
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "steps"] = "cosine"
    milestones: tuple[int, ...] = ()
    factor: float = 10.0
    warmup: float = 0.0
    clip: float | None = None
    groups: tuple[GroupRecipe, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(
            self, learning_rate="(0, inf)", final_learning_rate="[0, inf)", momentum="[0, 1)", factor="(1, inf)"
        )
        check_ranges(self, weight_decay="[0, inf)", warmup="[0, inf)", clip="(0, inf)")
        if self.nesterov and not self.momentum:
            refuse(self, "nesterov", "false where momentum is 0")
        if self.schedule == "cosine" and self.final_learning_rate > self.learning_rate:
            refuse(self, "final_learning_rate", f"at most learning_rate ({self.learning_rate:g})")
        if self.schedule == "cosine" and self.milestones:
            refuse(self, "milestones", "none with schedule: cosine", "Say schedule: steps.")
        if self.schedule == "steps" and not self.milestones:
            refuse(self, "milestones", "one or more epochs with schedule: steps")
        if any(late <= early for early, late in zip((0, *self.milestones), self.milestones, strict=False)):
            refuse(self, "milestones", "rising epochs from 1")
