"""Folders of images, one folder per class, as image sets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shiftnorm.data.archive import SUFFIXES, default_cache, unpack_archive
from shiftnorm.data.decode import UnreadableImage, decode_image, fit_image, image_tensor, import_pillow
from shiftnorm.data.image_set import ImageSet
from shiftnorm.data.labelled_files import files_below, list_folder, refuse_duplicates

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
DEFAULT_SIZE = 32
MEMORY_LIMIT = 4 * 2**30
_WHO = "load_folder"


def _list(folder: Path) -> list[Path]:
    return list_folder(folder, _WHO)


def _classes(folder: Path) -> dict[str, list[Path]]:
    entries = _list(folder)
    classes = {entry.name: files_below(entry, _WHO) for entry in entries if entry.is_dir()}
    if not classes:
        found = f"it holds {len(entries)} files and no folders" if entries else "it is empty"
        raise ValueError(
            f"load_folder: no classes in {folder}: {found}; "
            f"put the images into one folder per class, {folder.name}/CLASS/FILE"
        )
    if len(classes) < 2:
        only = next(iter(classes))
        raise ValueError(
            f"load_folder: a classifier needs at least two classes, {folder} holds only the folder {only!r}; "
            f"if the classes lie below it, pass {folder / only}"
        )
    refuse_duplicates(((name, folder) for name in classes), _WHO)
    below = [{entry.name for entry in _list(folder / name) if entry.is_dir()} for name in classes]
    # Classes do not hold the same folders; domains do: they hold the classes.
    if len(shared := sorted(set.intersection(*below))) > 1:
        raise ValueError(
            f"load_folder: all folders of {folder} hold the folders {', '.join(shared[:3])}, ...: they look like "
            f"domains, not classes; pass one of them, such as {folder / next(iter(classes))}"
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise ValueError(f"load_folder: no files in the class folders {empty} of {folder}; add images or remove them")
    return classes


def _one_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    by_name = {entry.name.lower(): entry for entry in _list(folder) if entry.is_dir()}
    return next((by_name[name] for name in names if name in by_name), None)


def _parts(root: Path) -> list[dict[str, list[Path]]]:
    # A class may be called "train": only a pair of such folders, and nothing beside them but further parts, is a split.
    train, test = _one_of(root, TRAIN_NAMES), _one_of(root, TEST_NAMES)
    others = [
        entry.name for entry in _list(root) if entry.is_dir() and entry.name.lower() not in TRAIN_NAMES + TEST_NAMES
    ]
    if train is None or test is None or others:
        return [_classes(root)]
    parts = [_classes(train), _classes(test)]
    refuse_duplicates(((name, part) for part, found in zip((train, test), parts, strict=True) for name in found), _WHO)
    if difference := sorted(parts[0].keys() ^ parts[1].keys()):
        raise ValueError(
            f"load_folder: {train} and {test} must hold the same classes; only one of them has {', '.join(difference)}"
        )
    return parts


@dataclass
class _Reader:
    """Reads images at one size: the given one, else the one they share, else the default."""

    size: int | None
    skip: bool
    skipped: list[str] = field(default_factory=list[str])
    images: list[Tensor] = field(default_factory=list[Tensor])
    labels: list[int] = field(default_factory=list[int])
    bytes_held: int = 0

    def read(self, path: Path, label: int) -> bool:
        """Add one image, or note that it was skipped; return whether it was added."""
        try:
            image = decode_image(path)
        except UnreadableImage as error:
            if not self.skip:
                raise ValueError(
                    f"load_folder: cannot read {path}: {error}; repair or remove it, or leave such files out with "
                    "on_error='skip'"
                ) from error
            self.skipped.append(str(path))
            return False
        if self.size is None and self.images and (image.height, image.width) != self.images[0].shape[1:]:
            self.size = DEFAULT_SIZE
            pictures = [import_pillow().fromarray(held.permute(1, 2, 0).numpy()) for held in self.images]
            self.images = [image_tensor(fit_image(picture, DEFAULT_SIZE)) for picture in pictures]
            self.bytes_held = sum(held.numel() for held in self.images)
        if self.size is not None:
            image = fit_image(image, self.size)
        self.bytes_held += 3 * image.width * image.height
        if self.bytes_held > MEMORY_LIMIT:
            raise ValueError(
                f"load_folder: the images need more than {MEMORY_LIMIT / 2**30:.2g} GiB at "
                f"{image.width}x{image.height}; pass a smaller size, such as size={DEFAULT_SIZE}, or a limit per class"
            )
        self.images.append(image_tensor(image))
        self.labels.append(label)
        return True


def _read_part(classes: dict[str, list[Path]], reader: _Reader, limit: int | None, generator: torch.Generator) -> int:
    before = len(reader.images)
    for label, (name, files) in enumerate(sorted(classes.items())):
        order: list[int] = list(range(len(files)))
        if limit is not None and limit < len(files):
            order = torch.randperm(len(files), generator=generator).tolist()
        read = 0
        for index in order:
            # Only images that could be read count, so that skipped ones are replaced.
            read += reader.read(files[index], label)
            if read == limit:
                break
        if read == 0:
            raise ValueError(
                f"load_folder: the class {name!r} has no file that can be read ({len(files)} tried, such as "
                f"{files[0]}); add images or remove the class"
            )
    return len(reader.images) - before


def load_folder(
    path: str | os.PathLike[str],
    size: int | None = None,
    *,
    test_fraction: float = 0.2,
    limit: int | None = None,
    seed: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    cache: str | os.PathLike[str] | None = None,
) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Read a folder, or a tar archive, of images sorted into one folder per class.

    Two layouts are understood: ``PATH/CLASS/FILE``, of which a part of every class becomes the test set, and
    ``PATH/train/CLASS/FILE`` with ``PATH/test/CLASS/FILE`` (or ``val``), used as they are. Files may lie deeper inside
    a class folder; hidden files and files beside the class folders are ignored. An archive may have folders around
    these.

    Of every file the first frame is read, upright as the camera noted; transparent parts become white, 16-bit grey is
    scaled to 8 bits, palettes and CMYK become RGB.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from shiftnorm.data import load_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         for index in range(5):
        ...             Image.new("RGB", (40, 32)).save(Path(folder) / name / f"{index}.png")
        ...     train, test, skipped = load_folder(folder, 32)
        >>> train.classes, len(train), len(test), skipped
        (('cat', 'dog'), 8, 2, ())

    Args:
        path: a folder, or an archive (.tar, .tar.gz, .tar.xz, .tar.bz2, .zip).
        size: side of the images; the shorter side is scaled to it and the centre is cut out. None keeps the images as
            they are if all have one size, and takes 32 if they differ.
        test_fraction: part of each class to test on; not used where the folder has its own split.
        limit: at most this many images per class, chosen at random; in a folder with its own split, in either part.
        seed: of the choice of images and of the split.
        on_error: what becomes of a file that cannot be read as an image: ``"raise"``, or ``"skip"`` it and list it.
        cache: where archives are unpacked; by default ``$XDG_CACHE_HOME/shiftnorm`` or ``~/.cache/shiftnorm``.

    Returns:
        The train set, the test set and the paths of the skipped files.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        NotADirectoryError: ``path`` is a file but no archive.
        PermissionError: a folder may not be read.
        ValueError: fewer than two classes, two that differ only in spelling, a class without images or with one only, a
            file that is no image (with ``on_error="raise"``), an unsafe or damaged archive, or an argument out of
            range.
        ImportError: Pillow is not installed.
    """
    root = Path(path)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"load_folder: on_error must be 'raise' or 'skip', got {on_error!r}")
    if size is not None and size < 1:
        raise ValueError(f"load_folder: size must be at least 1, got {size}")
    if limit is not None and limit < 2:
        raise ValueError(f"load_folder: limit must be at least 2, one image to train and one to test, got {limit}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"load_folder: test_fraction must be in (0, 1), got {test_fraction}")
    import_pillow()
    if not root.exists():
        raise FileNotFoundError(
            f"load_folder: there is nothing at {root}; expected a folder of class folders, "
            f"{root}/CLASS/FILE, or an archive"
        )
    # The archive's name without its endings, or the folder's.
    name = root.resolve().name.split(".tar")[0].removesuffix(".zip")
    if not root.is_dir():
        if not root.name.lower().endswith(SUFFIXES):
            raise NotADirectoryError(
                f"load_folder: {root} is a file; pass the folder that holds the class folders, or an archive with "
                f"one of the endings {', '.join(SUFFIXES)}"
            )
        root = unpack_archive(root, default_cache() if cache is None else Path(cache))
        while len(inside := _list(root)) == 1 and inside[0].is_dir():
            root = inside[0]

    parts = _parts(root)
    classes = tuple(sorted(parts[0]))
    generator = torch.Generator().manual_seed(seed)
    reader = _Reader(size, on_error == "skip")
    counts = [_read_part(part, reader, limit, generator) for part in parts]
    whole = ImageSet(torch.stack(reader.images), torch.tensor(reader.labels), classes, name)
    if len(parts) == 2:
        positions = torch.arange(len(whole))
        return whole.subset(positions[: counts[0]]), whole.subset(positions[counts[0] :]), tuple(reader.skipped)
    members = torch.bincount(whole.labels, minlength=len(classes)).tolist()
    if single := [each for each, count in zip(classes, members, strict=True) if count < 2]:
        raise ValueError(
            f"load_folder: the classes {single} have one readable image each; a class needs two, one to train and "
            "one to test"
        )
    return *whole.split(test_fraction, seed=seed), tuple(reader.skipped)
