"""The images of a training run: what is learned from, what is held out for choosing, what is measured on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

import torch

from shiftnorm.data import Dataset, ImageSet, digits_on_photos, load_folder, open_dataset
from shiftnorm.data.dataset import MEMORY_LIMIT
from shiftnorm.data.image_set import split_labels
from shiftnorm.data.pixels import TensorPixels
from shiftnorm.evaluate.progress import plural
from shiftnorm.tasks.batches import Batches, EpochBatches
from shiftnorm.tasks.loaded_batches import LoadedBatches
from shiftnorm.train_recipe import DataRecipe

__all__ = ["FitData", "load_fit_data"]

# The split is no choice of a run: with another one for every seed, seeds could not be compared.
_SPLIT_SEED: Final = 0
_TEST_SHARE: Final = 0.2  # of each class of a folder without parts, as load_folder takes it
_SAMPLE: Final = 10_000
_LEAST_STD: Final = 1e-3
_WIDER: Final = 256 / 224  # what is cut away at the sides of a picture before measuring, as usual for ImageNet


@final
@dataclass(frozen=True)
class FitData:
    """Images for training, choosing and measuring, no image in two of them, and what inputs are normalized by.

    Example:
        >>> data = load_fit_data(DataRecipe())
        >>> data.describe()["test"], len(data.sha256), data.in_memory
        (382, 64, True)

    Args:
        train: what is learned from.
        validation: held out of the training images; None without.
        test: what the trained network is measured on: the test images, or the held-out ones.
        mean: per channel of images in [0, 1].
        std: likewise.
        left_out: files that could not be read, from the folder on.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    left_out: tuple[str, ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether the training images are held in memory, not read from files.

        Example:
            >>> load_fit_data(DataRecipe(limit=2)).in_memory
            True
        """
        return _is_held(self.train)

    @cached_property
    def sha256(self) -> str:
        """Digest of what is trained on and held out: pixels and labels in order; file lists where images stay in files.

        Example:
            >>> load_fit_data(DataRecipe(limit=2)).sha256 == load_fit_data(DataRecipe(limit=3)).sha256
            False
        """
        return _digest(*(part for part in (self.train, self.validation) if part is not None))

    @cached_property
    def test_sha256(self) -> str:
        """Digest of the test images, likewise.

        Example:
            >>> one, two = (load_fit_data(DataRecipe(limit=2), test_limit=limit) for limit in (10, 20))
            >>> one.sha256 == two.sha256, one.test_sha256 == two.test_sha256
            (True, False)
        """
        return _digest(self.test)

    def describe(self) -> dict[str, Any]:
        """Name, digests, sizes and classes, as records keep them.

        Example:
            >>> load_fit_data(DataRecipe(limit=2)).describe()["validation"] is None
            True
        """
        held = self.validation
        return {
            "name": self.train.name,
            "sha256": self.sha256,
            "train": len(self.train),
            "validation": held and {"images": len(held), "seed": _SPLIT_SEED, "sha256": _digest(held)},
            "test": len(self.test),
            "test_sha256": self.test_sha256,
            "classes": list(self.train.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            **({"left_out": list(self.left_out)} if self.left_out else {}),
        }

    def batches(
        self,
        recipe: DataRecipe,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        on_device: bool = True,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = False,
    ) -> EpochBatches:
        """Shuffled, augmented batches of the training images, with their indices.

        Example:
            >>> recipe = DataRecipe(limit=4)
            >>> batches = load_fit_data(recipe).batches(recipe, batch_size=8, seed=0, device=torch.device("cpu"))
            >>> len(batches), [len(part) for part in next(iter(batches))]
            (5, [8, 8, 8])

        Args:
            recipe: says how images are augmented.
            batch_size: images of a batch in each process.
            seed: of order and augmentation.
            device: where batches are augmented.
            on_device: hold all images there, if they are in memory at all.
            rank: number of this process.
            world: how many there are.
            workers: processes that read files, for CUDA; a CPU has enough to do with the network.
            drop_last: leave out what does not fill a batch.

        Returns:
            The batches of one epoch after another.

        Raises:
            ValueError: if the last batch would be a single image.
        """
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "shift": recipe.pad if recipe.crop == "pad" else 0,
            "flip": recipe.flip,
            "resized": recipe.size if recipe.crop == "resized" else None,
            "seed": seed,
            "rank": rank,
            "world": world,
            "drop_last": drop_last,
            "with_indices": True,
        }
        together = min(batch_size, len(self.train) // world) * world
        if not drop_last and batch_size > 1 and together and len(self.train) % together // world == 1:
            # its channels may have one value each, which have no variance, and it has no other image to mix with
            raise ValueError(
                f"train: {len(self.train)} training images in batches of {together} leave a single image for the last "
                f"batch{' of each process' * (world > 1)}, and norms and methods need two; set loop.drop_last=true or "
                "another loop.batch_size."
            )
        if self.in_memory and (on_device or device.type == "cpu"):
            return Batches(self.train.images().to(device), self.train.labels.to(device), **options)
        pinned = device.type == "cuda"
        return LoadedBatches(self.train, device=device, workers=workers if pinned else 0, pin_memory=pinned, **options)


def load_fit_data(
    recipe: DataRecipe, root: str | Path | None = None, *, test_limit: int | None = None, part: str = "test"
) -> FitData:
    """Load the images that a recipe names.

    Example:
        >>> data = load_fit_data(DataRecipe(limit=20, validation=0.25), test_limit=100)
        >>> len(data.train), len(data.validation), len(data.test)
        (150, 50, 100)

    Args:
        recipe: of the data.
        root: where they lie; counts more than the recipe's own ``root``.
        test_limit: at most so many images to measure on, drawn once and for all.
        part: "test", or "validation" to measure on the held-out images and never on the test images.

    Returns:
        The images.

    Raises:
        FileNotFoundError: if they are not there.
        ValueError: if images have another size than the recipe says, classes of the two parts differ, a part is empty
            or shares a file with the other, or nothing says where a folder lies.
    """
    place = recipe.root if root is None else root
    train, test, left_out = _open(recipe, None if place is None else Path(place))
    if train.classes != test.classes:
        raise ValueError(
            f"train: the training images of {train.name} have the classes {_listed(train.classes)}, its test images "
            f"{_listed(test.classes)}; give both parts the same class folders."
        )
    for kind, images in (("training", train), ("test", test)):
        shape = tuple(images.images([0]).shape[2:]) if len(images) else (0, 0)
        if shape != (recipe.size, recipe.size):
            raise ValueError(
                f"train: expected {kind} images of {recipe.size}x{recipe.size} pixels, as data.size says, got "
                f"{len(images)} of {shape[0]}x{shape[1]} from {images.name}."
            )
    if recipe.limit is not None:
        of_class = ((train.labels == label).nonzero().flatten()[: recipe.limit] for label in range(len(train.classes)))
        train = train.subset(torch.cat(list(of_class)))
    validation = None
    if recipe.validation:
        rest, chosen = split_labels(train.labels, recipe.validation, seed=_SPLIT_SEED)
        train, validation = train.subset(rest), train.subset(chosen)
        test = validation if part == "validation" else test
    if test_limit is not None and test_limit < len(test):
        drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(_SPLIT_SEED))[:test_limit]
        test = test.subset(drawn.sort().values)
    if len(train) == 0:
        raise ValueError(f"train: no training image of {train.name} is left; data.limit or data.validation is wrong.")
    # a recipe has both or neither
    mean, std = _moments(train) if recipe.mean is None or recipe.std is None else (recipe.mean, recipe.std)
    return FitData(train, validation, test, mean, std, left_out)


def _open(recipe: DataRecipe, root: Path | None) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    try:
        train, test, left_out = _read(recipe, root)
    except ValueError as fault:
        said = str(fault).replace("on_error='skip'", "--set data.on_error=skip")
        raise (fault if said == str(fault) else ValueError(said)) from fault
    return train, test, tuple(each if root is None else os.path.relpath(each, root) for each in left_out)


def _read(recipe: DataRecipe, root: Path | None) -> tuple[Dataset, Dataset, list[str]]:
    if recipe.name == "digits":
        if root is not None:
            raise ValueError(
                f"train: the recipe's images are the digits, which come with scikit-learn and are in no folder, got "
                f"{root}. For a folder of images of your own add --set data.name=folder."
            )
        return *_held(*digits_on_photos(seed=0, size=recipe.size)), []
    options: dict[str, Any] = {"on_error": recipe.on_error} | ({} if root is None else {"root": root})
    name: str | Path = recipe.name
    if recipe.name == "folder":
        if root is None:
            raise ValueError("train: the recipe wants a folder of images, got none; say where it is with --data DIR.")
        if recipe.crop == "pad":
            train, test, left_out = load_folder(root, recipe.size, seed=_SPLIT_SEED, on_error=recipe.on_error)
            return *_held(train, test), list(left_out)
        name = root
        del options["root"]
    if recipe.name in ("folder", "imagenet"):
        options["preprocess"] = f"resize{round(_WIDER * recipe.size)}-crop{recipe.size}"
    if root is not None and not root.exists():
        raise FileNotFoundError(f"train: there is nothing at {root}; say where the images are with --data DIR.")
    try:
        train = open_dataset(name, split="train", **options)
        test = open_dataset(name, split="val" if name == "imagenet" else "test", **options)
    except FileNotFoundError as fault:
        advice = "say where it is with --data DIR; for a folder of images of your own add --set data.name=folder"
        raise FileNotFoundError(f"train: no {recipe.name} ({advice}). {fault}") from fault
    if recipe.name == "folder":
        train, test = _apart(train, test)
    fits = (len(train) + len(test)) * 3 * recipe.size**2 <= MEMORY_LIMIT
    if fits and recipe.crop == "pad":  # random parts are cut from whole pictures, which are in the files only
        train, test = train.in_memory(), test.in_memory()
    return train, test, list(dict.fromkeys(item.path for part in (train, test) for item in part.skipped))


def _apart(train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """The parts of a folder; one without parts, which was read twice, is split as ``load_folder`` does it."""
    learned, measured = train.files(), test.files()
    if learned is None or measured is None:  # of published files, which have parts of their own
        return train, test
    if learned == measured:
        alone = [each for each, count in zip(train.classes, _counts(train), strict=True) if count < 2]
        if alone:
            raise ValueError(
                f"train: {train.name} has no train and test parts, and its classes {_listed(tuple(alone))} have fewer "
                "than two images, one to train on and one to test on; add images, or make folders train and test."
            )
        rest, chosen = split_labels(train.labels, _TEST_SHARE, seed=_SPLIT_SEED)
        train, test = train.subset(rest), train.subset(chosen)
        learned, measured = train.files() or [], test.files() or []
    # a link is another name of the same image
    shared = {os.path.realpath(file) for file in learned} & {os.path.realpath(file) for file in measured}
    if shared:
        are = "is" if len(shared) == 1 else "are"
        raise ValueError(
            f"train: {len(shared)} {plural('file', len(shared))} of {train.name} {are} in its training and in its test "
            f"part, for instance {min(shared)}; each must be in one part only."
        )
    return train, test


def _counts(data: Dataset) -> list[int]:
    return data.labels.bincount(minlength=len(data.classes)).tolist()


def _held(*sets: ImageSet) -> tuple[Dataset, Dataset]:
    first, second = (Dataset.of_images(each.name, each.images, each.labels, each.classes) for each in sets)
    return first, second


def _moments(train: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel, of some of the images where they are many."""
    scaled = train.images(slice(None, None, max(1, len(train) // _SAMPLE))).double().div(255)
    std = scaled.std((0, 2, 3)).clamp_min(_LEAST_STD)
    return tuple(scaled.mean((0, 2, 3)).tolist()), tuple(std.tolist())


def _is_held(data: Dataset) -> bool:
    innermost = getattr(data.pixels, "pixels", data.pixels)  # of a selection, what was selected from
    return isinstance(innermost, TensorPixels)


def _digest(*parts: Dataset) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if _is_held(part):
            images = part.images()
            digest.update(str(tuple(images.shape)).encode())
            digest.update(images.contiguous().numpy().data)
        else:
            # wherever they lie
            facts = {key: value for key, value in part.describe().items() if key != "path"}
            digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
            digest.update(part.numbers.numpy().data)
        digest.update(part.labels.contiguous().numpy().data)
    return digest.hexdigest()


def _listed(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
