"""Constructors of published networks: their names, and the documentation they share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, Protocol, TypeVar

from torch import nn

__all__ = ["Constructor", "published"]

Network = TypeVar("Network", bound=nn.Module, covariant=True)
Function = TypeVar("Function", bound=FunctionType)

_DOCUMENTATION = """
    Build {title}.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(weight.numel() for weight in {name}().parameters())
        {parameters}

    Args:
{arguments}

    Returns:
        The network with random weights.
    """


class Constructor(Protocol[Network]):
    """A function that builds a network of a published size; it passes further options on to the network's class."""

    __name__: str

    def __call__(self, num_classes: int = 1000, **options: Any) -> Network:
        """Return the network with random weights."""
        ...


def published(
    name: str, title: str, *, network: str, parameters: int, **arguments: str
) -> Callable[[Function], Function]:
    """Name and document a constructor that takes ``num_classes`` and further options of a network.

    Example:
        >>> @published("linear4", "a linear layer of four inputs", network="Linear", parameters=5000)
        ... def construct(num_classes=1000, **options):
        ...     return nn.Linear(4, num_classes, **options)
        >>> construct.__name__, construct.__doc__.splitlines()[0]
        ('linear4', 'Build a linear layer of four inputs.')

    Args:
        name: the name under which the module defines the function.
        title: the network's name as its paper writes it.
        network: the class that takes the further options.
        parameters: how many parameters the network has, for the example.
        arguments: what the constructor's own arguments between ``num_classes`` and the options are, by name.

    Returns:
        A function that names and documents the one it gets, and returns it.
    """
    described = {
        "num_classes": "number of outputs.",
        **arguments,
        "options": f"further arguments of ``{network}``.",
    }

    def name_and_document(function: Function) -> Function:
        function.__name__ = function.__qualname__ = name
        function.__doc__ = inspect.cleandoc(
            _DOCUMENTATION.format(
                title=title,
                name=name,
                parameters=parameters,
                arguments="\n".join(f"        {argument}: {text}" for argument, text in described.items()),
            )
        )
        return function

    return name_and_document
