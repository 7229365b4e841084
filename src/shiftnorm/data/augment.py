"""Training augmentation as batched tensor operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_shift_flip(images: Tensor, *, pad: int = 4, flip: bool = True, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``pad`` pixels, filling with zeros, and mirror every other one at random.

    This is the usual random crop with padding and horizontal flip of CIFAR training, one draw for each image.

    Example:
        >>> import torch
        >>> from shiftnorm.data import random_shift_flip
        >>> images = torch.rand(8, 3, 32, 32)
        >>> random_shift_flip(images, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])

    Args:
        images: (N, C, H, W), any dtype and device.
        pad: the largest shift in pixels, in each direction.
        flip: mirror left to right with probability one half. Leave it off for digits and letters.
        generator: the source of the draws; it may live on another device than the images.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        ValueError: ``images`` is not (N, C, H, W) or ``pad`` is negative.
    """
    if images.ndim != 4:
        raise ValueError(f"random_shift_flip: images must be (N, C, H, W), got {tuple(images.shape)}")
    if pad < 0:
        raise ValueError(f"random_shift_flip: pad must not be negative, got {pad}")
    n, _, height, width = images.shape
    shifts = torch.randint(2 * pad + 1, (2, n, 1), generator=generator, device=generator.device).to(images.device)
    mirrored = torch.rand(n, 1, generator=generator, device=generator.device).to(images.device) < (0.5 if flip else 0.0)
    rows = torch.arange(height, device=images.device) + shifts[0]
    columns = torch.arange(width, device=images.device)
    columns = torch.where(mirrored, columns.flip(0), columns) + shifts[1]
    padded = F.pad(images, (pad, pad, pad, pad))
    which = torch.arange(n, device=images.device)[:, None, None]
    # The index tensors surround the channel axis, so indexing puts that axis last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
