"""Damaged inputs: each an error that names the file, or counted and named by choice; never a silent drop."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import bomb, picture, tree
from shiftnorm.data import Dataset, open_dataset
from shiftnorm.data.decode import UnreadableImage, inspect_image, jpeg_quality

GOOD = ["cat/0.png", "cat/1.jpg", "dog/0.png", "dog/1.jpg"]


def truncated(path: Path) -> None:
    picture(path, (64, 64))
    path.write_bytes(path.read_bytes()[:1500])


def unknown_range(path: Path) -> None:
    Image.new("F", (40, 32), 0.5).save(path, "TIFF")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text.jpg": (lambda path: path.write_text("hello"), "not an image"),
    "notes.txt": (lambda path: path.write_text("hello"), "not an image"),
    "cut.jpg": (truncated, "truncated"),
    "cut.png": (truncated, "damaged"),
    "bomb.png": (lambda path: path.write_bytes(bomb()), "decompression bomb"),
    "link.png": (lambda path: path.symlink_to("nowhere.png"), "broken link"),
    "float.tif": (unknown_range, "floating-point values have no known range"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "pets", GOOD)


def consistent(dataset: Dataset) -> None:
    """Whatever was left out, images, labels and numbers belong together."""
    batches = list(dataset.batches(3))
    assert torch.cat([batch.labels for batch in batches]).tolist() == dataset.labels.tolist()
    assert sum(len(batch.images) for batch in batches) == len(dataset)


@pytest.mark.parametrize("name", BAD)
def test_each_kind_of_damage(root: Path, name: str) -> None:
    make, reason = BAD[name]
    make(root / "cat" / name)
    with pytest.raises(
        ValueError, match=rf"1 of the 5 files of 'pets' cannot be read: .*cat/{name}: .*{reason}.*on_error='skip'"
    ):
        open_dataset(root)
    lenient = open_dataset(root, on_error="skip")
    assert len(lenient) == 4 and len(lenient.skipped) == 1
    assert lenient.skipped[0].path.endswith(f"cat/{name}") and reason in lenient.skipped[0].reason
    # The others keep the numbers that they have with the bad file in place.
    place = sorted([*(each.split("/")[1] for each in GOOD[:2]), name]).index(name)
    assert lenient.numbers.tolist() == [number for number in range(5) if number != place]
    assert lenient.describe()["skipped"] == 1
    consistent(lenient)


def test_all_kinds_at_once_are_counted_and_named(root: Path) -> None:
    for name, (make, _) in BAD.items():
        make(root / "dog" / name)
    with pytest.raises(ValueError, match=r"8 of the 12 files of 'pets' cannot be read: .*; and 3 more; repair"):
        open_dataset(root)
    lenient = open_dataset(root, on_error="skip")
    assert {item.path.rsplit("/", 1)[1] for item in lenient.skipped} == set(BAD) and len(lenient) == 4
    consistent(lenient)


def test_damage_in_the_middle_is_found_by_a_full_check(root: Path) -> None:
    path = picture(root / "cat" / "mid.png", (40, 32))
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    assert len(open_dataset(root)) == 5
    with pytest.raises(UnreadableImage, match=r"cat/mid.png: damaged"):
        open_dataset(root, check="full")
    for workers in (0, 2):
        lenient = open_dataset(root, check="full", on_error="skip", workers=workers)
        assert lenient.numbers.tolist() == [0, 1, 3, 4] and "mid.png" in lenient.skipped[0].path
    consistent(lenient)


def test_modes_become_rgb_of_the_same_size(root: Path) -> None:
    size = (40, 32)
    Image.new("CMYK", size, (0, 255, 255, 0)).save(root / "cat" / "cmyk.jpg", quality=95)
    Image.fromarray(np.full(size[::-1], 65535, dtype=np.uint16)).save(root / "cat" / "deep.png")
    Image.new("P", size, 3).save(root / "cat" / "palette.png")
    Image.new("RGBA", size, (255, 0, 0, 0)).save(root / "cat" / "rgba.png")
    frames = [Image.new("RGB", size, colour) for colour in ("red", "lime")]
    frames[0].save(root / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    pets = open_dataset(root)
    assert len(pets) == 9 and pets.skipped == []
    named = {Path(path).name: image for path, image in zip(pets.pixels.paths, pets.images(), strict=True)}
    assert (named["cmyk.jpg"][0] > 245).all() and (named["cmyk.jpg"][1:] < 10).all()
    assert (named["deep.png"] == 255).all() and (named["rgba.png"] == 255).all()
    assert named["moving.gif"][:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("check", ["quick", "full"])
def test_empty_classes(root: Path, check: str) -> None:
    (root / "bird").mkdir()
    with pytest.raises(ValueError, match=r"no files in the class folder .*bird; add images.*on_error='skip'"):
        open_dataset(root, check=check)
    pets = open_dataset(root, check=check, on_error="skip")
    assert pets.classes == ("bird", "cat", "dog") and pets.labels.tolist() == [1, 1, 2, 2]
    assert [str(item) for item in pets.skipped] == [f"{root / 'bird'}: an empty class"]


def test_a_class_of_which_nothing_can_be_read(root: Path) -> None:
    (root / "bird").mkdir()
    (root / "bird" / "1.png").write_bytes(b"")
    pets = open_dataset(root, on_error="skip")
    assert [item.reason for item in pets.skipped] == ["the file is empty", "a class none of whose files can be read"]
    for name in GOOD:
        (root / name).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"none of the 5 files of 'pets' .* can be read, for instance .*the file is empty"
    ):
        open_dataset(root, on_error="skip")


@pytest.mark.parametrize("twin", ["Cat", "cat "])
def test_classes_that_differ_only_in_case(root: Path, twin: str) -> None:
    tree(root, [f"{twin}/1.png"])
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"the class folders .* differ only in spelling; merge or rename them"):
            open_dataset(root, on_error=on_error)


def test_classes_that_differ_only_in_case_between_the_parts_of_a_split(tmp_path: Path) -> None:
    tree(tmp_path, ["train/Cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png"])
    assert open_dataset(tmp_path).classes == ("cat", "dog")
    said = r"the class folders 'cat' of .*test and 'Cat' of .*train differ only in spelling; give both one name"
    with pytest.raises(ValueError, match=said):
        open_dataset(tmp_path, split="all")


def test_classes_that_differ_only_in_how_accents_are_encoded(root: Path) -> None:
    for form in ("NFC", "NFD"):
        tree(root, [f"{unicodedata.normalize(form, 'épagneul')}/1.png"])
    with pytest.raises(ValueError, match=r"differ only in spelling"):
        open_dataset(root)


def test_a_forbidden_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterdir = Path.iterdir

    def refuse(folder: Path):
        if folder.name == "dog":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    # File modes do not stop the superuser, whom containers run tests as.
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read the folder .*dog; change its mode"):
        open_dataset(root)
    pets = open_dataset(root, on_error="skip")
    assert len(pets) == 2 and pets.classes == ("cat", "dog") and "no permission" in pets.skipped[0].reason


def test_a_forbidden_folder_beside_a_named_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domains = ("art_painting", "cartoon", "photo", "sketch")
    tree(tmp_path / "pacs", [f"{domain}/{label}/1.png" for domain in domains for label in ("cat", "dog")])
    (tmp_path / "lost+found").mkdir()
    iterdir, access = Path.iterdir, os.access

    def refuse(folder: Path):
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "lost+found" and access(path, mode))
    assert len(open_dataset("pacs", tmp_path)) == 8
    with pytest.raises(FileNotFoundError, match=r"no imagenet-c"):
        open_dataset("imagenet-c", tmp_path, corruption="fog", severity=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_forbidden_file(root: Path) -> None:
    (root / "cat" / "0.png").chmod(0)
    with pytest.raises(ValueError, match=r"cat/0.png: no permission to read it"):
        open_dataset(root)


def test_sizes_that_differ(root: Path) -> None:
    picture(root / "cat" / "wide.png", (400, 300))
    auto = open_dataset(root)
    assert auto.images().shape == (5, 3, 224, 224) and "preprocess resize256-crop224" in auto.provenance.notes[-1]
    with pytest.raises(ValueError, match=r"2 sizes \(4 of 40x32, 1 of 400x300, ...\) after preprocess='none'"):
        open_dataset(root, preprocess="none")
    with pytest.raises(ValueError, match=r"have 2 sizes"):
        open_dataset(root, preprocess="resize64")
    assert open_dataset(root, preprocess="resize64-crop32", check="none").images().shape == (5, 3, 32, 32)


def test_padding_behind_an_image_is_no_damage(root: Path) -> None:
    for name in ("cat/0.png", "cat/1.jpg"):
        (root / name).write_bytes((root / name).read_bytes() + bytes(200))
    assert len(open_dataset(root)) == 4


def test_the_header_tells_what_decoding_gives(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 32)).save(root / "cat" / "turned.jpg", exif=exif)
    assert inspect_image(root / "cat" / "turned.jpg") == (32, 40)
    assert inspect_image(root / "cat" / "turned.jpg", as_stored=True) == (40, 32)
    for quality in (40, 75, 85, 95):
        picture(root / "q.png")
        Image.open(root / "q.png").save(root / "q.jpg", quality=quality)
        assert jpeg_quality(root / "q.jpg") == quality
        Image.open(root / "q.png").convert("L").save(root / "q.jpg", quality=quality)
        assert jpeg_quality(root / "q.jpg") == quality
    assert jpeg_quality(root / "cat" / "0.png") is None
