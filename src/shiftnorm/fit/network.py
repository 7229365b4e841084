"""The network of a training run: built, edited, filled, checked against the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from shiftnorm.evaluate.forward_pass import naming_sizes
from shiftnorm.surgery import build_model, convert, load_weights
from shiftnorm.train_recipe import ModelRecipe

__all__ = ["build_network"]


def build_network(
    recipe: ModelRecipe, classes: int, size: int, *, seed: int = 0, say: Callable[[str], object] = print
) -> nn.Module:
    """Build the network that a recipe describes, with as many outputs as there are classes.

    Example:
        >>> from shiftnorm.train_recipe import PlacementRecipe
        >>> recipe = ModelRecipe("shiftnorm/resnet18", placements=(PlacementRecipe("ibn_a"),))
        >>> build_network(recipe, 7, 32).fc.out_features
        7

    Args:
        recipe: of the network.
        classes: how many the data have.
        size: side of the images.
        seed: of the initial weights.
        say: gets what was loaded from a file of weights.

    Returns:
        The network in training mode, which :func:`shiftnorm.surgery.save` can write.

    Raises:
        ValueError: if the network's outputs are not as many as the classes, it does not take images of this size, or
            as the functions of surgery do.
    """
    asked = recipe.arguments.get("num_classes", classes)
    if asked != classes:
        raise ValueError(
            f"train: model.arguments says num_classes={asked}, but the data have {classes} classes; leave it out: "
            "it comes from the data."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(recipe.name, **{**recipe.arguments, "num_classes": classes})
        for placement in recipe.placements:
            where = placement.where or None
            model, _ = convert(model, placement.name, where, preserve=placement.preserve, **placement.arguments)
    if recipe.weights is not None:
        say(str(load_weights(model, recipe.weights)))
    _check_outputs(model, recipe.name, classes, size)
    return model.train()


def _check_outputs(model: nn.Module, name: str, classes: int, size: int) -> None:
    model.eval()
    images = torch.zeros(2, 3, size, size)
    with torch.no_grad(), naming_sizes(model, images, who="train", advice="Set data.size={0} in the recipe."):
        scores = model(images)
    shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if shape != (2, classes):
        raise ValueError(
            f"train: expected {name} to give (2, {classes}) scores for 2 images of {classes} classes, got {shape}."
        )
