"""Keeping an optimizer's parameter groups in step with a model whose modules changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["check_optimizer", "regroup"]

Named = Sequence[tuple[str, nn.Parameter]]


def regroup(optimizer: torch.optim.Optimizer, before: Named, after: Named) -> str:
    """Take parameters that are gone out of an optimizer and put new ones in, each beside its neighbours.

    A new parameter joins the group of what was replaced at its path, else of the 1-d parameter (a norm's or a bias)
    nearest to it in the model, else of the nearest parameter at all.

    Example:
        >>> old, new = nn.BatchNorm2d(3), nn.GroupNorm(1, 3)
        >>> optimizer = torch.optim.SGD(old.parameters(), lr=0.1)
        >>> regroup(optimizer, list(old.named_parameters()), list(new.named_parameters()))
        'Optimizer: 2 parameters added, 2 removed.'

    Args:
        optimizer: changed in place; the state of parameters that stay is untouched.
        before: the model's named parameters before the change.
        after: the same after it.

    Returns:
        A sentence for the report.
    """
    groups = {
        id(parameter): index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    old_ids, new_ids = {id(parameter) for _, parameter in before}, {id(parameter) for _, parameter in after}
    gone = old_ids - new_ids
    # What was replaced was a norm: a convolution beside which one was put says nothing about weight decay of norms.
    names = {name: groups[id(p)] for name, p in before if id(p) in groups and p.dim() <= 1}
    # Where every parameter of the new model that the optimizer knew stands, to find neighbours by.
    known = [
        (position, groups[id(parameter)], parameter.dim() <= 1)
        for position, (_, parameter) in enumerate(after)
        if id(parameter) in groups
    ]
    added = 0
    for position, (name, parameter) in enumerate(after):
        if id(parameter) in old_ids:
            continue
        index = _group_for(name, position, names, known)
        optimizer.param_groups[index]["params"].append(parameter)
        added += 1
    removed = 0
    called = _names_of(optimizer) | {id(parameter): name for name, parameter in after}
    for group in optimizer.param_groups:
        stay = [parameter for parameter in group["params"] if id(parameter) not in gone]
        removed += len(group["params"]) - len(stay)
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"][:] = stay  # the list itself: LBFGS holds it, too
        if "param_names" in group:
            group["param_names"] = [called.get(id(parameter), "") for parameter in stay]
    return f"Optimizer: {added} parameter{'' if added == 1 else 's'} added, {removed} removed."


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Named) -> None:
    """Refuse an optimizer that belongs to another model.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> check_optimizer(torch.optim.SGD(norm.parameters(), lr=0.1), list(norm.named_parameters()))

    Raises:
        ValueError: if it holds none of the parameters, though there are some.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if parameters and not any(id(parameter) in held for _, parameter in parameters):
        raise ValueError(
            f"optimizer: expected one that holds parameters of this model, got {type(optimizer).__name__} with others. "
            "Convert the model first and build the optimizer of it."
        )


def _names_of(optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """The names of an optimizer that was made of named parameters."""
    return {
        id(parameter): name
        for group in optimizer.param_groups
        for parameter, name in zip(group["params"], group.get("param_names", ()), strict=False)
    }


def _group_for(name: str, position: int, names: dict[str, int], known: list[tuple[int, int, bool]]) -> int:
    parent = name.rpartition(".")[0]
    while parent:  # what was replaced at this path, or at one above it
        for old, index in names.items():
            if old.rpartition(".")[0] == parent:
                return index
        parent = parent.rpartition(".")[0]
    for only_flat in (True, False):
        near = [(abs(at - position), index) for at, index, flat in known if flat or not only_flat]
        if near:
            return min(near)[1]
    return 0
