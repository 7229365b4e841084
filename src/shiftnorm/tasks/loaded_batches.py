"""Batches of images that worker processes read, because they do not fit on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from shiftnorm.data.augment import Augmentation
from shiftnorm.data.crops import crop_files
from shiftnorm.data.dataset import Dataset
from shiftnorm.tasks.batches import EpochBatches
from shiftnorm.tasks.epoch_order import EpochOrder

__all__ = ["LoadedBatches"]


@final
class LoadedBatches(EpochBatches):
    """The batches of :class:`~shiftnorm.tasks.batches.Batches` for images that do not fit on the device.

    Order, shifts and mirroring are bit for bit those of `Batches` of the same images. They are done on the device,
    after a copy that does not wait where ``pin_memory`` is on. Random parts (``resized``) of image files are cut by the
    workers out of the whole pictures, before the data set's own preprocessing and instead of it, as torchvision's
    ``RandomResizedCrop`` does; other images are cut on the device, as in `Batches`.

    Example:
        >>> pets = Dataset.of_images("pets", torch.zeros(10, 3, 8, 8).byte(), torch.zeros(10).long(), ("cat",))
        >>> [len(labels) for _, labels in LoadedBatches(pets, batch_size=4, flip=True, drop_last=False)]
        [4, 4, 2]

    Args:
        dataset: labelled images.
        batch_size: images of a batch in each process; where there are fewer, one batch holds them all.
        shift: largest random shift in pixels over black; 0 for none.
        flip: whether to mirror half of the images.
        seed: seed of order and augmentation.
        resized: side of the squares to which random parts of the images are scaled; None for none. Not with ``shift``.
        rank: number of this process.
        world: how many processes share the epoch.
        drop_last: leave out an incomplete last batch; its images come in another epoch.
        with_indices: yield (images, labels, indices) instead of pairs; indices are places in ``dataset``.
        device: where batches are augmented and yielded.
        workers: processes that read; 0 reads in this one.
        pin_memory: copy from page-locked memory, for CUDA.

    State: the position, in ``state_dict``.
    Raises: ValueError for impossible arguments; in a pass UnreadableImage where the data set says "raise", and
        RuntimeError if no image of a batch can be read.
    """

    def __init__(
        self,
        dataset: Dataset,
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
        device: torch.device | str = "cpu",
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        order = EpochOrder(len(dataset), batch_size=batch_size, seed=seed, rank=rank, world=world, drop_last=drop_last)
        super().__init__(order, with_indices=with_indices)
        self.dataset, self.device, self.workers, self.pin_memory = dataset, device, workers, pin_memory
        self.augment = Augmentation(shift, flip, resized, seed)

    def _read(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        epoch, upcoming = self.order.upcoming()
        dataset, augment = self.dataset, self.augment
        if augment.resized is not None:
            files = crop_files(dataset.pixels, size=augment.resized, seed=augment.seed, epoch=epoch)
            if files is not None:
                dataset, augment = replace(dataset, pixels=files), replace(augment, resized=None)
        flat = torch.cat(upcoming) if upcoming else torch.empty(0, dtype=torch.int64)
        size = self.order.batch_size
        reading = dataset.batches(size, workers=self.workers, indices=flat, pin_memory=self.pin_memory)
        # The loader comes first: the position must not move on before its batch is there.
        for batch, (_, chosen) in zip(reading, self.order, strict=True):
            if not bool(torch.isin(batch.indices, chosen).all()):
                raise RuntimeError(
                    f"LoadedBatches: none of the images {chosen.tolist()} of {self.dataset.name!r} can be read; "
                    "repair or remove their files."
                )
            images, labels, indices = (
                part.to(self.device, non_blocking=True) for part in (batch.images, batch.labels, batch.indices)
            )
            yield augment(images, epoch, indices), labels, indices
