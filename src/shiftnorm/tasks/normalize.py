"""Images as networks take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["Normalize"]


@final
class Normalize(nn.Module):
    """Scale uint8 images to [0, 1] and standardise their channels.

    Example:
        >>> normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([2., 2., 2.])

    Args:
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, divided by.
        channels_last: memory format of the result; convolutions are often faster with True.

    Shape: (N, C, H, W) uint8 to the same, in the dtype of the module.
    State: nothing in the state_dict; ``mean`` and ``std`` (1, C, 1, 1) move with the module.
    Raises: ValueError for mean and std of different lengths, or a std that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        *,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not std or min(std) <= 0:
            raise ValueError(f"Normalize: expected as many means as stds, and every std > 0, got {mean} and {std}.")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # As numbers too: augmentations take them without reading from the device.
        self.means, self.stds = tuple(mean), tuple(std)
        self.register_buffer("mean", torch.tensor(self.means).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.stds).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Standardised images."""
        x = images.to(memory_format=self.memory_format)
        return x.to(self.mean.dtype).div(255).sub(self.mean).div(self.std)
