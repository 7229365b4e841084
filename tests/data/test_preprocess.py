"""Preprocessing: bit for bit what torchvision does on pictures."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import picture, tree
from shiftnorm.data import open_dataset
from shiftnorm.data.decode import UnreadableImage
from shiftnorm.data.preprocess import Preprocess, parse_preprocess

SIZES = [(640, 480), (300, 301), (256, 256), (100, 700), (37, 53), (225, 300), (331, 499)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_torchvision_bit_for_bit(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    for resize, crop, kind in itertools.product([256, None, (100, 90)], [224, None, 33, 301], ["bilinear", "bicubic"]):
        steps = []
        if resize is not None:
            how = transforms.InterpolationMode(kind)
            steps.append(transforms.Resize(list(resize) if isinstance(resize, tuple) else resize, interpolation=how))
        if crop is not None:
            steps.append(transforms.CenterCrop(crop))
        expected = np.asarray(transforms.Compose(steps)(image))
        assert np.array_equal(np.asarray(Preprocess(resize, crop, kind)(image)), expected), (resize, crop, kind)


def test_a_data_set_gives_what_torchvisions_pipeline_gives(tmp_path: Path) -> None:
    transforms, datasets = (pytest.importorskip(f"torchvision.{each}") for each in ("transforms", "datasets"))
    tree(tmp_path, ["a/1.jpg", "b/1.jpg"], (300, 280))
    picture(tmp_path / "b" / "2.jpg", (280, 400))
    Image.new("CMYK", (400, 300), (9, 99, 199, 20)).save(tmp_path / "b" / "3.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "b" / "2.jpg").save(tmp_path / "b" / "4.jpg", exif=exif)
    pipeline = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    expected = datasets.ImageFolder(str(tmp_path), pipeline)
    ours = open_dataset(tmp_path, upright=False)
    assert len(ours) == len(expected) == 5
    for index, (image, label) in enumerate(expected):
        assert (ours[index][0] == image).all() and ours[index][1] == label
    assert "preprocess resize256-crop224, decoded as stored" in ours.provenance.notes
    upright = open_dataset(tmp_path)
    assert not (upright[4][0] == ours[4][0]).all() and (upright[3][0] == ours[3][0]).all()


@pytest.mark.parametrize(
    "name", ["none", "resize256-crop224", "resize248-bicubic-crop224", "resize224x224", "crop224", "resize64-nearest"]
)
def test_names_are_read_back(name: str) -> None:
    assert parse_preprocess(name).name == name


@pytest.mark.parametrize(
    "text", ["", "resize", "crop-5", "crop224-resize256", "resize256-cubic", "resize0", "none-crop3"]
)
def test_wrong_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"preprocess must look like 'none'|sizes must be at least 1"):
        parse_preprocess(text)


def test_unknown_interpolation() -> None:
    with pytest.raises(ValueError, match=r"interpolation must be one of bilinear, .* got 'cubic'"):
        Preprocess(interpolation="cubic")


def test_a_picture_that_resizing_would_blow_up(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"1x9000 would have more than \d+ pixels after resize256"):
        Preprocess(256).resized(1, 9000)
    for label in "ab":
        picture(tmp_path / label / "1.png", (300, 300))
    picture(tmp_path / "b" / "2.png", (1, 9000))
    with pytest.raises(ValueError, match=r"b/2.png: 1x9000 would have more than"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, on_error="skip")) == 2
