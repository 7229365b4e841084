"""How the kernels that keep parts of x on chip are launched for x, if they are to run at all."""

from __future__ import annotations

from torch import Tensor

from shiftnorm.ops.dispatch import choose, is_forced, is_traced
from shiftnorm.ops.triton_backend import TritonBackend
from shiftnorm.ops.triton_launch import (
    PixelLaunch,
    SetLaunch,
    pixel_launch,
    pixel_view,
    set_launch,
    sort_launch,
    view_of,
)

__all__ = ["pixels_on_chip", "planes_to_sort", "sets_on_chip"]

# A program of the gradient's kernel looks through the partners of all samples.
_MOST_SAMPLES = 1 << 12


def sets_on_chip(x: Tensor, sharing: int, *rows: Tensor | None) -> SetLaunch | None:
    """The launch for sets of ``sharing`` planes that share moments, or None where the two passes are to run.

    Example:
        >>> import torch
        >>> sets_on_chip(torch.randn(2, 4, 3, 3), 2) is None  # C++ runs on a CPU
        True

    Args:
        x: (N, C, *).
        sharing: how many consecutive channels of a sample; divides C.
        rows: what else the kernels are to read.
    """
    return set_launch(view_of(x), sharing, x.element_size()) if _is_for_triton(x, rows) else None


def pixels_on_chip(x: Tensor, *rows: Tensor | None) -> PixelLaunch | None:
    """The launch for pixels with all their channels, or None where plain formulas are to run.

    Example:
        >>> import torch
        >>> pixels_on_chip(torch.randn(2, 4, 3, 3)) is None  # on a CPU
        True
    """
    return pixel_launch(pixel_view(x), x.element_size()) if _is_for_triton(x, rows) else None


def planes_to_sort(x: Tensor, *rows: Tensor | None) -> SetLaunch | None:
    """The launch for planes that are sorted, or None where ``torch.sort`` is to do it.

    Example:
        >>> import torch
        >>> planes_to_sort(torch.randn(2, 4, 3, 3)) is None  # on a CPU
        True
    """
    if x.shape[0] > _MOST_SAMPLES or not _is_for_triton(x, rows):
        return None
    return sort_launch(view_of(x), x.element_size())


def _is_for_triton(x: Tensor, rows: tuple[Tensor | None, ...]) -> bool:
    if not (x.is_cuda or is_forced()) or is_traced(x):
        return False
    if any(row is not None and (is_traced(row) or row.device != x.device) for row in rows):
        return False  # formulas compute with it, or say what is wrong
    return isinstance(choose(x), TritonBackend)
