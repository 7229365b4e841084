"""One interface for labelled images, in memory or on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from shiftnorm.data.decode import UnreadableImage
from shiftnorm.data.image_set import ImageSet
from shiftnorm.data.pixels import Failure, FilePixels, Pixels, TensorPixels
from shiftnorm.data.provenance import Provenance, Skipped

__all__ = ["Batch", "Dataset"]

MEMORY_LIMIT = 8 * 2**30
NAMED = 5


class Batch(NamedTuple):
    """Images with what belongs to them.

    Example:
        >>> import torch
        >>> from shiftnorm.data import Dataset
        >>> images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
        >>> batch = next(Dataset.of_images("toy", images, torch.arange(5), tuple("abcde")).batches(2))
        >>> batch.labels, batch.numbers
        (tensor([0, 1]), tensor([0, 1]))
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    numbers: Tensor


class _Chunks(MapDataset[tuple[Tensor, list[Failure]]]):
    """Reads whole batches, so that worker processes return one tensor each."""

    def __init__(self, pixels: Pixels, chosen: Tensor, batch_size: int) -> None:
        # One tensor, not one per batch: each would take a file descriptor on its way to a worker process.
        self.pixels, self.chosen, self.batch_size = pixels, chosen, batch_size

    def __len__(self) -> int:
        return -(-len(self.chosen) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, list[Failure]]:
        return self.pixels.read(self.chosen[index * self.batch_size :][: self.batch_size])


