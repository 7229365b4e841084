"""Corrupted images in files are found, matched with the clean ones, and what is missing is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pictures import tree
from shiftnorm.data import Dataset, corrupt, open_dataset
from shiftnorm.data.cifar import CIFAR10
from shiftnorm.data.corruptions import COMMON
from shiftnorm.data.materialise import corrupt_cifar, corrupt_folder
from shiftnorm.data.open_corrupted import corrupted_layout, open_corrupted


def cifar_c(folder: Path, n: int = 10, names: tuple[str, ...] = ("fog", "contrast")) -> Path:
    """The layout of CIFAR-10-C; image i of corruption c at severity s is all of one grey level."""
    folder.mkdir(parents=True)
    for place, name in enumerate(names):
        grey = ((20 * place + np.arange(5 * n)) % 256).astype(np.uint8)
        np.save(folder / f"{name}.npy", np.broadcast_to(grey[:, None, None, None], (5 * n, 32, 32, 3)))
    np.save(folder / "labels.npy", np.tile(np.arange(n) % 10, 5).astype(np.uint8))
    return folder


def cifar(n: int = 10) -> Dataset:
    images = torch.zeros(n, 3, 32, 32, dtype=torch.uint8)
    return Dataset.of_images("cifar10", images, torch.arange(n) % 10, CIFAR10)


def test_the_layout_of_cifar_10_c(tmp_path: Path) -> None:
    found = open_corrupted(cifar_c(tmp_path / "CIFAR-10-C"), clean=cifar())
    assert (found.name, found.published, len(found)) == ("CIFAR-10-C", None, 10)
    assert found.present == {"fog": (1, 2, 3, 4, 5), "contrast": (1, 2, 3, 4, 5)}
    cell = found.cell("contrast", 3)
    assert cell.images()[:, 0, 0, 0].tolist() == list(range(20 + 20, 20 + 30))
    assert torch.equal(cell.labels, found.clean.labels) and cell.classes == CIFAR10
    assert found.checksum("fog", 1) == found.checksum("fog", 5) != found.checksum("contrast", 1)
    assert "read from files in" in found.notes[0] and "preprocessed by none" in found.notes[0]


def test_by_name_the_clean_set_is_found_beside_it(tmp_path: Path) -> None:
    cifar_c(tmp_path / "CIFAR-10-C")
    cifar_c(tmp_path / "CIFAR-100-C", names=("snow",))
    with pytest.raises(FileNotFoundError, match=r"clean error needs .* no cifar10 in .*Give them by clean="):
        open_corrupted("cifar10-c", tmp_path)
    tree(tmp_path / "cifar10" / "test", [f"{name}/1.png" for name in CIFAR10], size=(32, 32))
    found = open_corrupted("cifar10-c", tmp_path)
    assert (found.name, found.clean.name, "fog" in found.present) == ("cifar10-c", "cifar10", True)
    with pytest.raises(FileNotFoundError, match=r"no cifar10-c in .*expected there: CIFAR-10-C/CORRUPTION.npy"):
        open_corrupted("cifar10-c", tmp_path / "nowhere")


@pytest.fixture
def pets(tmp_path: Path) -> Dataset:
    names = [f"{name}/{number}.png" for name in ("cat", "dog", "eel") for number in range(3)]
    return open_dataset(tree(tmp_path / "pets", names, size=(48, 48)))


def test_a_folder_that_corrupt_made(tmp_path: Path, pets: Dataset) -> None:
    made = corrupt_folder(pets, tmp_path / "pets-c", corruptions=["fog", "contrast"], severities=[1, 5])
    assert corrupted_layout(made.folder) == "imagenet-c" and corrupted_layout(tmp_path / "pets") is None
    found = open_corrupted(made.folder, clean=tmp_path / "pets")
    assert found.present == {"fog": (1, 5), "contrast": (1, 5)} and found.published is None
    assert torch.equal(found.cell("fog", 5).images(), corrupt(pets.images(), "fog", 5, constants="imagenet224"))
    assert found.made is not None and found.made["constants"] == "imagenet224" and found.made["frost"] == "procedural"
    assert any("made by shiftnorm corrupt with the strengths imagenet224" in note for note in found.notes)
    few = found.limit(2)
    assert len(few) == 6 and torch.equal(few.cell("fog", 1).labels, few.clean.labels)
    chosen = [pets.files().index(file) for file in few.clean.files()]
    assert torch.equal(few.cell("fog", 1).images(), found.cell("fog", 1).images(chosen))


def test_arrays_that_corrupt_made_have_its_classes(tmp_path: Path, pets: Dataset) -> None:
    made = corrupt_cifar(pets, tmp_path / "pets-c", corruptions=["fog"])
    found = open_corrupted(made.folder, clean=pets)
    assert found.cell("fog", 2).classes == ("cat", "dog", "eel")
    assert torch.equal(found.cell("fog", 2).images(), corrupt(pets.images(), "fog", 2, constants="cifar32"))


def wnid_tree(root: Path, cells: tuple[str, ...], classes: int = 3) -> Path:
    return tree(root, [f"{cell}n0{i:07d}/{i}.JPEG" for cell in cells for i in range(classes)], size=(224, 224))


def test_imagenet_c_with_groups_and_a_subset_of_classes(tmp_path: Path) -> None:
    root = wnid_tree(tmp_path / "ImageNet-C", ("weather/fog/1/", "weather/fog/2/", "blur/zoom_blur/1/"))
    wnids = [f"n0{i:07d}" for i in range(5)]
    clean = tree(tmp_path / "imagenet" / "val", [f"{w}/{int(w[1:])}.JPEG" for w in wnids], size=(300, 260))
    with pytest.raises(ValueError, match="has 3 class folders, so the outputs"):
        open_corrupted(root)
    for path, base in ((root, None), ("imagenet-c", tmp_path)):
        found = open_corrupted(path, base, wnids=wnids)
        assert found.present == {"zoom_blur": (1,), "fog": (1, 2)} and found.published == (
            None if base is None else "imagenet-c"
        )
        assert found.clean.class_subset is not None and found.clean.class_subset.tolist() == [0, 1, 2]
        assert found.cell("fog", 2).images().shape == found.clean.images().shape == (3, 3, 224, 224)
        assert any("Of the 5 clean images the 3 were taken" in note for note in found.notes)
    assert open_corrupted(root, clean=clean, wnids=wnids).clean.labels.tolist() == [0, 1, 2]


def test_what_is_missing(tmp_path: Path) -> None:
    folder = cifar_c(tmp_path / "CIFAR-10-C")
    found = open_corrupted(folder, clean=cifar())
    with pytest.raises(ValueError, match=r"has no gaussian_noise, .*It has fog, contrast\. .*on_missing='skip'"):
        found.select("common")
    with pytest.raises(ValueError, match=r"unknown corruption 'fogg'.*did you mean fog"):
        found.select(["fogg"])
    with pytest.raises(ValueError, match="each once, got"):
        found.select(["fog", "fog"])
    part = open_corrupted(folder, clean=cifar(), on_missing="skip")
    names, notes = part.select("common")
    assert names == ["fog", "contrast"]
    assert notes == [f"Not in the files, and left out: {', '.join(n for n in COMMON if n not in names)}."]
    with pytest.raises(ValueError, match="has no snow"):
        part.select(["snow"])
    with pytest.raises(ValueError, match="on_missing must be"):
        open_corrupted(folder, clean=cifar(), on_missing="ignore")


def test_names_beyond_the_nineteen_and_frost_of_ones_own(tmp_path: Path) -> None:
    names = tuple("frost_procedural" if name == "frost" else name for name in COMMON)
    found = open_corrupted(cifar_c(tmp_path / "c", names=(*names, "caustic_noise")), clean=cifar())
    assert found.select()[0] == list(names)
    assert found.select(["caustic_noise"])[0] == ["caustic_noise"]


def test_the_wrong_clean_set(tmp_path: Path, pets: Dataset) -> None:
    folder = cifar_c(tmp_path / "CIFAR-10-C")
    with pytest.raises(ValueError, match="has 10 images a cell, but the clean set cifar10 has 20"):
        open_corrupted(folder, clean=cifar(20))
    other = Dataset.of_images("cifar10", cifar().images(), torch.arange(10).flip(0), CIFAR10)
    with pytest.raises(ValueError, match=r"in another order than CIFAR-10-C.*10 of 10 labels differ.*image 0"):
        open_corrupted(folder, clean=other)
    with pytest.raises(ValueError, match="'airplane' is not among the 3 of the clean set pets"):
        open_corrupted(folder, clean=pets)
    wrong: Any = 3
    with pytest.raises(TypeError, match="expected clean to be a Dataset, a name or a path, got int"):
        open_corrupted(folder, clean=wrong)
    made = corrupt_folder(pets, tmp_path / "pets-c", corruptions=["fog"], severities=[1]).folder
    with pytest.raises(FileNotFoundError, match=r"does not say where they are. Give them by clean="):
        open_corrupted(made)
    with pytest.raises(ValueError, match=r"1 of the 9 images of pets-c are not in the clean set pets, .* dog/1"):
        open_corrupted(made, clean=pets.subset([0, 1, 2, 3, 5, 6, 7, 8]))


def test_damage(tmp_path: Path, pets: Dataset) -> None:
    made = corrupt_folder(pets, tmp_path / "pets-c", corruptions=["fog", "contrast"], severities=[1]).folder
    broken = made / "contrast" / "1" / "dog" / "1.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    keys = [("fog", 1), ("contrast", 1)]
    with pytest.raises(ValueError, match=r"cannot be read: .*contrast/1/dog/1.JPEG"):
        open_corrupted(made, clean=pets).check(keys)
    skipping = open_corrupted(made, clean=pets, on_error="skip")
    skipping.check(keys)
    assert [len(batch.images) for batch in skipping.cell("contrast", 1).batches(9)] == [8]
    broken.unlink()
    with pytest.raises(
        ValueError, match=r"contrast 1 has not the images of the other cells: dog/1.JPEG missing. Get the set"
    ):
        open_corrupted(made, clean=pets).check(keys)
    (tmp_path / "pets" / "dog" / "2.png").write_bytes(b"")
    shutil.rmtree(made / "contrast")
    found = open_corrupted(made, clean=tmp_path / "pets", on_error="skip")
    assert len(found) == 8 and len(found.cell("fog", 1)) == 8 and len(found.clean.skipped) == 1


def test_damaged_arrays(tmp_path: Path) -> None:
    folder = cifar_c(tmp_path / "c")
    np.save(folder / "contrast.npy", np.zeros((45, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="must hold 45 whole-number labels"):
        open_corrupted(folder, clean=cifar()).check([("fog", 1), ("contrast", 1)])
    (folder / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels.npy is missing beside the other files"):
        open_corrupted(folder, clean=cifar())


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "there is nothing at"),
        ("a.txt", NotADirectoryError, "a.txt is a file; pass a folder or an archive"),
        (".", ValueError, "holds no corrupted images: expected CORRUPTION.npy"),
    ],
)
def test_wrong_places(tmp_path: Path, where: str, error: type[Exception], message: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(error, match=message):
        open_corrupted(tmp_path / where)
    with pytest.raises(TypeError, match="root= belongs to a named data set"):
        open_corrupted(tmp_path / where, tmp_path)


def test_an_archive(tmp_path: Path) -> None:
    import tarfile

    cifar_c(tmp_path / "CIFAR-10-C")
    with tarfile.open(tmp_path / "CIFAR-10-C.tar", "w") as tar:
        tar.add(tmp_path / "CIFAR-10-C", "CIFAR-10-C")
    shutil.rmtree(tmp_path / "CIFAR-10-C")
    for where, root in ((tmp_path / "CIFAR-10-C.tar", None), ("cifar10-c", tmp_path)):
        found = open_corrupted(where, root, clean=cifar(), cache=tmp_path / "cache")
        assert list(found.present) == ["fog", "contrast"]
