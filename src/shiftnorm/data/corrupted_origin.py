"""What tells where corrupted images in files are from: their measures, and the clean images they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from shiftnorm.data.corrupted_set import image_keys
from shiftnorm.data.dataset import Dataset
from shiftnorm.data.decode import UnreadableImage, inspect_image
from shiftnorm.data.imagenet import WNID, Wnids
from shiftnorm.data.labelled_files import list_folder
from shiftnorm.data.made_names import made_names
from shiftnorm.data.materialise import digest_images

# The side of an image, and how many classes a set by that name may have.
_PUBLISHED_AS: Final = {"cifar10-c": (32, 10), "cifar100-c": (32, 100), "imagenet-c": (224, 1000)}
_CIFAR_ROWS: Final = 50_000


def noted_names(whole: Dataset, made: Any, label: str) -> list[str]:
    """The file that shiftnorm corrupt gave every clean image."""
    names = made_names(whole, as_jpeg=made["identity"].get("storage") == "jpeg85")
    stems = [(*key[:-1], key[-1].casefold()) for key in image_keys(whole) or ()]
    if len(set(stems)) < len(stems) and digest_images(whole) != made["identity"].get("images"):
        # Which of them has its number in the name depends on the others.
        raise ValueError(
            f"open_corrupted: of {whole.name} several files of a class differ only in folder or ending, and they are "
            f"not exactly the images that {label} was made from, so nothing tells which corrupted image belongs to "
            "which; pass the very images it was made from, opened the same way: clean=..."
        )
    return names


def check_size(clean: Dataset, cell: Dataset, label: str, name: str) -> None:
    """Raise if clean and corrupted images have different sizes, since the network would see two kinds of images."""
    ours, theirs = _first_size(clean), _first_size(cell)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"open_corrupted: the images of {label} are {theirs[1]}x{theirs[0]}, but those of the clean set {name} "
            f"{ours[1]}x{ours[0]}; open the clean images as those were that it was made from, "
            "clean=open_dataset(..., preprocess=...), or preprocess the corrupted ones to their size, preprocess=... "
            "(--preprocess)"
        )


def _first_size(dataset: Dataset) -> tuple[int, int] | None:
    """Height and width of the first image that can be read."""
    for place in range(len(dataset)):
        images, failures = dataset.pixels.read(torch.tensor([place]))
        if not failures:
            return images.shape[2], images.shape[3]
    return None


def published_arrays(cell: Dataset) -> str | None:
    """The set that arrays have the measures of: size, rows and classes."""
    for name in ("cifar10-c", "cifar100-c"):
        side, classes = _PUBLISHED_AS[name]
        if len(cell.labels.unique()) == classes == int(cell.labels.max()) + 1 and len(cell) * 5 == _CIFAR_ROWS:
            return name if _first_size(cell) == (side, side) else None
    return None


def of_imagenet(classes: Sequence[Path], wnids: Wnids) -> bool:
    """Whether class folders are to be matched with ImageNet's outputs: not those of Tiny ImageNet, unless asked to."""
    if not any(WNID.fullmatch(each.name) for each in classes):
        return False
    return wnids is not None or _first_picture_size(classes) == (_PUBLISHED_AS["imagenet-c"][0],) * 2


def published_pictures(classes: Sequence[Path]) -> bool:
    """Whether class folders have the measures of ImageNet-C: size and number of classes."""
    side, count = _PUBLISHED_AS["imagenet-c"]
    return len(classes) == count and _first_picture_size(classes) == (side, side)


def _first_picture_size(classes: Sequence[Path]) -> tuple[int, int] | None:
    """Height and width, as they are stored, of the first picture that can be read."""
    for folder in classes:
        try:
            files = list_folder(folder)
        except PermissionError:
            continue  # reading it raises or skips, as was asked for
        for file in files:
            try:
                width, height = inspect_image(file)
            except UnreadableImage:
                continue
            return height, width
    return None