@dataclass(frozen=True, eq=False)
class Dataset(MapDataset[tuple[Tensor, int]]):
    """Labelled images of one size, read when they are asked for; also a map-style dataset for torch's DataLoader.

    Example:
        >>> import torch
        >>> from shiftnorm.data import Dataset
        >>> images = torch.zeros(10, 3, 32, 32, dtype=torch.uint8)
        >>> pets = Dataset.of_images("pets", images, torch.arange(10) % 2, ("cat", "dog"))
        >>> len(pets), pets.classes, pets.images([0, 3]).shape, pets[3][1]
        (10, ('cat', 'dog'), torch.Size([2, 3, 32, 32]), 1)
        >>> [len(batch.images) for batch in pets.batches(4)]
        [4, 4, 2]

    Args:
        name: what tables and reports call it.
        pixels: where the images come from.
        labels: (N,) int64, indices into ``classes``.
        classes: the class names.
        numbers: (N,) int64, the number of every image in the data set as it was opened, before files were skipped or a
            subset was taken. Corruptions draw from these, so that an image is corrupted alike in every subset.
        provenance: path, checksum and notes.
        domains: names of the domains, or None.
        domain_labels: (N,) int64, indices into ``domains``, or None.
        class_subset: (K,) int64: ``classes[i]`` is output ``class_subset[i]`` of a classifier of all classes; None if
            the outputs are the classes. To measure, take these columns of the logits, then the largest.
        on_error: ``"raise"`` or ``"skip"``: what `batches` does with an image that turns out unreadable.
        skipped: files that are left out and empty classes, with reasons; `batches` adds to it under ``"skip"``.
        outputs: how many outputs the classifier of ``class_subset`` has; None if that is not known.

    Raises:
        ValueError: labels, numbers, domains or the class subset do not fit together.
    """

    name: str
    pixels: Pixels
    labels: Tensor
    classes: tuple[str, ...]
    numbers: Tensor
    provenance: Provenance
    domains: tuple[str, ...] | None = None
    domain_labels: Tensor | None = None
    class_subset: Tensor | None = None
    on_error: str = "raise"
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    outputs: int | None = None

    def __post_init__(self) -> None:
        count, who = len(self.pixels), f"Dataset {self.name!r}"
        for what, values, names in (
            ("labels", self.labels, self.classes),
            ("numbers", self.numbers, None),
            ("domain_labels", self.domain_labels, self.domains),
        ):
            if values is None:
                continue
            if values.shape != (count,) or values.dtype != torch.int64:
                raise ValueError(
                    f"{who}: {what} must be ({count},) int64 for {count} images, got {tuple(values.shape)} "
                    f"{values.dtype}"
                )
            if names is not None and count and not 0 <= int(values.min()) <= int(values.max()) < len(names):
                raise ValueError(
                    f"{who}: {what} must be in 0..{len(names) - 1} for {len(names)} names, "
                    f"got {int(values.min())}..{int(values.max())}"
                )
        if (self.domains is None) != (self.domain_labels is None):
            raise ValueError(f"{who}: domains and domain_labels belong together; give both or neither")
        subset = self.class_subset
        if subset is not None and (subset.shape != (len(self.classes),) or subset.dtype != torch.int64):
            raise ValueError(
                f"{who}: class_subset must be ({len(self.classes)},) int64, one output per class, "
                f"got {tuple(subset.shape)} {subset.dtype}"
            )
        if subset is not None and self.outputs is not None and len(subset) and int(subset.max()) >= self.outputs:
            raise ValueError(f"{who}: class_subset goes up to {int(subset.max())}, but outputs is {self.outputs}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"{who}: on_error must be 'raise' or 'skip', got {self.on_error!r}")

    @classmethod
    def of_images(
        cls,
        name: str,
        images: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        provenance: Provenance | None = None,
        **more: Any,
    ) -> Dataset:
        """Make a data set of (N, 3, H, W) uint8 images in memory.

        Example:
            >>> Dataset.of_images("one", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), ("cat",)).name
            'one'
        """
        from pathlib import Path

        source = Provenance(Path(name), (), ("held in memory",)) if provenance is None else provenance
        more.setdefault("numbers", torch.arange(len(images)))
        return cls(name, TensorPixels(images), labels, classes, provenance=source, **more)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}: {len(self)} images in {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, (3, H, W) uint8, and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Dataset {self.name!r}: index {index} is not among its {len(self)} images")
        return self.images([index % len(self)])[0], int(self.labels[index])

    def images(self, indices: Tensor | Sequence[int] | slice | None = None) -> Tensor:
        """Return the images at ``indices`` (None: all), (N, 3, H, W) uint8.

        Example:
            >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
            >>> pets.images(slice(1, 3)).shape, pets.images().shape
            (torch.Size([2, 3, 8, 8]), torch.Size([4, 3, 8, 8]))

        Raises:
            IndexError: an index outside the data set.
            UnreadableImage: an image cannot be read, whatever ``on_error`` says, because the caller expects as many
                images as indices; `batches` and `in_memory` can skip.
        """
        images, failures = self.pixels.read(self._indices(indices))
        if failures:
            raise self._unreadable(failures)
        return images

    def batches(
        self,
        batch_size: int,
        *,
        workers: int = 0,
        indices: Tensor | Sequence[int] | slice | None = None,
        pin_memory: bool = False,
    ) -> Iterator[Batch]:
        """Go through the images (or those at ``indices``) in order, decoded by ``workers`` processes.

        An image that cannot be read raises, or, with ``on_error="skip"``, is missing from its batch and listed once in
        `skipped`.

        Example:
            >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
            >>> [batch.indices.tolist() for batch in pets.batches(2, indices=[3, 1, 0])]
            [[3, 1], [0]]

        Raises:
            ValueError: ``batch_size`` below 1 or ``workers`` below 0.
            IndexError: an index outside the data set.
            UnreadableImage: an image cannot be read and ``on_error`` is ``"raise"``.
        """
        if batch_size < 1 or workers < 0:
            raise ValueError(
                f"Dataset {self.name!r}: batch_size must be at least 1 and workers at least 0, "
                f"got {batch_size} and {workers}"
            )
        return self._batches(batch_size, workers, self._indices(indices), pin_memory)

    def _batches(self, batch_size: int, workers: int, chosen: Tensor, pin_memory: bool) -> Iterator[Batch]:
        chunks = _Chunks(self.pixels, chosen, batch_size)
        loader = DataLoader(chunks, batch_size=None, num_workers=workers, pin_memory=pin_memory)
        for number, (images, failures) in enumerate(loader):
            chunk = chosen[number * batch_size :][:batch_size]
            if failures:
                if self.on_error == "raise":
                    raise self._unreadable(failures)
                self.skipped.extend(
                    item for item in (Skipped(f.path, f.reason) for f in failures) if item not in self.skipped
                )
                keep = torch.ones(len(chunk), dtype=torch.bool)
                keep[[failure.position for failure in failures]] = False
                chunk = chunk[keep]
            if len(chunk):
                yield Batch(images, self.labels[chunk], chunk, self.numbers[chunk])

    def subset(self, indices: Tensor | Sequence[int] | slice, name: str | None = None) -> Dataset:
        """Return the images at ``indices``, in that order, with their numbers, classes and domains.

        Example:
            >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
            >>> pets.subset([3, 1]).numbers
            tensor([3, 1])
        """
        chosen = self._indices(indices)
        return replace(
            self,
            name=name or self.name,
            pixels=_Selected(self.pixels, chosen),
            labels=self.labels[chosen],
            numbers=self.numbers[chosen],
            domain_labels=None if self.domain_labels is None else self.domain_labels[chosen],
            skipped=list(self.skipped),
        )

    def limit(self, per_class: int, *, seed: int = 0) -> Dataset:
        """Return at most ``per_class`` images of every class (of every domain), chosen at random, in their order.

        Example:
            >>> pets = Dataset.of_images("pets", torch.zeros(6, 3, 8, 8).byte(), torch.arange(6) % 2, ("cat", "dog"))
            >>> pets.limit(2).labels.bincount()
            tensor([2, 2])

        Raises:
            ValueError: ``per_class`` below 1.
        """
        if per_class < 1:
            raise ValueError(f"Dataset {self.name!r}: limit must be at least 1 image per class, got {per_class}")
        groups = self.labels
        if self.domains is not None and self.domain_labels is not None:
            groups = self.domain_labels * len(self.classes) + self.labels
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        # Stable sorting by group keeps the random order inside each; the rank inside decides.
        order = order[groups[order].argsort(stable=True)]
        counts = torch.bincount(groups)
        rank = torch.arange(len(self)) - (counts.cumsum(0) - counts)[groups[order]]
        return self.subset(order[rank < per_class].sort().values)

    def of_domain(self, domain: str) -> Dataset:
        """Return the images of one domain.

        Example:
            >>> images, labels = torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long()
            >>> domains = {"domains": ("photo", "sketch"), "domain_labels": torch.tensor([0, 1, 1, 1])}
            >>> len(Dataset.of_images("dogs", images, labels, ("dog",), **domains).of_domain("sketch"))
            3

        Raises:
            ValueError: there is no such domain.
        """
        if self.domains is None or self.domain_labels is None or domain not in self.domains:
            known = "it has none" if self.domains is None else f"it has {', '.join(self.domains)}"
            raise ValueError(f"Dataset {self.name!r}: no domain {domain!r}; {known}")
        return self.subset((self.domain_labels == self.domains.index(domain)).nonzero().flatten())

    def in_memory(self, *, workers: int = 0) -> Dataset:
        """Decode every image once and hold them all, so that nothing can fail any more.

        Example:
            >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
            >>> pets.subset([3]).in_memory().pixels
            <shiftnorm.data.pixels.TensorPixels object at ...>

        Raises:
            ValueError: the images need more memory than 8 GiB.
            UnreadableImage: an image cannot be read and ``on_error`` is ``"raise"``.
        """
        held: list[Batch] = []
        for batch in self.batches(256, workers=workers):
            if (needed := batch.images[0].numel() * len(self)) > MEMORY_LIMIT:
                raise ValueError(
                    f"Dataset {self.name!r}: {len(self)} images of {tuple(batch.images.shape[2:])} need "
                    f"{needed / 2**30:.1f} GiB, more than {MEMORY_LIMIT / 2**30:.0f}; take a limit per class, or read "
                    "them in batches"
                )
            held.append(batch)
        if not held:
            return self
        kept = self.subset(torch.cat([batch.indices for batch in held]))
        return replace(kept, pixels=TensorPixels(torch.cat([batch.images for batch in held])))

    def image_set(self, *, workers: int = 0) -> ImageSet:
        """Return all images and labels as an `ImageSet`, as training takes them.

        Example:
            >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
            >>> len(pets.image_set())
            4
        """
        whole = self.in_memory(workers=workers)
        return ImageSet(whole.images(), whole.labels, whole.classes, whole.name)

    def files(self) -> list[str] | None:
        """Return the file of every image; None for images in memory or in an array.

        Example:
            >>> Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",)).files()
        """
        pixels, chosen = self.pixels, range(len(self))
        if isinstance(pixels, _Selected):
            pixels, chosen = pixels.pixels, pixels.chosen.tolist()
        return [pixels.paths[index] for index in chosen] if isinstance(pixels, FilePixels) else None

    def describe(self) -> dict[str, Any]:
        """Return name, counts, provenance and what was skipped, as records keep them.

        Example:
            >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("cat",))
            >>> {key: pets.describe()[key] for key in ("name", "images", "skipped")}
            {'name': 'pets', 'images': 4, 'skipped': 0}
        """
        return {
            "name": self.name,
            "images": len(self),
            "classes": list(self.classes),
            "domains": None if self.domains is None else list(self.domains),
            "class_subset": None if self.class_subset is None else self.class_subset.tolist(),
            **self.provenance.describe(),
            "skipped": len(self.skipped),
            "skipped_files": [str(item) for item in self.skipped],
        }

    def _indices(self, indices: Tensor | Sequence[int] | slice | None) -> Tensor:
        if indices is None or isinstance(indices, slice):
            return torch.arange(len(self))[slice(None) if indices is None else indices]
        chosen = torch.as_tensor(indices, device="cpu")
        if chosen.dtype == torch.bool:
            raise TypeError(f"Dataset {self.name!r}: indices must be integers, got booleans; use mask.nonzero()")
        chosen = chosen.to(torch.int64).flatten()
        if len(chosen) and not (-len(self) <= int(chosen.min()) and int(chosen.max()) < len(self)):
            raise IndexError(
                f"Dataset {self.name!r}: indices {int(chosen.min())}..{int(chosen.max())} are not all among its "
                f"{len(self)} images"
            )
        return chosen % len(self) if len(self) else chosen

    def _unreadable(self, failures: list[Failure]) -> UnreadableImage:
        named = "; ".join(f"{failure.path}: {failure.reason}" for failure in failures[:NAMED])
        more = f"; and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
        return UnreadableImage(
            f"Dataset {self.name!r}: cannot read {named}{more}; repair or remove such files, or leave them out with "
            "on_error='skip'"
        )


class _Selected:
    """Some of another's images, in an order of their own."""

    def __init__(self, pixels: Pixels, chosen: Tensor) -> None:
        # Of a selection of a selection only the innermost images are kept.
        self.pixels, self.chosen = pixels, chosen
        if isinstance(pixels, _Selected):
            self.pixels, self.chosen = pixels.pixels, pixels.chosen[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, indices: Tensor) -> tuple[Tensor, list[Failure]]:
        return self.pixels.read(self.chosen[indices])
