"""What a training run is: a frozen dataclass tree, the form of every recipe under ``recipes/`` with ``kind: train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

from shiftnorm.optimizer_recipe import GroupRecipe, OptimizerRecipe
from shiftnorm.recipe_files import load_as
from shiftnorm.recipe_tree import check_types, refuse
from shiftnorm.train_parts import (
    AugMixRecipe,
    CrossNormRecipe,
    DataRecipe,
    EvaluateRecipe,
    LoopRecipe,
    LossRecipe,
    ModelRecipe,
    PlacementRecipe,
)

__all__ = [
    "AugMixRecipe",
    "CrossNormRecipe",
    "DataRecipe",
    "EvaluateRecipe",
    "GroupRecipe",
    "LoopRecipe",
    "LossRecipe",
    "ModelRecipe",
    "OptimizerRecipe",
    "PlacementRecipe",
    "TrainRecipe",
    "load_train_recipe",
]


@final
@dataclass(frozen=True)
class TrainRecipe:
    """One training run and its measurement.

    Example:
        >>> TrainRecipe(summary="mine", loop={"epochs": 3}).loop.epochs
        3

    Args:
        summary: one sentence on what it trains.
        source: where its settings come from.
        data: the images.
        model: the network.
        optimizer: SGD and its schedule.
        crossnorm: gating of CrossNorm and its consistency.
        augmix: AugMix and its consistency.
        loss: label smoothing, mixup, cutmix.
        loop: length, batch, engine.
        evaluate: images and corruptions to measure on.
    """

    kind: ClassVar[str] = "train"

    summary: str
    source: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    crossnorm: CrossNormRecipe = field(default_factory=CrossNormRecipe)
    augmix: AugMixRecipe = field(default_factory=AugMixRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    loop: LoopRecipe = field(default_factory=LoopRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)

    def __post_init__(self) -> None:
        check_types(self)
        if not self.summary.strip() or "\n" in self.summary:
            refuse(self, "summary", "one line of text")
        if self.evaluate.part == "validation" and not self.data.validation:
            raise ValueError(
                "TrainRecipe: evaluate.part: expected 'test', as data.validation holds no images out, got "
                "'validation'. Say data.validation=0.2, for instance."
            )


def load_train_recipe(name: str | Path) -> TrainRecipe:
    """Read a recipe of `shiftnorm train`: one that comes with the package by its name, any other by its file.

    Example:
        >>> load_train_recipe("cifar10/wrn40_2/cnsn").crossnorm
        CrossNormRecipe(p=0.25, active_num=2, ...)

    Args:
        name: a name from `list_recipes`, or the path of a YAML file.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: if there is neither such a recipe nor such a file.
        ValueError: for text that is no YAML mapping, unknown, repeated or missing keys, or bad values.
        TypeError: for values of the wrong type.
    """
    return load_as(TrainRecipe, name)
