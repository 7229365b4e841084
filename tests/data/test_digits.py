"""The embedded benchmark: honest split, determinism, errors."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from shiftnorm.data import digits_on_photos
from shiftnorm.data.digits import FIRST_TEST_DIGIT, TEST_COLUMNS

sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")


def test_sizes_classes_and_range() -> None:
    train, test = digits_on_photos()
    assert (len(train), len(test)) == (1415, 382)
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 32, 32)
    assert train.classes == tuple("0123456789")
    # The forms hold every digit about equally often.
    for part in (train, test):
        counts = part.labels.bincount() / len(part)
        assert counts.min() > 0.09 and counts.max() < 0.11
    assert train.images.min() == 0 and train.images.max() > 250


def test_the_split_falls_between_two_forms() -> None:
    targets = sklearn_datasets.load_digits().target
    assert targets[FIRST_TEST_DIGIT : FIRST_TEST_DIGIT + 20].tolist() == [*range(10), *range(10)]


def test_labels_and_digits_are_the_files_and_backgrounds_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    file = sklearn_datasets.load_digits()
    photos = sklearn_datasets.load_sample_images()
    # Photographs that tell a test column from a train column, and are too dark for the digit to change the sign.
    marked = torch.full((427, 640, 3), 10, dtype=torch.uint8)
    for first, end in TEST_COLUMNS:
        marked[:, first:end] = 20
    photos.images = [marked.numpy(), marked.numpy()]
    monkeypatch.setattr(sklearn_datasets, "load_sample_images", lambda: photos)
    digits = torch.from_numpy(file.images).float()[:, None] / 16
    enlarged = F.interpolate(digits, size=(32, 32), mode="bicubic", align_corners=False).clamp(0, 1)
    targets = torch.from_numpy(file.target)
    for part, background, where in zip(
        digits_on_photos(), (10, 20), (slice(None, 1415), slice(1415, None)), strict=True
    ):
        assert torch.equal(part.labels, targets[where])
        expected = (background / 255 - enlarged[where]).abs() * 255
        assert (part.images - expected).abs().max() <= 0.51


@pytest.mark.parametrize("size", [16, 28, 48, 64])
def test_sizes(size: int) -> None:
    train, test = digits_on_photos(size=size)
    assert train.images.shape[2:] == test.images.shape[2:] == (size, size)


def test_deterministic_and_seeded() -> None:
    first, second, other = digits_on_photos(), digits_on_photos(), digits_on_photos(seed=1)
    for part in (0, 1):
        assert torch.equal(first[part].images, second[part].images)
        assert torch.equal(first[part].labels, other[part].labels)
        assert not torch.equal(first[part].images, other[part].images)


@pytest.mark.parametrize("size", [0, 15, 65])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=rf"size must be in 16..64, got {size}"):
        digits_on_photos(size=size)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'shiftnorm\[train\]'"):
        digits_on_photos()
