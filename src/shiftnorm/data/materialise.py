"""Corrupted copies of a data set as files, in the layouts that CIFAR-10-C and ImageNet-C are published in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from shiftnorm.data import corruptions as module
from shiftnorm.data.checksums import Checksums, digest_of
from shiftnorm.data.contents import contents_of
from shiftnorm.data.corruptions import SEVERITIES, STORAGES, choose_corruptions, corrupt
from shiftnorm.data.corruptions.constants import CONSTANT_SETS, JPEG_STORED
from shiftnorm.data.corruptions.frost import PHOTOS, frost_from_photos
from shiftnorm.data.dataset import Batch, Dataset
from shiftnorm.data.decode import import_pillow
from shiftnorm.data.made_folder import CONTENTS, LABELS, MadeFolder
from shiftnorm.data.made_names import made_names
from shiftnorm.data.pixels import FilePixels

__all__ = ["Made", "corrupt_cifar", "corrupt_folder"]

OnProgress = Callable[[int, int, str], object]
QUALITY = 85


class Made(NamedTuple):
    """What a call made, and what was there before.

    Example:
        >>> Made(Path("made"), ["fog"], [1, 2, 3, 4, 5], made=500, found=0).made
        500

    Args:
        folder: where it is.
        corruptions: their names.
        severities: which.
        made: corrupted images that this call wrote.
        found: those that an earlier call had written.
    """

    folder: Path
    corruptions: list[str]
    severities: list[int]
    made: int
    found: int


@dataclass(frozen=True)
class _Plan:
    """What is made of every image."""

    names: tuple[str, ...]
    severities: tuple[int, ...]
    constants: str
    frost_dir: str | Path | None
    as_jpeg: bool
    seed: int

    @classmethod
    def checked(
        cls,
        corruptions: str | Iterable[str],
        severities: Iterable[int],
        constants: str,
        frost_dir: str | Path | None,
        storage: str,
        seed: int,
    ) -> _Plan:
        chosen = tuple(severities)
        if not chosen or len(set(chosen)) < len(chosen) or set(chosen) - set(SEVERITIES):
            raise ValueError(f"corrupt: severities must be numbers from 1 to 5, each once, got {list(chosen)}")
        for what, value, known in (("constants", constants, CONSTANT_SETS), ("storage", storage, STORAGES)):
            if value not in known:
                raise ValueError(f"corrupt: {what} must be one of {', '.join(known)}, got {value!r}")
        as_jpeg = storage == "jpeg85" or (storage == "default" and constants in JPEG_STORED)
        return cls(
            choose_corruptions(corruptions, frost_dir=frost_dir), chosen, constants, frost_dir, as_jpeg, int(seed)
        )

    def apply(self, batch: Batch, name: str, severity: int, storage: str) -> Tensor:
        return corrupt(
            batch.images,
            name,
            severity,
            seed=self.seed,
            indices=batch.numbers,
            constants=self.constants,
            storage=storage,
            frost_dir=self.frost_dir if name == "frost" else None,
        )

    def identity(self, layout: str, dataset: Dataset) -> dict[str, Any]:
        """What decides the pixels of a file, so that files of two kinds are never mixed in one folder."""
        photos = None
        if self.frost_dir is not None:
            frost_from_photos(self.frost_dir)  # says what is missing
            photos = _digest(*(digest_of(Path(self.frost_dir) / name) for name in PHOTOS))
        return {
            "layout": layout,
            "constants": self.constants,
            "storage": "jpeg85" if self.as_jpeg else "none",
            "seed": self.seed,
            "frost photos": photos,
            "images": digest_images(dataset),
            CONTENTS: contents_of(dataset),
            "preprocessing": list(dataset.provenance.notes),
            "corruption code": _digest_code(),
        }


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()


def _digest_code() -> str:
    folder = Path(module.__file__).parent
    return _digest(*(file.read_bytes() for file in sorted(folder.glob("*.py"))))


def digest_images(dataset: Dataset) -> str:
    """Return the SHA-256 of labels, numbers and files, or pixels where there are no files."""
    digest = hashlib.sha256()
    for tensor in (dataset.labels, dataset.numbers):
        digest.update(tensor.numpy().tobytes())
    if dataset.provenance.files:
        digest.update(dataset.provenance.checksum.encode())
    else:
        for start in range(0, len(dataset), 1024):
            digest.update(dataset.images(slice(start, start + 1024)).numpy().tobytes())
    return digest.hexdigest()


def _preprocess_of(dataset: Dataset) -> str | None:
    """What is done with the pictures; None for images that are not in files of their own."""
    pixels = getattr(dataset.pixels, "pixels", dataset.pixels)  # a subset holds the whole
    return pixels.preprocess.name if isinstance(pixels, FilePixels) else None


def _facts(dataset: Dataset, plan: _Plan, images: int | None = None) -> dict[str, Any]:
    return {
        "data": {
            "name": dataset.name,
            "images": len(dataset) if images is None else images,
            "classes": list(dataset.classes),
            "preprocess": _preprocess_of(dataset),
            "notes": list(dataset.provenance.notes),
            "skipped": [str(item) for item in dataset.skipped],
        },
        "frost": "photographs" if plan.frost_dir is not None else "procedural",
        "versions": {name: importlib.metadata.version(name) for name in ("shiftnorm", "torch", "numpy")},
    }


def _claim(dataset: Dataset, out: str | Path, plan: _Plan, layout: str) -> MadeFolder:
    if len(dataset) == 0:
        raise ValueError(f"corrupt: {dataset.name} has no images.")
    path, source = Path(out), dataset.provenance.path
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"corrupt: {path} is inside {source}, where the images come from; choose a folder outside of it."
        )
    return MadeFolder(path, plan.identity(layout, dataset), _facts(dataset, plan))


def corrupt_cifar(
    dataset: Dataset,
    out: str | Path,
    *,
    corruptions: str | Iterable[str] = "common",
    constants: str = "cifar32",
    frost_dir: str | Path | None = None,
    storage: str = "default",
    seed: int = 0,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> Made:
    """Write corrupted copies in the layout of CIFAR-10-C: one ``.npy`` file for each corruption, and ``labels.npy``.

    A file holds (5 N, H, W, 3) uint8: all images at severity 1, then at 2, and so on to 5; ``labels.npy`` holds the
    labels five times. Beside them are ``manifest.json``, what they were made from, and ``SHA256SUMS``. A call that was
    interrupted, even by kill -9, goes on when it is repeated; a file is there whole or not at all.

    Example:
        >>> import tempfile, torch
        >>> from shiftnorm.data import open_dataset
        >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 32, 32).byte(), torch.arange(4) % 2, ("cat", "dog"))
        >>> made = corrupt_cifar(pets, Path(tempfile.mkdtemp()) / "made", corruptions=["fog", "contrast"])
        >>> made.made, sorted(file.name for file in made.folder.iterdir())
        (40, ['SHA256SUMS', 'contrast.npy', 'fog.npy', 'labels.npy', 'manifest.json'])
        >>> np.load(made.folder / "fog.npy").shape
        (20, 32, 32, 3)

    Args:
        dataset: the images, of one size.
        out: the folder, new, empty, or of an earlier call with the same settings.
        corruptions: as `choose_corruptions` takes them.
        constants: the strengths, see `corrupt`.
        frost_dir: the authors' photographs of frost.
        storage: ``"jpeg85"`` lets every image pass through a JPEG file first, see `corrupt`.
        seed: of the random numbers.
        workers: processes that decode the images.
        on_progress: called with the corrupted images there are, those there will be, and what is made now.

    Returns:
        What was made.

    Raises:
        ValueError: for unknown names, images that are too many to hold, or a folder of other settings.
        FileExistsError: if the folder has files that were not made here.
        OSError: if the folder cannot be written to, or its disk has no room for the files.
    """
    plan = _Plan.checked(corruptions, SEVERITIES, constants, frost_dir, storage, seed)
    with _claim(dataset, out, plan, "cifar-c") as folder:
        return _fill_arrays(dataset, folder, plan, workers, on_progress)


def _fill_arrays(
    dataset: Dataset, folder: MadeFolder, plan: _Plan, workers: int, on_progress: OnProgress | None
) -> Made:
    held = dataset.in_memory(workers=workers)
    sums = Checksums(folder.path)
    each = len(held) * len(SEVERITIES)
    todo = [name for name in plan.names if not sums.has(f"{name}.npy")]
    done = found = each * (len(plan.names) - len(todo))
    kind = np.uint8 if len(held.classes) <= 256 else np.int64

    def write_labels(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, np.tile(held.labels.numpy(), len(SEVERITIES)).astype(kind))

    def tell(name: str, extra: int = 0) -> None:
        if on_progress is not None:
            on_progress(done + extra, each * len(plan.names), name)

    def write_cells(path: Path, name: str) -> None:
        height, width = held.images([0]).shape[2:]
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(each, height, width, 3))
        for place, severity in enumerate(SEVERITIES):
            for batch in held.batches(256):
                corrupted = plan.apply(batch, name, severity, "jpeg85" if plan.as_jpeg else "none")
                start = place * len(held) + int(batch.indices[0])
                rows[start : start + len(corrupted)] = corrupted.permute(0, 2, 3, 1).numpy()
                tell(f"{name}, severity {severity}", start + len(corrupted))
        rows.flush()

    _check_room(folder.path, len(todo) * len(SEVERITIES) * held.images().numel())
    if not sums.has(LABELS):
        sums.put(LABELS, write_labels)
        sums.flush()
    tell("")
    for name in todo:
        sums.put(f"{name}.npy", lambda path, name=name: write_cells(path, name))
        sums.flush()
        done += each
    folder.note(_facts(held, plan))
    for name in plan.names:
        folder.finish(name, {"files": 1, "sha256": sums.sums[f"{name}.npy"]})
    return Made(folder.path, list(plan.names), list(SEVERITIES), done - found, found)


def corrupt_folder(
    dataset: Dataset,
    out: str | Path,
    *,
    corruptions: str | Iterable[str] = "common",
    severities: Iterable[int] = SEVERITIES,
    constants: str = "imagenet224",
    frost_dir: str | Path | None = None,
    storage: str = "default",
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> Made:
    """Write corrupted copies in the layout of ImageNet-C: CORRUPTION/SEVERITY/CLASS/FILE.

    Files are JPEG of quality 85 with colours at half the resolution, as published; PNG where nothing is to be stored as
    JPEG (``storage="none"``, which is the default of ``"cifar32"``). Read again, they are the pixels that `corrupt`
    gives. Images of several domains lie in CORRUPTION/SEVERITY/DOMAIN/CLASS/FILE. In every CORRUPTION/SEVERITY is a
    list ``SHA256SUMS`` that ``sha256sum -c`` reads, and ``manifest.json`` says what all was made from. A call that was
    interrupted, even by kill -9, goes on when it is repeated, and may add corruptions and severities; a file is there
    whole or not at all.

    Example:
        >>> import tempfile, torch
        >>> pets = Dataset.of_images("pets", torch.zeros(4, 3, 64, 64).byte(), torch.arange(4) % 2, ("cat", "dog"))
        >>> made = corrupt_folder(pets, Path(tempfile.mkdtemp()) / "made", corruptions=["fog"], severities=[3])
        >>> sorted(file.relative_to(made.folder).as_posix() for file in made.folder.rglob("*.JPEG"))
        ['fog/3/cat/00000000.JPEG', 'fog/3/cat/00000002.JPEG', 'fog/3/dog/00000001.JPEG', 'fog/3/dog/00000003.JPEG']

    Args:
        dataset: the images; large ones are resized and cropped as it was opened to do.
        out: the folder, new, empty, or of an earlier call with the same settings.
        corruptions: as `choose_corruptions` takes them.
        severities: from 1 to 5.
        constants: the strengths, see `corrupt`.
        frost_dir: the authors' photographs of frost.
        storage: see `corrupt`.
        seed: of the random numbers.
        batch_size: images that are decoded and corrupted together; it does not change a pixel.
        workers: processes that decode the images.
        on_progress: called with the corrupted images there are, those there will be, and what is made now.

    Returns:
        What was made.

    Raises:
        ValueError: for unknown names or severities, or a folder of other settings.
        FileExistsError: if the folder has files that were not made here.
        OSError: if the folder cannot be written to.
    """
    plan = _Plan.checked(corruptions, severities, constants, frost_dir, storage, seed)
    import_pillow()
    with _claim(dataset, out, plan, "imagenet-c") as folder:
        return _fill_folders(dataset, folder, plan, batch_size, workers, on_progress)


def _fill_folders(
    dataset: Dataset,
    folder: MadeFolder,
    plan: _Plan,
    batch_size: int,
    workers: int,
    on_progress: OnProgress | None,
) -> Made:
    names = made_names(dataset, as_jpeg=plan.as_jpeg)
    cells = {
        (name, severity): Checksums(folder.path / name / str(severity))
        for name in plan.names
        for severity in plan.severities
    }
    missing = {key: [place for place, file in enumerate(names) if not sums.has(file)] for key, sums in cells.items()}
    total = len(names) * len(cells)
    done = found = total - sum(map(len, missing.values()))
    if on_progress is not None:
        on_progress(done, total, "")
    # All cells of a batch before the next one, so that every picture is decoded once.
    wanted = sorted(set().union(*missing.values()))
    waiting = {key: set(places) for key, places in missing.items()}
    for batch in dataset.batches(batch_size, workers=workers, indices=wanted):
        places = batch.indices.tolist()
        for (name, severity), sums in cells.items():
            rows = [row for row, place in enumerate(places) if place in waiting[name, severity]]
            if not rows:
                continue
            part = Batch(batch.images[rows], batch.labels[rows], batch.indices[rows], batch.numbers[rows])
            pixels = plan.apply(part, name, severity, "none")
            for row, place in zip(pixels, part.indices.tolist(), strict=True):
                sums.put(names[place], _encoded(row, plan.as_jpeg))
            sums.flush()
            done += len(rows)
            if on_progress is not None:
                on_progress(done, total, f"{name}, severity {severity}")
    folder.note(_facts(dataset, plan, max(len(sums.sums) for sums in cells.values())))
    for (name, severity), sums in cells.items():
        folder.finish(f"{name}/{severity}", sums.summary())
    return Made(folder.path, list(plan.names), list(plan.severities), done - found, found)


def _check_room(path: Path, needed: int) -> None:
    if (free := shutil.disk_usage(path).free) < needed:
        raise OSError(
            f"corrupt: the files need {needed / 1e9:.1f} GB, but the disk of {path} has {free / 1e9:.1f} GB left; "
            "choose another folder, fewer corruptions or fewer images."
        )


def _encoded(image: Tensor, as_jpeg: bool) -> bytes:
    picture = import_pillow().fromarray(image.permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    if as_jpeg:
        picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    else:
        picture.save(file, "PNG")
    return file.getvalue()
