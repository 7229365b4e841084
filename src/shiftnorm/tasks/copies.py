"""Many tensors copied at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["copy_each"]


@torch.no_grad()
def copy_each(to: Sequence[Tensor], of: Sequence[Tensor]) -> None:
    """Copy tensors onto others, with as few kernels as their devices and dtypes allow.

    Example:
        >>> first, second = torch.zeros(2), torch.tensor(0)
        >>> copy_each([first, second], [torch.ones(2), torch.tensor(7)])
        >>> first, second
        (tensor([1., 1.]), tensor(7))

    Args:
        to: written.
        of: read; as many, of the same shapes, devices and dtypes.
    """
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(to, of, strict=True):
        targets, sources = groups.setdefault((target.device, target.dtype), ([], []))
        targets.append(target)
        sources.append(source)
    for targets, sources in groups.values():
        # torch has no public name for it; its own optimizers call it so.
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
