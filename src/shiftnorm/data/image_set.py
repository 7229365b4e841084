"""A labelled set of images held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ImageSet", "split_labels"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with their labels, held in memory.

    Example:
        >>> import torch
        >>> from shiftnorm.data import ImageSet
        >>> images = torch.zeros(10, 3, 32, 32, dtype=torch.uint8)
        >>> cats = ImageSet(images, torch.arange(10) % 2, ("cat", "dog"), "pets")
        >>> first, second = cats.split(0.2)
        >>> len(first), len(second), second.labels.bincount().tolist()
        (8, 2, [1, 1])

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64, indices into ``classes``.
        classes: the class names.
        name: what tables and reports call this set.

    Raises:
        ValueError: a wrong shape or dtype, a label without a class, or labels that do not match the images in number.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"ImageSet {self.name!r}: images must be (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"ImageSet {self.name!r}: labels must be ({len(images)},) int64 for {len(images)} images, "
                f"got {tuple(labels.shape)} {labels.dtype}"
            )
        if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < len(self.classes)):
            raise ValueError(
                f"ImageSet {self.name!r}: labels must be in 0..{len(self.classes) - 1} for {len(self.classes)} "
                f"classes, got {int(labels.min())}..{int(labels.max())}"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def subset(self, indices: Tensor, name: str | None = None) -> ImageSet:
        """Return the images at ``indices``, in that order, under the same classes.

        Example:
            >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
            >>> ImageSet(images, torch.tensor([0, 1, 0, 1]), ("cat", "dog"), "pets").subset(torch.tensor([1, 3])).labels
            tensor([1, 1])
        """
        return ImageSet(self.images[indices], self.labels[indices], self.classes, name or self.name)

    def split(self, fraction: float, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Split into the rest and a random ``fraction`` of every class, both in the original order.

        A class with at least two images has at least one on either side.

        Example:
            >>> images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
            >>> rest, chosen = ImageSet(images, torch.arange(10) % 2, ("cat", "dog"), "pets").split(0.4)
            >>> len(rest), len(chosen)
            (6, 4)

        Raises:
            ValueError: if ``fraction`` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"ImageSet {self.name!r}: the fraction to split off must be in (0, 1), got {fraction}")
        rest, chosen = split_labels(self.labels, fraction, seed=seed)
        return self.subset(rest), self.subset(chosen)


def split_labels(labels: Tensor, fraction: float, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Places of the rest and of a random ``fraction`` of every class; of two images or more, one on either side.

    Example:
        >>> rest, chosen = split_labels(torch.arange(10) % 2, 0.4)
        >>> len(rest), chosen.remainder(2).bincount().tolist()
        (6, [2, 2])

    Args:
        labels: (N,) int64.
        fraction: between 0 and 1.
        seed: of the draw.

    Returns:
        Two tensors of rising numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[order[:count]]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
