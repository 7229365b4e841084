"""One network's outcomes on the cells of a sweep."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from shiftnorm.data import corrupt
from shiftnorm.data.corrupted_set import CorruptedSet
from shiftnorm.data.dataset import Batch, Dataset
from shiftnorm.data.image_set import ImageSet
from shiftnorm.evaluate.borrow import Borrowed
from shiftnorm.evaluate.cells import CLEAN
from shiftnorm.evaluate.forward_pass import naming_sizes
from shiftnorm.evaluate.normalization import Normalization
from shiftnorm.evaluate.outcome import CellOutcome, merge
from shiftnorm.evaluate.outputs import check_outputs
from shiftnorm.evaluate.plausibility import InputCheck, check_inputs
from shiftnorm.evaluate.progress import Progress, plural

__all__ = ["Images", "Measurer", "as_dataset", "scores_of"]

# Decoded images are kept for the next cell if all of them take no more.
_KEPT_BYTES: Final = 2 * 2**30
_CHECKED: Final = 64
_CHECKED_AT_LEAST: Final = 8


def as_dataset(data: Any) -> Dataset:
    """A data set of what may be handed over as one.

    Example:
        >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        >>> as_dataset((images, torch.tensor([0, 1, 0, 1]))).classes
        ('0', '1')

    Args:
        data: a `Dataset`, an `ImageSet`, or a pair of images (N, 3, H, W), uint8 or float in [0, 1], and labels (N,).

    Returns:
        The data set.

    Raises:
        TypeError: for something else.
        ValueError: if there is no image, or images or labels are not of this form.
    """
    if isinstance(data, ImageSet):
        data = Dataset.of_images(data.name, data.images, data.labels, data.classes)
    elif isinstance(data, tuple | list) and len(data) == 2:
        images, labels = (torch.as_tensor(part).detach().cpu() for part in data)
        if images.is_floating_point():
            if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
                raise ValueError(
                    f"robustness: float images must be in [0, 1] without NaN, got {float(images.min()):.4g} to "
                    f"{float(images.max()):.4g}. Pass them before normalization, or divide levels 0 to 255 by 255."
                )
            images = (images * 255).round().to(torch.uint8)
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1:
            raise ValueError(
                f"robustness: expected labels (N,) of whole numbers, got {labels.dtype} {tuple(labels.shape)}."
            )
        count = int(labels.max()) + 1 if len(labels) else 0
        data = Dataset.of_images("images", images, labels.long(), tuple(map(str, range(count))))
    if not isinstance(data, Dataset):
        raise TypeError(
            "robustness: expected a shiftnorm Dataset (open_dataset), a CorruptedSet (open_corrupted), an ImageSet, or "
            "(images, labels) as data (sequences are for measure_stability), "
            f"got {type(data).__name__}."
        )
    if len(data) == 0:
        raise ValueError(f"robustness: the data set {data.name!r} has no images.")
    return data


@final
class Images:
    """The images of one rank, batch by batch; decoded once if they fit into memory.

    Example:
        >>> data = as_dataset((torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.zeros(5).long()))
        >>> [batch.indices.tolist() for batch in Images(data, torch.tensor([0, 2, 4]), batch_size=2)]
        [[0, 2], [4]]

    Args:
        data: the data set.
        positions: (n,) int64, which of its images.
        batch_size: images per batch.
        workers: processes that decode.
        keep: keep decoded images for the next time.
    """

    def __init__(
        self, data: Dataset, positions: Tensor, batch_size: int, workers: int = 0, *, keep: bool = True
    ) -> None:
        self.data, self.positions, self.batch_size, self.workers = data, positions, batch_size, workers
        self._keep = keep and bool(data.provenance.files)
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = [] if self._keep else None
        for batch in self.data.batches(self.batch_size, workers=self.workers, indices=self.positions):
            if kept is not None and batch.images[0].numel() * len(self) > _KEPT_BYTES:
                kept = None
            if kept is not None:
                kept.append(batch)
            yield batch
        self._kept = kept


def scores_of(output: Any) -> Tensor:
    """The class scores in what a model returned.

    Example:
        >>> scores_of({"logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])

    Args:
        output: (N, classes) scores; or a mapping or object with ``logits``; or a tuple that starts with them.

    Returns:
        The scores.

    Raises:
        TypeError: if there is no such tensor.
    """
    found = output
    if isinstance(found, Mapping):
        found = found.get("logits", found.get("out"))
    elif not isinstance(found, Tensor) and hasattr(found, "logits"):
        found = found.logits
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise TypeError(f"robustness: expected the model to return (N, classes) scores, it returned {shape}.")
    return found


@final
@dataclass
class Measurer:
    """Runs a borrowed model on cells.

    Example:
        >>> data = as_dataset((torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5) % 3))
        >>> from shiftnorm.evaluate.borrow import borrowed
        >>> from shiftnorm.evaluate.normalization import choose_normalization
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        >>> with borrowed(model) as loan:
        ...     half = choose_normalization(model, "half")
        ...     cpu = torch.device("cpu")
        ...     measurer = Measurer(loan, data, Images(data, torch.arange(5), 2), half, "cifar32", device=cpu)
        ...     measurer.measure(("fog", 1), Progress(1, 5, shown=False)).index
        tensor([0, 1, 2, 3, 4])

    Args:
        loan: the model.
        data: the data set.
        images: this rank's images of it.
        normalization: done before the model.
        constants: named set of strengths.
        seed: of the corruptions.
        storage: see `corrupt`.
        frost_dir: see `corrupt`.
        device: where the model is.
        amp: dtype of autocast, or None.
        channels_last: memory format of the batches.
        check: look at the inputs of the first clean batch.
        files: where the corrupted images are read from, if they are not made.
        named: whether the data's classes are known by name, so that the model's outputs must be these.

    State:
        ``found``: the check's findings, after the clean cell. ``times``: seconds and images of its forward passes.
        ``peak``: bytes of device memory at its most, or None.
    """

    loan: Borrowed
    data: Dataset
    images: Images
    normalization: Normalization
    constants: str
    seed: int = 0
    storage: str = "default"
    frost_dir: str | Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    amp: torch.dtype | None = None
    channels_last: bool = False
    check: bool = True
    files: CorruptedSet | None = None
    named: bool = True
    found: InputCheck | None = None
    times: list[tuple[float, int]] = field(default_factory=list)
    peak: int | None = None

    def measure(self, key: tuple[str, int], progress: Progress) -> CellOutcome | None:
        """This rank's outcome on a cell; None if it has no images.

        Example:
            >>> data = as_dataset((torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long()))
            >>> none = Normalization((0.0,) * 3, (1.0,) * 3, "none")
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).eval()
            >>> nobody = Images(data, torch.arange(0), 2)
            >>> Measurer(Borrowed(model), data, nobody, none, "cifar32").measure(CLEAN, Progress(1, 0, shown=False))

        Args:
            key: corruption and severity, or `CLEAN`.
            progress: is told of every batch.

        Raises:
            ValueError: if a score is NaN, the text names the cell; or if the model's outputs are not the classes.
        """
        self.loan.reset()
        self._seed(key)
        if key == CLEAN and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        parts: list[CellOutcome] = []
        with torch.inference_mode():
            if key == CLEAN and self.check:
                self.found = self._check()
                self.loan.reset()
            for batch in self._batches(key):
                images = self.corrupted(batch.images, key, batch.numbers)
                scores = self._scores(images, timed=key == CLEAN)
                try:
                    parts.append(CellOutcome.from_logits(scores, batch.labels, index=batch.indices))
                except ValueError as fault:
                    raise ValueError(f"robustness: in the cell {key[0]} {key[1]}: {fault}") from fault
                progress.advance(len(images))
        if key == CLEAN and self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        return merge(parts) if parts else None

    def _batches(self, key: tuple[str, int]) -> Images:
        if self.files is None or key == CLEAN:
            return self.images
        before = self.images
        return Images(self.files.cell(*key), before.positions, before.batch_size, before.workers, keep=False)

    def example(self, key: tuple[str, int], index: int) -> Tensor | None:
        """The image of a cell at a place in the data set, (1, 3, H, W) uint8; None if it cannot be read.

        Example:
            >>> data = as_dataset((torch.full((1, 3, 8, 8), 100, dtype=torch.uint8), torch.tensor([0])))
            >>> none = Normalization((0.0,) * 3, (1.0,) * 3, "none")
            >>> images, loan = Images(data, torch.arange(1), 1), Borrowed(torch.nn.Flatten())
            >>> measurer = Measurer(loan, data, images, none, "cifar32")
            >>> measurer.example(("contrast", 1), 0).shape
            torch.Size([1, 3, 8, 8])

        Args:
            key: corruption and severity, or `CLEAN`.
            index: of the image.
        """
        data = self.data if self.files is None or key == CLEAN else self.files.cell(*key)
        batch = next(iter(data.batches(1, indices=[index])), None)
        return None if batch is None else self.corrupted(batch.images, key, batch.numbers)

    def corrupted(self, images: Tensor, key: tuple[str, int], numbers: Sequence[int] | Tensor) -> Tensor:
        """Images of a cell, uint8, on the device; those from files are corrupted already.

        Example:
            >>> images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
            >>> data = as_dataset((images, torch.tensor([0])))
            >>> none = Normalization((0.0,) * 3, (1.0,) * 3, "none")
            >>> loan = Borrowed(torch.nn.Flatten())
            >>> measurer = Measurer(loan, data, Images(data, torch.arange(1), 1), none, "cifar32")
            >>> measurer.corrupted(images, ("brightness", 5), [0]).float().mean() > 100
            tensor(True)
        """
        images = images.to(self.device)
        if key == CLEAN or self.files is not None:
            return images
        return corrupt(
            images,
            *key,
            seed=self.seed,
            indices=numbers,
            constants=self.constants,
            storage=self.storage,
            frost_dir=self.frost_dir,
        )

    def _check(self) -> InputCheck:
        """Look at images from all over the data set: the first batch may be of one class."""
        every = max(len(self.images) // _CHECKED, 1)
        spread = self.images.positions[::every][:_CHECKED]
        parts = [batch.images for batch in self.data.batches(_CHECKED, indices=spread)]
        if sum(map(len, parts)) < _CHECKED_AT_LEAST:
            remark = f"there are fewer than {_CHECKED_AT_LEAST} images"
            return InputCheck([], [f"The normalization of the inputs could not be checked: {remark}."], None)
        images = torch.cat(parts).to(self.device)
        with self._naming_sizes(images):
            return check_inputs(self.loan.model, images, self.normalization, forward=self._forward)

    def _scores(self, images: Tensor, *, timed: bool) -> Tensor:
        x = self.normalization.apply(images)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if timed:
            self._wait()
            began = time.perf_counter()
        with self._naming_sizes(images):
            scores = scores_of(self._forward(x))
        if timed:
            self._wait()
            self.times.append((time.perf_counter() - began, len(x)))  # pyright: ignore[reportPossiblyUnbound]  (set above, under the same condition)
        if len(scores) != len(images):
            rows = f"{len(scores)} {plural('row', len(scores))} of scores"
            raise ValueError(f"robustness: the model returned {rows} for {len(images)} {plural('image', len(images))}.")
        check_outputs(scores.shape[1], self.data, named=self.named)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        subset = self.data.class_subset
        return scores if subset is None else scores[:, subset.to(scores.device)]

    def _naming_sizes(self, images: Tensor) -> AbstractContextManager[None]:
        return naming_sizes(lambda some: self._forward(self.normalization.apply(some)), images[:2], who="robustness")

    def _forward(self, x: Tensor) -> Any:
        try:
            with nullcontext() if self.amp is None else torch.autocast(self.device.type, dtype=self.amp):
                return self.loan.model(x)
        except RuntimeError as fault:
            # How torch calls uint8 where a layer of floats is given it.
            if not self.normalization.bytes or not any(name in str(fault) for name in ("unsigned char", "Byte")):
                raise
            raise ValueError(
                f"robustness: normalize='bytes' hands the model uint8 images, which it does not take ({fault}). It is "
                "for models that normalize themselves; name what this one was trained with."
            ) from fault

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _seed(self, key: tuple[str, int]) -> None:
        # A model that draws in eval mode then draws alike whether or not the cells before were resumed.
        value = int.from_bytes(f"{self.seed}{key[0]}{key[1]}".encode()[-7:], "big")
        torch.default_generator.manual_seed(value)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(value)
