"""The cells of a sweep by (corruption, severity), and one quantity of them all as a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from shiftnorm.evaluate.outcome import CellOutcome

__all__ = ["CLEAN", "Cells", "Stacked", "common_images", "stack"]

CLEAN: Final = ("clean", 0)
"""The cell of the images as they are."""

Cells: TypeAlias = Mapping[tuple[str, int], CellOutcome]
"""Outcomes by (corruption, severity), and by CLEAN for the images as they are."""


def common_images(cells: Cells) -> dict[tuple[str, int], CellOutcome]:
    """The outcomes of the images that every cell has; the very cells where all have the same.

    Cells of images in files may lack some that could not be read.

    Example:
        >>> whole = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> part = CellOutcome.from_logits(torch.eye(2)[1:], torch.tensor([0]), index=torch.tensor([1]))
        >>> {key: cell.error for key, cell in common_images({CLEAN: whole, ("fog", 1): part}).items()}
        {('clean', 0): 100.0, ('fog', 1): 100.0}

    Args:
        cells: outcomes with rising numbers of images, as `merge` gives them.

    Returns:
        Cells of the same images, in the same order.
    """
    index = next(iter(cells.values())).index if cells else torch.empty(0, dtype=torch.int64)
    if all(torch.equal(cell.index, index) for cell in cells.values()):
        return dict(cells)
    for cell in cells.values():
        index = index[torch.isin(index, cell.index)]
    names = [item.name for item in fields(CellOutcome)]
    return {
        key: CellOutcome(**{name: getattr(cell, name)[kept] for name in names})
        for key, cell in cells.items()
        for kept in [torch.isin(cell.index, index)]
    }


Quantity: TypeAlias = Literal["error", "top5_error", "nll", "brier", "confidence"]


class Stacked(NamedTuple):
    """One quantity of the same images in several cells.

    Example:
        >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> stack({("fog", 1): cell, ("fog", 2): cell}).values
        tensor([[  0., 100.],
                [  0., 100.]])
    """

    keys: tuple[tuple[str, int], ...]
    index: Tensor
    label: Tensor
    values: Tensor


def stack(
    cells: Cells,
    quantity: Quantity = "error",
    *,
    like: Stacked | None = None,
) -> Stacked:
    """One quantity of every cell as a (cells, N) tensor, for intervals and tests over images.

    Example:
        >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> stack({CLEAN: cell, ("fog", 1): cell}, "brier").values.shape
        torch.Size([2, 2])

    Args:
        cells: outcomes of the same images in every cell.
        quantity: which one; errors are 0 or 100, so that means are in percent.
        like: another network's stack; the cells, images and labels must be the same, and come in the same order.

    Returns:
        Keys, image numbers, labels and values; the cells in the order of the mapping, or of `like`.

    Raises:
        ValueError: if there is no cell, or cells or networks were not measured on the same images.
    """
    if not cells:
        raise ValueError("stack: expected at least one cell, got none.")
    if like is not None and set(like.keys) != set(cells):
        raise ValueError(
            "stack: expected the cells of the other network; missing "
            f"{sorted(set(like.keys) - set(cells))}, too many {sorted(set(cells) - set(like.keys))}."
        )
    keys = tuple(cells) if like is None else like.keys
    index, label = (cells[keys[0]].index, cells[keys[0]].label) if like is None else (like.index, like.label)
    rows: list[Tensor] = []
    for key in keys:
        cell = cells[key]
        if not (torch.equal(cell.index, index) and torch.equal(cell.label, label)):
            raise ValueError(
                f"stack: the cell {key} was not measured on the same images in the same order as "
                f"{'the other network' if like is not None else keys[0]}. Merge shards first, and use one data set."
            )
        if quantity in ("error", "top5_error"):
            rows.append(100.0 * (~(cell.correct if quantity == "error" else cell.top5)).float())
        elif quantity in get_args(Quantity):
            rows.append(getattr(cell, quantity))
        else:
            raise ValueError(
                f"stack: expected 'error', 'top5_error', 'nll', 'brier' or 'confidence', got {quantity!r}."
            )
    return Stacked(keys, index, label, torch.stack(rows))
