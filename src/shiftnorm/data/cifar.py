"""CIFAR-10 and CIFAR-100, their corrupted copies and CIFAR-10.1, in the layouts they are published in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shiftnorm.data.dataset import Dataset
from shiftnorm.data.labelled_files import LabelledFile, Reading, class_files, dataset_of_files, subfolders
from shiftnorm.data.locate import find_file, locate
from shiftnorm.data.pickles import read_pickle
from shiftnorm.data.pixels import ArrayPixels, load_array
from shiftnorm.data.provenance import Provenance, Skipped

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()
)
COARSE = tuple(
    """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
    insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
    vehicles_1 vehicles_2
    """.split()
)
SEVERITIES = 5
FLAT = 3 * 32 * 32


def cifar(root: Path, split: str, reading: Reading, *, name: str, labels: str = "fine") -> Dataset | None:
    """Read CIFAR-10 or -100: the python version, else pictures in class folders; None if neither is below ``root``."""
    tens = name == "cifar10"
    if labels not in ("fine", "coarse"):
        raise ValueError(f"open_dataset: labels must be 'fine' or 'coarse', got {labels!r}")
    classes = CIFAR10 if tens else CIFAR100 if labels == "fine" else COARSE
    batches = [f"data_batch_{number}" for number in range(1, 6)] if tens else ["train"]
    files = batches if split == "train" else ["test_batch" if tens else "test"]

    def holds_pickles(folder: Path) -> bool:
        # A folder of class folders called "train" and "test" is not the python version of CIFAR-100.
        return find_file(folder, files[:1]) is not None and find_file(folder, ("batches.meta", "meta")) is not None

    def holds_pictures(folder: Path) -> bool:
        return folder.name == split and {entry.name for entry in subfolders(folder)} >= set(classes)

    short = "cifar-10" if tens else "cifar-100"
    folder = locate(root, holds_pickles, reading, archives=(f"{short}-python.tar.gz", f"{short}-python.tar"))
    if folder is not None:
        key = "labels" if tens else f"{labels}_labels"
        parts = [_python_part(folder / file, key, len(classes)) for file in files]
        return _held(
            name,
            torch.cat([part[0] for part in parts]),
            torch.cat([part[1] for part in parts]),
            classes,
            Provenance(folder, tuple(folder / file for file in files), ("the python version",)),
            reading,
        )
    if labels == "coarse":
        return None
    folder = locate(root, holds_pictures, reading, archives=(f"{name}_{split}.*", f"{name}.*", f"{short}-images*"))
    if folder is None:
        return None
    skipped: list[Skipped] = []
    found = class_files(folder, reading, skipped)
    if strangers := sorted(found.keys() - set(classes)):
        raise ValueError(f"open_dataset: {folder} holds class folders that {name} does not know: {strangers}")
    files_of = [LabelledFile(path, classes.index(each)) for each in classes for path in found[each]]
    note = "pictures in class folders, not the published pixels if they are JPEG"
    pictures = dataset_of_files(
        name, folder, files_of, classes, reading.unless_given("none"), skipped=skipped, notes=(note,)
    )
    return pictures.in_memory(workers=reading.workers)


def _python_part(path: Path, key: str, classes: int) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"open_dataset: {path} is missing beside the other files of CIFAR; unpack all of them")
    content = read_pickle(path)
    data, labels = content.get("data"), content.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != FLAT or not isinstance(labels, list):
        shape = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(
            f"open_dataset: {path} must hold 'data' (N, {FLAT}) and {key!r}, got {shape} and {sorted(content)}; "
            "it is no data file of CIFAR"
        )
    targets = _labels(np.asarray(labels), len(data), classes, path)
    return torch.from_numpy(data.copy()).view(-1, 3, 32, 32), targets


def _labels(values: np.ndarray, count: int, classes: int, path: Path) -> Tensor:
    if values.ndim != 1 or len(values) != count or values.dtype.kind not in "iu":
        raise ValueError(
            f"open_dataset: {path} must hold {count} whole-number labels, got {values.shape} {values.dtype}"
        )
    if count and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(
            f"open_dataset: the labels of {path} must be in 0..{classes - 1}, got {values.min()}..{values.max()}"
        )
    return torch.from_numpy(values.astype(np.int64))


def _held(
    name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...], source: Provenance, reading: Reading
) -> Dataset:
    if reading.preprocess not in ("auto", "none"):
        raise ValueError(
            f"open_dataset: {name} is read as it is stored, 32x32, so preprocess must be 'none', "
            f"got {reading.preprocess!r}"
        )
    return Dataset.of_images(name, images, labels, classes, source, on_error=reading.on_error)


def cifar_corrupted(
    root: Path,
    split: str,
    reading: Reading,
    *,
    name: str,
    corruption: str | None = None,
    severity: int | None = None,
) -> Dataset | None:
    """Read one cell of CIFAR-10-C or -100-C: one .npy file per corruption, the severities one after the other."""
    del split
    tens = name == "cifar10-c"
    classes = CIFAR10 if tens else CIFAR100
    # Whatever is inside is asked for by name, but a folder of both sets side by side must not be mixed up.
    other = "cifar-100-c" if tens else "cifar-10-c"

    def holds(folder: Path) -> bool:
        return (folder / "labels.npy").is_file() and folder.name.lower() != other

    folder = locate(root, holds, reading, archives=("CIFAR-10-C.tar*",) if tens else ("CIFAR-100-C.tar*",))
    if folder is None:
        return None
    known = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
    if corruption not in known:
        raise ValueError(
            f"open_dataset: {name} needs corruption=, one of those in {folder} ({', '.join(known)}), got {corruption!r}"
        )
    if severity is None or severity not in range(1, SEVERITIES + 1):
        raise ValueError(f"open_dataset: {name} needs severity= from 1 to {SEVERITIES}, got {severity!r}")
    path = folder / f"{corruption}.npy"
    whole = ArrayPixels(path)
    if len(whole) % SEVERITIES:
        raise ValueError(f"open_dataset: {path} holds {len(whole)} images, which are not {SEVERITIES} severities")
    count = len(whole) // SEVERITIES
    stored = load_array(folder / "labels.npy")
    # Sets made elsewhere may store the labels once instead of once per severity.
    repeated = np.tile(stored, SEVERITIES) if stored.shape == (count,) else stored
    labels = _labels(repeated, len(whole), len(classes), folder / "labels.npy")
    rows = range((severity - 1) * count, severity * count)
    if reading.preprocess not in ("auto", "none"):
        raise ValueError(f"open_dataset: {name} is read as it is stored; preprocess must be 'none'")
    return Dataset(
        f"{name}/{corruption}/{severity}",
        ArrayPixels(path, rows),
        labels[rows.start : rows.stop].clone(),
        classes,
        torch.arange(count),
        Provenance(folder, (path, folder / "labels.npy"), (f"{corruption}, severity {severity}, as published",)),
    )


def cifar10_1(root: Path, split: str, reading: Reading, *, name: str, version: str = "v6") -> Dataset | None:
    """Read CIFAR-10.1, version v6 (2,000 images, balanced) or v4 (2,021)."""
    del split
    if version not in ("v4", "v6"):
        raise ValueError(f"open_dataset: version must be 'v4' or 'v6', got {version!r}")
    images = f"cifar10.1_{version}_data.npy"
    folder = locate(root, lambda folder: (folder / images).is_file(), reading)
    if folder is None:
        return None
    label_file = folder / f"cifar10.1_{version}_labels.npy"
    if not label_file.is_file():
        raise FileNotFoundError(f"open_dataset: {label_file} is missing beside {images}; put it there")
    pixels = ArrayPixels(folder / images)
    labels = _labels(load_array(label_file), len(pixels), len(CIFAR10), label_file)
    source = Provenance(folder, (folder / images, label_file), (f"version {version}",))
    return _held(name, pixels.read(torch.arange(len(pixels)))[0], labels, CIFAR10, source, reading)
