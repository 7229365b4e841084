"""Shuffled, augmented batches whose content depends on nothing but (seed, epoch, index of the image)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

from torch import Tensor

from shiftnorm.data.augment import Augmentation
from shiftnorm.tasks.epoch_order import EpochOrder

__all__ = ["Batches", "EpochBatches"]


class EpochBatches(ABC):
    """Batches of one epoch after another, with the position that a run resumes from.

    Example:
        >>> import torch
        >>> images, labels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8)
        >>> first, second = (Batches(images, labels, batch_size=2) for _ in range(2))
        >>> _ = next(iter(first))
        >>> second.load_state_dict(first.state_dict())
        >>> len(list(second))
        3

    Args:
        order: which images make which batch.
        with_indices: yield (images, labels, indices) instead of pairs.
    """

    def __init__(self, order: EpochOrder, *, with_indices: bool) -> None:
        self.order, self.with_indices = order, with_indices

    @abstractmethod
    def _read(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the images, labels and indices of the batches of the next pass over ``order``."""

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of the next pass."""
        for batch in self._read():
            yield batch if self.with_indices else batch[:2]

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass one of ``epoch``; see `EpochOrder.set_epoch`."""
        self.order.set_epoch(epoch)

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the next pass; see `EpochOrder.skip`."""
        self.order.skip(batches)

    def state_dict(self) -> dict[str, int | bool]:
        """The position; see `EpochOrder.state_dict`."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Continue from a position; see `EpochOrder.load_state_dict`."""
        self.order.load_state_dict(state)


@final
class Batches(EpochBatches):
    """Batches of images that are held on the device: whole batches are indexed and augmented there at once.

    Each pass is the next epoch. Order and augmentation depend on (seed, epoch, index of the image) alone, so that a run
    is resumed by ``set_epoch`` and ``skip``, or by ``load_state_dict``, and processes share an epoch without an image
    twice: see :class:`~shiftnorm.tasks.epoch_order.EpochOrder`. Lightning's trainer saves and restores the position
    by itself.

    Example:
        >>> import torch
        >>> images, labels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10)
        >>> batches = Batches(images, labels, batch_size=4, shift=1, flip=False, seed=0)
        >>> [len(labels) for _, labels in batches]
        [4, 4]

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,), on the same device.
        batch_size: images of a batch in each process; where there are fewer, one batch holds them all.
        shift: largest random shift in pixels over black; 0 for none.
        flip: whether to mirror half of the images.
        seed: seed of order and augmentation.
        resized: side of the squares to which random parts of the images are scaled; None for none. Not with ``shift``.
        rank: number of this process.
        world: how many processes share the epoch.
        drop_last: leave out an incomplete last batch; its images come in another epoch.
        with_indices: yield (images, labels, indices) instead of pairs; indices are places in ``images``.

    State: the position, in ``state_dict``.
    Raises: ValueError if there is no image, labels do not match, or an argument is impossible.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        shift: int = 0,
        flip: bool = False,
        seed: int = 0,
        resized: int | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        with_indices: bool = False,
    ) -> None:
        if len(images) == 0 or len(images) != len(labels) or batch_size < 1:
            raise ValueError(
                f"Batches: expected at least one image, a label for each and batch_size >= 1, "
                f"got {len(images)} images, {len(labels)} labels, batch_size {batch_size}."
            )
        order = EpochOrder(
            len(images),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world=world,
            drop_last=drop_last,
            device=images.device,
        )
        super().__init__(order, with_indices=with_indices)
        self.images, self.labels = images, labels
        self.augment = Augmentation(shift, flip, resized, seed)

    def _read(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for epoch, chosen in self.order:
            yield self.augment(self.images[chosen], epoch, chosen), self.labels[chosen], chosen
