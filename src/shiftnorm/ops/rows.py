"""What the C++ kernels between the passes take: (N, C) numbers and parameters, plain and packed, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["ELEMENTS", "address", "count_blocks", "fits", "gradients_by_autograd", "is_counter", "is_flag", "is_row"]

ELEMENTS = {torch.float32: 0, torch.float64: 1}
_PLAIN = (Tensor, torch.nn.Parameter)
_BLOCK = 64  # channels: kChannels of kernels/rows.h


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers lie; 0 for None.

    Example:
        >>> address(None)
        0
    """
    return 0 if tensor is None else tensor.data_ptr()


def count_blocks(channels: int) -> int:
    """Into how many blocks a kernel divides channels: sums over all of them are kept for each.

    Example:
        >>> count_blocks(65)
        2
    """
    return -(-channels // _BLOCK)


# A kernel believes what it is told: anything else would be read past its end, or as something else.
def fits(each: Tensor | None, like: Tensor, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether a tensor is plain, of the dtype and on the device of another, and has one of the shapes; None fits.

    Example:
        >>> fits(torch.ones(3), torch.zeros(2, 3), ((3,), (2, 3))), fits(torch.ones(2), torch.zeros(2, 3), ((3,),))
        (True, False)
    """
    if each is None:
        return True
    plain = type(each) in _PLAIN and not each.is_neg()
    return plain and each.dtype == like.dtype and each.device == like.device and each.shape in shapes


def is_row(each: Tensor | None, like: Tensor, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether a tensor fits and is contiguous; None is.

    Example:
        >>> is_row(torch.ones(1).expand(3), torch.zeros(2, 3), ((3,),))
        False
    """
    return each is None or (fits(each, like, shapes) and each.is_contiguous())


def is_counter(each: Tensor | None, like: Tensor) -> bool:
    """Whether a tensor counts batches, or names samples, on the device of another; None does.

    Example:
        >>> is_counter(torch.tensor(0), torch.zeros(2)), is_counter(torch.tensor(0.0), torch.zeros(2))
        (True, False)
    """
    return each is None or (type(each) in _PLAIN and each.dtype == torch.int64 and each.device == like.device)


def is_flag(each: Tensor | None, like: Tensor) -> bool:
    """Whether a tensor is one bool on the device of another; None is.

    Example:
        >>> is_flag(torch.tensor(True), torch.zeros(2)), is_flag(torch.tensor([True, False]), torch.zeros(2))
        (True, False)
    """
    plain = each is None or (type(each) in _PLAIN and each.dtype == torch.bool and each.device == like.device)
    return plain and (each is None or each.numel() == 1)


def gradients_by_autograd(
    formula: Callable[..., tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    given: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """A kernel's gradients where they are themselves to be differentiated, or are many at once.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> one = torch.ones(2)
        >>> gradients_by_autograd(lambda x: (2 * x, x), [x], [True], (one, one))[0].detach()
        tensor([3., 3.])

    Args:
        formula: what the kernel computes, in operations that can be differentiated any number of times.
        inputs: its inputs.
        needed: which of their gradients are asked for.
        given: gradients of its outputs.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, as one input may depend on another: a gain in front does on the variance
        inputs = [None if each is None else each.view_as(each) for each in inputs]
        wanted = [each for each, needs in zip(inputs, needed, strict=True) if needs and each is not None]
        outputs = formula(*inputs)
        found = iter(torch.autograd.grad(outputs, wanted, given, create_graph=differentiable, allow_unused=True))
    return [next(found) if needs and each is not None else None for each, needs in zip(inputs, needed, strict=True)]
