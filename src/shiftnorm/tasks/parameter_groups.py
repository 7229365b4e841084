"""Which parameters an optimizer trains alike."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from shiftnorm.train_recipe import OptimizerRecipe

__all__ = ["grouped"]


def grouped(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """The parameters of a network as the groups of a torch optimizer: the rest first, then those of the recipe.

    Example:
        >>> from shiftnorm.train_recipe import GroupRecipe, OptimizerRecipe
        >>> recipe = OptimizerRecipe(learning_rate=0.1, groups=(GroupRecipe("*bias", rate=10, weight_decay=0),))
        >>> [(len(group["params"]), group.get("lr")) for group in grouped(nn.Linear(2, 2), recipe)]
        [(1, None), (1, 1.0)]

    Args:
        model: the network.
        recipe: its ``groups``, ``learning_rate`` and ``weight_decay`` are looked at.

    Returns:
        Dictionaries with ``params``, and ``lr`` and ``weight_decay`` where the recipe states them.

    Raises:
        ValueError: if a group's pattern matches no parameter that is left to it.
    """
    left = dict(model.named_parameters())
    groups: list[dict[str, Any]] = []
    for group in recipe.groups:
        names = [name for name in left if fnmatchcase(name, group.match)]
        if not names:
            raise ValueError(
                f"optimizer.groups: expected {group.match!r} to match parameters, it matches none of the {len(left)} "
                f"that are left, such as {', '.join(list(left)[:3])}."
            )
        decay = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
        groups.append({"params": [left.pop(name) for name in names], "lr": recipe.learning_rate * group.rate, **decay})
    return [{"params": list(left.values())}, *groups] if left else groups
