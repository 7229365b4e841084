"""Batches whose draws come one after another from one generator, as the records of `shiftnorm compare` were made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from shiftnorm.data.augment import random_shift_flip

__all__ = ["GeneratorBatches"]


@final
class GeneratorBatches:
    """Shuffled, augmented batches cut from tensors; every pass over it is another epoch.

    Whole batches are indexed and augmented at once on the tensors' device, so there is nothing for loader processes
    to do. The incomplete last batch is left out (its images come in another epoch), except where it is the only one.

    What an epoch holds depends on all that was drawn before it, so a pass cannot be resumed and processes cannot share
    it: `Batches` can. This one stays because the records of `shiftnorm compare` depend on its draws.

    Example:
        >>> images, labels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10)
        >>> batches = GeneratorBatches(images, labels, batch_size=4, shift=1, flip=False, seed=0)
        >>> [len(labels) for _, labels in batches]
        [4, 4]

    Args:
        images: (N, C, H, W).
        labels: (N,), on the same device.
        batch_size: images per batch.
        shift: largest random shift in pixels; 0 for none.
        flip: whether to mirror half of the images.
        seed: seed of order and augmentation.

    Raises:
        ValueError: if there is no image, labels do not match, or batch_size is below 1.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, batch_size: int, shift: int = 0, flip: bool = False, seed: int = 0
    ) -> None:
        if len(images) == 0 or len(images) != len(labels) or batch_size < 1:
            raise ValueError(
                f"GeneratorBatches: expected at least one image, a label for each and batch_size >= 1, "
                f"got {len(images)} images, {len(labels)} labels, batch_size {batch_size}."
            )
        self.images, self.labels = images, labels
        self.batch_size = min(batch_size, len(images))
        self.shift, self.flip = shift, flip
        self.generator = torch.Generator(images.device).manual_seed(seed)

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of (images, labels)."""
        order = torch.randperm(len(self.images), generator=self.generator, device=self.images.device)
        for chosen in order[: len(self) * self.batch_size].split(self.batch_size):
            images = self.images[chosen]
            if self.shift or self.flip:
                images = random_shift_flip(images, pad=self.shift, flip=self.flip, generator=self.generator)
            yield images, self.labels[chosen]
