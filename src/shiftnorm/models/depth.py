"""How many blocks a stage has in a network of a given depth."""

from __future__ import annotations

__all__ = ["blocks_per_stage"]


def blocks_per_stage(depth: int, step: int, rest: int, *, owner: str, where: str = "") -> int:
    """Return the n of a depth that must be ``step * n + rest``.

    Example:
        >>> blocks_per_stage(40, 6, 4, owner="WideResNet")
        6
        >>> blocks_per_stage(18, 6, 4, owner="WideResNet")
        Traceback (most recent call last):
        ValueError: WideResNet: depth must be 6n + 4 with n ≥ 1, got 18; the nearest are 16 and 22

    Args:
        depth: number of layers of the network.
        step: layers that one more block in every stage adds.
        rest: layers outside the blocks.
        owner: the network, for the error.
        where: what else of the arguments the rule depends on, for the error.

    Returns:
        The number of blocks, 1 at least.

    Raises:
        ValueError: no n from 1 gives this depth.
    """
    blocks, surplus = divmod(depth - rest, step)
    if blocks < 1 or surplus:
        lower = max(step + rest, depth - surplus)
        raise ValueError(
            f"{owner}: depth must be {step}n + {rest} with n ≥ 1{where}, got {depth}; "
            f"the nearest are {lower} and {lower + step}"
        )
    return blocks
