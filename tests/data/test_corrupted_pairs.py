"""Every corrupted image in a file is paired with the clean image it was made of, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import picture, tree
from shiftnorm.data import Dataset, corrupt, open_dataset
from shiftnorm.data.cifar import CIFAR10
from shiftnorm.data.corrupted_origin import published_pictures
from shiftnorm.data.made_folder import MANIFEST
from shiftnorm.data.materialise import corrupt_folder
from shiftnorm.data.open_corrupted import CORRUPTED, open_corrupted

ALIKE = {
    "endings": ["cat/a.jpg", "cat/a.png", "cat/b.png", "dog/c.png"],
    "kept endings": ["cat/a.jpeg", "cat/a.jpg", "cat/a.png", "dog/c.png"],
    "folders": ["cat/x/1.png", "cat/y/1.png", "dog/1.png"],
}
NINE = [f"{name}/{number}.png" for name in ("cat", "dog", "eel") for number in range(3)]


@pytest.mark.parametrize("names", ALIKE.values(), ids=list(ALIKE))
@pytest.mark.parametrize("storage", ["none", "jpeg85"])
def test_files_of_one_stem_are_told_apart_by_what_corrupt_noted(tmp_path: Path, names: list[str], storage: str) -> None:
    clean = open_dataset(tree(tmp_path / "pets", names, size=(48, 48)))
    made = corrupt_folder(clean, tmp_path / "c", corruptions=["fog", "contrast"], severities=[1], storage=storage)
    found = open_corrupted(made.folder, clean=tmp_path / "pets")
    few = found.limit(1)
    for part, name in ((found, "fog"), (found, "contrast"), (few, "fog")):
        settings = {"constants": "imagenet224", "storage": storage, "indices": part.clean.numbers}
        assert torch.equal(part.cell(name, 1).images(), corrupt(part.clean.images(), name, 1, **settings))
    (made.folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"cat/.* and .*cat/.* of pets are both cat/.*so nothing tells which"):
        open_corrupted(made.folder, clean=clean)


def test_the_note_is_of_the_very_images_only(tmp_path: Path) -> None:
    clean = open_dataset(tree(tmp_path / "pets", ALIKE["endings"], size=(48, 48)))
    made = corrupt_folder(clean.subset([1, 2, 3]), tmp_path / "c", corruptions=["fog"], severities=[1]).folder
    # Its a.JPEG is of a.png, where that of all four would be of a.jpg.
    with pytest.raises(ValueError, match="not exactly the images that c was made from"):
        open_corrupted(made, clean=clean)
    found = open_corrupted(made, clean=clean.subset([1, 2, 3]))
    assert found.clean.numbers.tolist() == [1, 2, 3]


def test_doubled_stems_on_the_corrupted_side(tmp_path: Path) -> None:
    clean = open_dataset(tree(tmp_path / "pets", ["cat/1.png", "cat/2.png"], size=(48, 48)))
    tree(tmp_path / "c" / "fog" / "1", ["cat/x/1.png", "cat/y/1.png"], size=(48, 48))
    with pytest.raises(ValueError, match=r"x/1.png and .*y/1.png of 1 are both cat/1"):
        open_corrupted(tmp_path / "c", clean=clean)


def test_clean_images_in_memory(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, 3, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    clean = Dataset.of_images("pets", images, torch.tensor([0, 1, 0, 1]), ("cat", "dog"))
    made = corrupt_folder(clean, tmp_path / "c", corruptions=["fog"], severities=[1]).folder
    found = open_corrupted(made, clean=clean)
    assert found.clean.numbers.tolist() == [0, 2, 1, 3]
    settings = {"constants": "imagenet224", "indices": found.clean.numbers}
    assert torch.equal(found.cell("fog", 1).images(), corrupt(found.clean.images(), "fog", 1, **settings))
    (made / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"the clean set pets have no names, so nothing tells which is which"):
        open_corrupted(made, clean=clean)


@pytest.mark.parametrize("broken", ["cat/9.png", "cat/x/1.png"])
def test_an_image_that_is_gone_is_not_one_that_was_skipped(tmp_path: Path, broken: str) -> None:
    root = tree(tmp_path / "pets", NINE, size=(48, 48))
    made = corrupt_folder(open_dataset(root), tmp_path / "c", corruptions=["fog"], severities=[1]).folder
    lost = root / "dog" / "1.png"
    content = lost.read_bytes()
    lost.unlink()
    picture(root / broken).write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of the 9 images of c are not in the clean set pets, .* dog/1"):
        open_corrupted(made, clean=root, on_error="skip")
    lost.write_bytes(content[:50])
    assert len(open_corrupted(made, clean=root, on_error="skip")) == 8


def test_clean_images_are_opened_as_those_that_were_corrupted(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", NINE, size=(48, 48))
    small = open_dataset(root, preprocess="resize40-crop32")
    made = corrupt_folder(small, tmp_path / "c", corruptions=["fog"], severities=[1]).folder
    found = open_corrupted(made, clean=root)
    assert torch.equal(found.clean.images(), small.images())
    whole = open_dataset(root)
    with pytest.raises(
        ValueError, match=r"of c are 32x32, but those of the clean set pets 48x48; .*clean=open_dataset\("
    ):
        open_corrupted(made, clean=whole)
    with pytest.raises(ValueError, match=r"of c are 24x24, but those of the clean set pets 32x32; .*--preprocess"):
        open_corrupted(made, clean=root, preprocess="crop24")
    fits = open_corrupted(made, clean=open_dataset(root, preprocess="crop24"), preprocess="crop24")
    assert fits.preprocess == "crop24" and found.preprocess == "none"
    assert fits.clean.images().shape == fits.cell("fog", 1).images().shape == (9, 3, 24, 24)


def arrays(folder: Path, rows: int, side: int, classes: int) -> Path:
    """The layout of CIFAR-10-C, all black."""
    folder.mkdir(parents=True)
    np.lib.format.open_memmap(folder / "fog.npy", "w+", np.uint8, (5 * rows, side, side, 3)).flush()
    np.save(folder / "labels.npy", np.tile(np.arange(rows) % classes, 5).astype(np.uint8))
    return folder


@pytest.mark.parametrize(
    ("rows", "side", "classes", "published"),
    [
        (10_000, 32, 10, "cifar10-c"),
        (10_000, 32, 100, "cifar100-c"),
        (10_000, 32, 9, None),
        (10_000, 28, 10, None),
        (1_000, 32, 10, None),
    ],
)
def test_arrays_are_those_of_cifar_by_their_measures(
    tmp_path: Path, rows: int, side: int, classes: int, published: str | None
) -> None:
    folder = arrays(tmp_path / "c", rows, side, classes)
    cell = open_dataset(folder, corruption="fog", severity=1)
    names = cell.classes if published else tuple(f"digit {i}" for i in range(classes))
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(rows, -1, -1, -1)
    clean = Dataset.of_images("clean", images, torch.arange(rows) % classes, names)
    found = open_corrupted(folder, clean=clean)
    assert found.published == published and found.cell("fog", 2).classes == names
    wanted = f"no {CORRUPTED[published]} in" if published else "c does not say where they are"
    with pytest.raises(FileNotFoundError, match=wanted):
        open_corrupted(folder)
    assert classes > 10 or CIFAR10 == cell.classes


def test_tiny_imagenet_c_is_no_imagenet_c(tmp_path: Path) -> None:
    names = [f"n0{i:07d}/{i}.JPEG" for i in range(3)]
    tree(tmp_path / "Tiny-ImageNet-C", [f"fog/1/{name}" for name in names], size=(64, 64))
    clean = tree(tmp_path / "val", names, size=(64, 64))
    with pytest.raises(FileNotFoundError, match="does not say where they are"):
        open_corrupted(tmp_path / "Tiny-ImageNet-C")
    found = open_corrupted(tmp_path / "Tiny-ImageNet-C", clean=clean)
    assert found.published is None and found.clean.class_subset is None
    assert found.clean.labels.tolist() == found.cell("fog", 1).labels.tolist() == [0, 1, 2]


def test_the_measures_of_imagenet_c(tmp_path: Path) -> None:
    others = [tmp_path / f"n1{i:07d}" for i in range(999)]
    for side in (224, 64):
        folder = picture(tmp_path / str(side) / "n00000000" / "1.JPEG", (side, side)).parent
        assert published_pictures([folder, *others]) == (side == 224)
        assert not published_pictures([folder, *others[1:]])
